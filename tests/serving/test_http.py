from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import InputError
from recsys.serving import load_scorer, make_app, serve
from tests.serving.conftest import make_impressions

ROOT = Path(__file__).parents[2]
SCORE, TOKEN = "/v1/score", {"Authorization": "Bearer secret"}


def some_rows(n: int) -> list[dict]:
    table = make_impressions(n, 11)
    return table.select(["user_id", "ad_id", "advertiser_id", "topic", "age", "history"]).to_pylist()


class Client:
    """Synchronous requests to an app in this process, started as a server would start it."""

    def __init__(self, app) -> None:
        self._app, self._loop = app, asyncio.new_event_loop()
        self._lifespan = app.router.lifespan_context(app)

    def __enter__(self) -> Client:
        self._loop.run_until_complete(self._lifespan.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
        self._loop.close()

    def all(self, *requests: tuple) -> list[httpx.Response]:
        async def send() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return list(await asyncio.gather(*(client.request(m, u, **k) for m, u, k in requests)))

        return self._loop.run_until_complete(send())

    def get(self, url: str, **options) -> httpx.Response:
        return self.all(("GET", url, options))[0]

    def post(self, **options) -> httpx.Response:
        return self.all(("POST", SCORE, options))[0]


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    with Client(make_app(model, max_body=200_000, max_rows=100)) as client:
        yield client


def test_scores_are_the_models(model: Path, client: Client) -> None:
    rows, scorer = some_rows(20), load_scorer(model)
    answer = client.post(json={"rows": rows})
    assert answer.status_code == 200
    assert answer.json()["model_id"] == scorer.model_id
    direct = scorer.score(pa.Table.from_pylist(rows))["click"]
    got = [s["p_click"] for s in answer.json()["scores"]]
    np.testing.assert_allclose(got, direct, rtol=1e-6)
    assert np.std(direct) > 0.005


def test_missing_values_and_unknown_ids_are_scored(client: Client) -> None:
    row = dict.fromkeys(some_rows(1)[0]) | {"ad_id": "never seen", "unused": {"a": 1}}
    answer = client.post(json={"rows": [row]})
    assert answer.status_code == 200
    assert 0 < answer.json()["scores"][0]["p_click"] < 1


def test_health_metadata_metrics_and_openapi(model: Path, client: Client) -> None:
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["model"]["columns"] == load_scorer(model).columns
    client.post(json={"rows": some_rows(3)})
    text = client.get("/metrics").text
    assert 'recsys_requests_total{route="/v1/score",status="200"}' in text
    assert "recsys_rows_scored_total" in text
    client.get("/made/up/by/a/client")
    assert "made" not in client.get("/metrics").text
    page = client.get("/openapi.json").json()
    assert page["paths"][SCORE]["post"]["requestBody"]["content"]["application/json"]["schema"]["required"] == ["rows"]


@pytest.mark.parametrize(("body", "words"), [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"\xff\xfe\x00", "not valid JSON"),
    (b'{"rows": [{"age": NaN}]}', "not valid JSON"),
    (b'{"rows": [{"age": Infinity}]}', "not valid JSON"),
    (b'{"rows": [{"age": 1e999}]}', "not valid JSON"),
    (b"[" * 50_000, "not valid JSON"),
    (b"[]", "malformed request"),
    (b"3", "malformed request"),
    (b'{"row": []}', "malformed request"),
    (b'{"rows": {}}', "malformed request"),
    (b'{"rows": []}', "number of rows; got 0; expected 1 to 100"),
    (b'{"rows": [' + b"{}," * 100 + b"{}]}", "number of rows; got 101"),
    (b'{"rows": [3]}', "row 0: malformed row"),
    (json.dumps({"rows": [{k: v for k, v in some_rows(1)[0].items() if k != "age"}]}).encode(),
     "column age, row 0: missing column"),
    (json.dumps({"rows": [some_rows(1)[0] | {"age": "old"}]}).encode(), "column age: wrong type"),
    (json.dumps({"rows": [some_rows(1)[0] | {"age": [1]}]}).encode(), "column age: wrong type"),
    (json.dumps({"rows": [some_rows(1)[0] | {"age": {}}]}).encode(), "column age: wrong type"),
    (json.dumps({"rows": [some_rows(1)[0] | {"topic": {"a": 1}}]}).encode(), "column topic: wrong type"),
    (json.dumps({"rows": [some_rows(1)[0] | {"topic": ["t1"]}]}).encode(), ""),
    (json.dumps({"rows": [some_rows(1)[0] | {"history": "a1"}]}).encode(), "column history: wrong type"),
    (json.dumps({"rows": [some_rows(1)[0] | {"history": [["a1"]]}]}).encode(), "column history: wrong type"),
    (json.dumps({"rows": [some_rows(1)[0], some_rows(1)[0] | {"age": "x"}]}).encode(), "column age: values of mixed"),
])
def test_malformed_requests_are_400_and_name_what_is_wrong(client: Client, body: bytes, words: str) -> None:
    answer = client.post(content=body)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert words in answer.json()["error"]


def test_extreme_numbers_never_make_a_500(client: Client) -> None:
    for age in (1e308, -1e308, 5e-324, 2**63, 2**64, -(2**63), 10**40, True):
        answer = client.post(content=json.dumps({"rows": [some_rows(1)[0] | {"age": age}]}))
        assert answer.status_code in (200, 400), (age, answer.text)
        if answer.status_code == 200:
            assert 0 <= answer.json()["scores"][0]["p_click"] <= 1


