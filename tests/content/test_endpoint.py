"""The endpoint encoder against a real HTTP server in a thread that fails on command."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import EncoderConfig
from recsys.content import embed_texts, load_vectors, make_encoder, read_usage
from recsys.content.endpoint import share_out
from recsys.errors import InputError, RecsysError
from recsys.ledger import book, load_card

DIM = 8


def vector_of(text: str) -> list[float]:
    return [b / 255 for b in hashlib.sha256(text.encode()).digest()[:DIM]]


class FakeServer:
    """An OpenAI-shaped server. ``script``: one entry a request to come, each (status, headers, body or None), "drop" or
    "stall"; afterwards it answers well."""

    def __init__(self) -> None:
        self.script: list = []
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.change = lambda answer: answer
        fake, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    fake.times.append(time.monotonic())
                    fake.requests.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
                    step = fake.script.pop(0) if fake.script else None
                if step == "drop":
                    self.connection.close()
                    return
                if step == "stall":
                    time.sleep(1.0)
                    self.connection.close()
                    return
                status, headers, raw = step or (200, {}, None)
                if raw is None:
                    rows = [{"object": "embedding", "index": i, "embedding": vector_of(t)}
                            for i, t in enumerate(body["input"])]
                    answer = {"object": "list", "data": rows[::-1], "model": body["model"],  # any order is allowed
                              "usage": {"prompt_tokens": sum(len(t.split()) + 2 for t in body["input"])}}
                    raw = json.dumps(fake.change(answer))
                raw = raw.encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    fake = FakeServer()
    thread = threading.Thread(target=fake.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield fake
    fake.http.shutdown()
    fake.http.server_close()


def endpoint(server, **settings):
    return make_encoder(config(server, **settings))


def config(server, **settings) -> EncoderConfig:
    return EncoderConfig(**{"kind": "endpoint", "url": server.url, "model": "m", "dim": DIM, "batch_size": 3,
                            "backoff_seconds": 0.01, "timeout_seconds": 5, "concurrency": 2, **settings})


def error(code, words="no", **headers):
    return (code, headers, json.dumps({"error": {"message": words}}))


TEXTS = [f"text number {i}" for i in range(10)]
WANT = np.array([vector_of(t) for t in TEXTS], np.float32)


def test_vectors_come_back_in_order_and_tokens_add_up(server, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret ")
    batch = endpoint(server, key_env="A_KEY").encode(TEXTS)
    np.testing.assert_array_equal(batch.vectors, WANT)
    assert batch.tokens.sum() == 5 * len(TEXTS)
    assert sorted(len(r["input"]) for r in server.requests) == [1, 3, 3, 3]
    assert {(r["path"], r["key"], r["model"]) for r in server.requests} == {("/v1/embeddings", "Bearer secret", "m")}
    assert endpoint(server).encode([]).vectors.shape == (0, DIM)
    assert endpoint(server).encode(["x"]).vectors.shape == (1, DIM)
    assert server.requests[-1]["key"] is None


def test_blank_long_and_prompted_texts(server):
    endpoint(server, max_tokens=2, prompt="query: {text}", concurrency=1).encode(["", " \n", "0123456789", "🎉" * 20])
    sent = [t for r in server.requests for t in r["input"]]
    assert sent == ["query:  ", "query:  ", "query: 01234567", "query: " + "🎉" * 8]


@pytest.mark.parametrize("failure", [
    "drop", "stall", error(500), error(503, "busy"), error(429, "slow down"), error(408), (200, {}, '{"data": [{"ind'),
    (502, {}, "<html>Bad Gateway</html>"),
])
def test_what_may_pass_is_tried_again(server, failure):
    server.script = [failure, failure]
    batch = endpoint(server, timeout_seconds=0.2 if failure == "stall" else 5).encode(TEXTS)
    np.testing.assert_array_equal(batch.vectors, WANT)
    assert len(server.requests) == 4 + 2


@pytest.mark.parametrize("ask", ["1", "date"])
def test_retry_after_is_kept_by_every_request(server, ask):
    server.script = [error(429, "rate limit", **{"Retry-After": ask if ask == "1" else formatdate(
        time.time() + 2, usegmt=True)})]
    endpoint(server, concurrency=1, backoff_seconds=1e-3).encode(TEXTS)
    gaps = np.diff(server.times)
    assert gaps[0] > 0.9  # the pause that was asked for, not the millisecond of the backoff
    assert len(server.requests) == 5


def test_it_gives_up_after_the_last_try_and_on_pauses_too_long(server):
    server.script = [error(503, "overloaded")] * 50
    with pytest.raises(RecsysError, match=r"gave up after 3 tries: HTTP 503 overloaded"):
        endpoint(server, retries=2, concurrency=1).encode(["a"])
    assert len(server.requests) == 3
    server.script = [error(429, "quota", **{"Retry-After": "86400"})]
    with pytest.raises(RecsysError, match="gave up after 1 tries"):
        endpoint(server).encode(["a"])


@pytest.mark.parametrize(("failure", "words"), [
    (error(401, "bad key"), "HTTP 401 bad key'; expected a valid key"), (error(404, "no model m"), "no model m"),
    (error(400, "too long"), "HTTP 400 too long"), (error(422), "smaller batch_size"),
    ((302, {"Location": "http://127.0.0.1:1/"}, ""), "HTTP 302"),
])
def test_what_cannot_pass_is_refused_at_once(server, failure, words):
    server.script = [failure] * 9
    with pytest.raises(InputError, match=words):
        endpoint(server, concurrency=1).encode(TEXTS)
    assert len(server.requests) == 1


def changed(**row):
    def change(answer):
        answer["data"][0] = {**answer["data"][0], **row}
        return answer
    return change


@pytest.mark.parametrize(("change", "words"), [
    (lambda a: {**a, "data": a["data"][:-1]}, r"column data: .*; got '2 vectors'; expected a list of 3"),
    (lambda a: {"object": "list"}, "column data"),
    (lambda a: [1], "column data"),
    (lambda a: {"error": "model is loading"}, "model is loading"),
    (changed(embedding=[0.0] * 5), r"data\[0\]\.embedding: .*; got '5 numbers'; expected a list of 8"),
    (changed(embedding="AAAA"), r"data\[0\]\.embedding: .*; got 'str'"),
    (changed(embedding=["x"] * DIM), r"data\[0\]\.embedding.*numbers"),
    (changed(embedding=[float("nan")] * DIM), "finite"),
    (changed(embedding=[None] * DIM), r"data\[0\]\.embedding"),
    (changed(index=1), r"data\[1\]\.index: .*; got [012]"),
    (changed(index=7), r"data\[0\]\.index: .*; got 7"),
])
def test_wrong_shapes_are_named(server, change, words):
    server.change = change
    with pytest.raises(InputError, match=words):
        endpoint(server).encode(TEXTS[:3])
    assert len(server.requests) == 1


@pytest.mark.parametrize(("settings", "words"), [
    ({"url": None}, "column url"), ({"model": None}, "column model"), ({"url": "ftp://x/v1"}, "not an endpoint"),
    ({"url": "http://user:pass@host/v1"}, "not an endpoint"), ({"prompt": "no place"}, "prompt"),
])
def test_bad_settings_are_refused_before_any_request(server, settings, words):
    with pytest.raises(InputError, match=words):
        endpoint(server, **settings)


def test_a_key_that_is_not_set_is_named_and_never_shown(server, monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(InputError, match="A_KEY"):
        endpoint(server, key_env="A_KEY").encode(["a"])
    monkeypatch.setenv("A_KEY", "secret")
    server.script = [error(401)]
    with pytest.raises(InputError) as caught:
        endpoint(server, key_env="A_KEY").encode(["a"])
    assert "secret" not in str(caught.value)


def ads(n: int) -> pa.Table:
    return pa.table({"ad_id": [f"a{i}" for i in range(n)], "title": [f"text number {i}" for i in range(n)],
                     "content_hash": [f"{i:064x}" for i in range(n)]})


def test_a_run_that_gave_up_goes_on_without_paying_twice(server, tmp_path):
    server.script = [None, None, *[error(503)] * 3]
    settings = config(server, retries=0, concurrency=1, batch_size=2, price="api-openai-3-small")
    with pytest.raises(RecsysError, match="gave up"):
        embed_texts(ads(10), settings, tmp_path / "store", chunk=4)
    paid = [t for r in server.requests[:2] for t in r["input"]]
    server.script = []
    server.requests.clear()
    embed_texts(ads(10), settings, tmp_path / "store", chunk=4)
    again = [t for r in server.requests for t in r["input"]]
    assert sorted(paid + again) == sorted(TEXTS)
    np.testing.assert_allclose(load_vectors(tmp_path / "store").matrix, WANT, atol=1e-3)  # float16
    usage = read_usage(tmp_path / "store")
    assert (usage["tokens"], usage["device"], usage["price_row"]) == (50, "remote", "api-openai-3-small")
    assert usage["padding_share"] == 0.0
    server.requests.clear()
    assert embed_texts(ads(10), settings, tmp_path / "store")["cached"]
    assert server.requests == []


def test_the_ledger_books_tokens_times_the_cards_price(server, tmp_path):
    embed_texts(ads(10), config(server, price="api-openai-3-small"), tmp_path / "store")
    card = load_card("2026-11")
    [row] = book([read_usage(tmp_path / "store")], card, "aws-c6a-large", "e", "arm").to_pylist()
    assert row["EffectiveCost"] == pytest.approx(50 / 1e6 * 0.02)
    assert row["x_CostLow"] == row["x_CostHigh"] == row["EffectiveCost"]
    assert (row["PricingUnit"], row["ConsumedQuantity"], row["ConsumedUnit"]) == ("1M Tokens", 50, "Tokens")
    assert (row["ProviderName"], row["x_TokensIn"], row["x_GpuSeconds"]) == ("OpenAI", 50, 0.0)
    with pytest.raises(InputError, match="million tokens"):
        book([{**read_usage(tmp_path / "store"), "price_row": "aws-c6a-large"}], card, "aws-c6a-large", "e", "arm")


def test_tokens_that_are_paid_for_must_be_counted(server):
    server.change = lambda a: {k: v for k, v in a.items() if k != "usage"}
    assert endpoint(server).encode(TEXTS[:3]).tokens.sum() == 0
    with pytest.raises(InputError, match=r"usage\.prompt_tokens"):
        endpoint(server, price="api-openai-3-small").encode(TEXTS[:3])


@pytest.mark.parametrize("total", [0, 1, 7, 100, 12345])
def test_shares_add_up_exactly(total):
    shares = share_out(total, ["", "a", "long text " * 9, "ü"])
    assert shares.sum() == total
    assert (shares >= 0).all()