def test_random_bodies_never_make_a_500(client: Client) -> None:
    rng, good = np.random.default_rng(0), json.dumps({"rows": some_rows(2)}).encode()
    bodies = [rng.bytes(int(rng.integers(0, 60))) for _ in range(150)]
    for _ in range(250):  # a good body with a few bytes changed goes deeper than noise
        body = bytearray(good)
        for at in rng.integers(0, len(body), 3):
            body[at] = rng.integers(32, 127)
        bodies.append(bytes(body))
    for start in range(0, len(bodies), 40):
        answers = client.all(*(("POST", SCORE, {"content": b}) for b in bodies[start : start + 40]))
        assert {a.status_code for a in answers} <= {200, 400}


def test_a_large_body_is_413_whatever_it_claims(client: Client) -> None:
    async def endless():
        for _ in range(1000):
            yield b" " * 10_000

    for body in (b" " * 200_001, endless()):
        answer = client.post(content=body)
        assert answer.status_code == 413
        assert "200000 bytes" in answer.json()["error"]
    assert client.post(content=b" " * 200_000).status_code == 400


def test_unknown_routes_and_methods_are_json_errors(client: Client) -> None:
    assert client.get("/v1/../../etc/passwd").json() == {"error": "Not Found"}
    answer = client.get(SCORE)
    assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})


def test_token(model: Path) -> None:
    with Client(make_app(model, "secret")) as client:
        body = {"rows": some_rows(1)}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"},
                        {"Authorization": b"Bearer \xe9\xff"}):
            answer = client.post(json=body, headers=headers)
            assert (answer.status_code, answer.json()) == (401, {"error": "no or wrong token"})
            assert client.get("/metrics", headers=headers).status_code == 401
        assert client.post(json=body, headers=TOKEN).status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2", headers=TOKEN).status_code == 200


def test_not_ready_before_start_and_after_stop(model: Path) -> None:
    client = Client(make_app(model))
    assert client.get("/v2/health/ready").status_code == 503
    assert client.post(json={"rows": some_rows(1)}).status_code == 503
    with client:
        assert client.get("/v2/health/ready").status_code == 200
    client._loop = asyncio.new_event_loop()
    assert client.get("/v2/health/ready").status_code == 503


class Slow:
    """The real model behind a door that the test opens."""

    def __init__(self, model: Path) -> None:
        self._scorer, self.door = load_scorer(model), threading.Event()
        self.columns, self.heads, self.model_id = (self._scorer.columns, self._scorer.heads, self._scorer.model_id)
        self.door.set()

    def score(self, table: pa.Table) -> dict[str, np.ndarray]:
        self.door.wait(20)
        if table["topic"][0].as_py() == "explode":
            raise RuntimeError("private detail")
        return self._scorer.score(table)


def test_a_full_queue_is_503_and_health_answers_meanwhile(model: Path) -> None:
    scorer = Slow(model)
    with Client(make_app(model, scorer=scorer, max_waiting=3)) as client:
        scorer.door.clear()
        threading.Timer(0.5, scorer.door.set).start()
        began = time.perf_counter()
        one = ("POST", SCORE, {"json": {"rows": some_rows(1)}})
        times: list[float] = []

        async def health() -> None:
            transport = httpx.ASGITransport(client._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as c:
                assert (await c.get("/v2/health/ready")).status_code == 200
            times.append(time.perf_counter() - began)

        task = client._loop.create_task(health())
        answers = client.all(*[one] * 8)
        client._loop.run_until_complete(task)
        assert sorted(a.status_code for a in answers) == [200] * 3 + [503] * 5
        assert {a.headers["retry-after"] for a in answers if a.status_code == 503} == {"1"}
        assert times[0] < 0.5  # the model was still held
        assert client.post(json={"rows": some_rows(1)}).status_code == 200


def test_a_failing_model_is_a_500_without_its_details(model: Path) -> None:
    with Client(make_app(model, scorer=Slow(model))) as client:
        answer = client.post(json={"rows": [some_rows(1)[0] | {"topic": "explode"}]})
        assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})
        assert 'route="/v1/score",status="500"' in client.get("/metrics").text
        assert client.post(json={"rows": some_rows(1)}).status_code == 200


def test_an_open_address_needs_a_token_and_a_model_must_be_one(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a token"):
        serve(model, host="0.0.0.0")
    with pytest.raises(InputError, match="no such file"):
        make_app(tmp_path)


@pytest.mark.slow
def test_a_real_server_drains_on_sigterm(model: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "serve.py"), "http", "--model", str(model), "--port", str(port)],
        env={**os.environ, "RECSYS_TOKEN": "secret"}, stderr=subprocess.PIPE, text=True)
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(base + "/v2/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.1)
        assert httpx.post(base + SCORE, json={"rows": some_rows(2)}).status_code == 401
        body = json.dumps({"rows": some_rows(200)}).encode()

        def halves() -> Iterator[bytes]:
            yield body[:1000]
            time.sleep(0.5)  # the request has begun
            process.send_signal(signal.SIGTERM)
            time.sleep(1)
            with pytest.raises(httpx.ConnectError):  # nobody new comes in
                httpx.get(base + "/v2/health/live")
            yield body[1000:]

        answer = httpx.post(base + SCORE, content=halves(), headers=TOKEN, timeout=30)
        assert answer.status_code == 200
        assert len(answer.json()["scores"]) == 200
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_the_commands_import_nothing_heavy() -> None:
    code = "import sys, recsys.serving.commands; print({'torch', 'pyarrow', 'numpy', 'fastapi'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
