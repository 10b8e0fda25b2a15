"""/v1/score, health, metrics, errors, token, limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import InputError
from recsys.serving import load_scorer, make_app
from recsys.serving.http import Limits, Route, Service, Settings
from recsys.serving.http.routes import json_response
from tests.serving.http.client import Client, Slow, some_rows

SCORE, TOKEN = "/v1/score", {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    with Client(make_app(model, Settings(max_body=200_000, max_rows=100))) as client:
        yield client


def test_scores_are_the_models(model: Path, client: Client) -> None:
    rows, scorer = some_rows(20), load_scorer(model)
    answer = client.post(SCORE, json={"rows": rows})
    assert answer.status_code == 200
    assert answer.json()["model_id"] == scorer.model_id
    direct = scorer.score(pa.Table.from_pylist(rows))["click"]
    got = [s["p_click"] for s in answer.json()["scores"]]
    np.testing.assert_allclose(got, direct, rtol=1e-6)
    assert np.std(direct) > 0.005


def test_missing_values_and_unknown_ids_are_scored(client: Client) -> None:
    row = dict.fromkeys(some_rows(1)[0]) | {"ad_id": "never seen", "unused": {"a": 1}}
    answer = client.post(SCORE, json={"rows": [row]})
    assert answer.status_code == 200
    assert 0 < answer.json()["scores"][0]["p_click"] < 1


def test_health_metadata_metrics_and_openapi(model: Path, client: Client) -> None:
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert [i["name"] for i in client.get("/v2/models/ranker").json()["inputs"]] == load_scorer(model).columns
    client.post(SCORE, json={"rows": some_rows(3)})
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
    answer = client.post(SCORE, content=body)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert words in answer.json()["error"]


def test_extreme_numbers_never_make_a_500(client: Client) -> None:
    for age in (1e308, -1e308, 5e-324, 2**63, 2**64, -(2**63), 10**40, True):
        answer = client.post(SCORE, content=json.dumps({"rows": [some_rows(1)[0] | {"age": age}]}))
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
        answer = client.post(SCORE, content=body)
        assert answer.status_code == 413
        assert "200000 bytes" in answer.json()["error"]
    assert client.post(SCORE, content=b" " * 200_000).status_code == 400


def test_unknown_routes_and_methods_are_json_errors(client: Client) -> None:
    assert client.get("/v1/../../etc/passwd").json() == {"error": "Not Found"}
    answer = client.get(SCORE)
    assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})


def test_token(model: Path) -> None:
    with Client(make_app(model, Settings(token="secret"))) as client:
        body = {"rows": some_rows(1)}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"},
                        {"Authorization": b"Bearer \xe9\xff"}):
            answer = client.post(SCORE, json=body, headers=headers)
            assert (answer.status_code, answer.json()) == (401, {"error": "no or wrong token"})
            assert client.get("/metrics", headers=headers).status_code == 401
        assert client.post(SCORE, json=body, headers=TOKEN).status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2", headers=TOKEN).status_code == 200


def test_not_ready_before_start_and_after_stop(model: Path) -> None:
    client = Client(make_app(model))
    assert client.get("/v2/health/ready").status_code == 503
    assert client.post(SCORE, json={"rows": some_rows(1)}).status_code == 503
    with client:
        assert client.get("/v2/health/ready").status_code == 200
        client.app.service.draining = True
        assert client.get("/v2/health/ready").status_code == 503
        assert client.post(SCORE, json={"rows": some_rows(1)}).status_code == 200
    client.loop = asyncio.new_event_loop()
    assert client.get("/v2/health/ready").status_code == 503


def test_a_full_queue_is_503_at_once_and_health_answers_meanwhile(model: Path) -> None:
    settings = Settings(limits=Limits(requests=3), timeout=30)
    with Client(make_app(model, settings, load=Slow)) as client:
        door = client.app.service.models.first.scorer.door
        door.clear()
        one = ("POST", SCORE, {"json": {"rows": some_rows(1)}})

        async def crowd() -> list:
            tasks = [client.loop.create_task(client.send(m, u, **o)) for m, u, o in [one] * 8]
            while sum(t.done() for t in tasks) < 5:
                await asyncio.sleep(0.01)
            # What the queue had no room for is answered, and health, too, while the model is still held.
            assert (await client.send("GET", "/v2/health/ready")).status_code == 200
            assert sum(t.done() for t in tasks) == 5
            door.set()
            return list(await asyncio.gather(*tasks))

        answers = client.loop.run_until_complete(crowd())
        assert sorted(a.status_code for a in answers) == [200] * 3 + [503] * 5
        assert {a.headers["retry-after"] for a in answers if a.status_code == 503} == {"1"}
        assert client.post(SCORE, json={"rows": some_rows(1)}).status_code == 200
        text = client.get("/metrics").text
        assert "recsys_requests_refused_total 5.0" in text
        assert "recsys_requests_waiting 0.0" in text


def test_a_full_queue_does_not_even_read_the_body(model: Path) -> None:
    with Client(make_app(model, Settings(limits=Limits(requests=1)), load=Slow)) as client:
        door, read = client.app.service.models.first.scorer.door, []

        async def body():
            read.append(1)
            yield b"{}"

        async def two() -> list:
            door.clear()
            first = client.loop.create_task(client.send("POST", SCORE, json={"rows": some_rows(1)}))
            await asyncio.sleep(0.05)
            second = await client.send("POST", SCORE, content=body())
            door.set()
            return [(await first).status_code, second.status_code]

        assert client.loop.run_until_complete(two()) == [200, 503]
        assert read == []


def test_a_slow_queue_takes_nobody_until_it_moves(model: Path) -> None:
    with Client(make_app(model, Settings(limits=Limits(delay=0.05), timeout=30), load=Slow)) as client:
        door = client.app.service.models.first.scorer.door

        async def crowd() -> list[int]:
            door.clear()
            body = {"rows": some_rows(2)}
            tasks = [client.loop.create_task(client.send("POST", SCORE, json=body)) for _ in range(2)]
            await asyncio.sleep(0.02)
            tasks.append(client.loop.create_task(client.send("POST", SCORE, json=body)))  # one is in the model
            await asyncio.sleep(0.2)
            late = await client.send("POST", SCORE, json=body)
            door.set()
            return [(await t).status_code for t in tasks] + [late.status_code]

        assert client.loop.run_until_complete(crowd()) == [200, 200, 200, 503]
        assert client.post(SCORE, json={"rows": some_rows(1)}).status_code == 200


@pytest.mark.parametrize("options", [{"headers": {"Timeout-Ms": "20"}}, {"timeout": 0.02}])
def test_a_request_past_its_deadline_is_dropped_before_it_is_scored(model: Path, options: dict) -> None:
    settings = Settings(timeout=options.pop("timeout", 30.0))
    with Client(make_app(model, settings, load=Slow)) as client:
        scorer = client.app.service.models.first.scorer

        async def two() -> list:
            scorer.door.clear()
            before = {"headers": {"Timeout-Ms": "9000"}}
            first = client.loop.create_task(client.send("POST", SCORE, json={"rows": some_rows(1)}, **before))
            await asyncio.sleep(0.05)
            scorer.calls.clear()
            second = client.loop.create_task(client.send("POST", SCORE, json={"rows": some_rows(2)}, **options))
            await asyncio.sleep(0.05)
            scorer.door.set()
            return [await first, await second]

        first, second = client.loop.run_until_complete(two())
        assert (first.status_code, second.status_code) == (200, 504)
        assert second.json() == {"error": "deadline exceeded"}
        assert scorer.calls == [1]
        assert "recsys_requests_expired_total 1.0" in client.get("/metrics").text


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "soon", "3600001", "9" * 30, "٣"])
def test_a_malformed_deadline_is_400(client: Client, text: str) -> None:
    answer = client.post(SCORE, json={"rows": some_rows(1)}, headers={"Timeout-Ms": text.encode()})
    assert answer.status_code == 400
    assert "Timeout-Ms" in answer.json()["error"]


def test_a_failing_model_is_a_500_without_its_details(model: Path) -> None:
    with Client(make_app(model, load=Slow)) as client:
        answer = client.post(SCORE, json={"rows": [some_rows(1)[0] | {"topic": "explode"}]})
        assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})
        assert 'route="/v1/score",status="500"' in client.get("/metrics").text
        assert client.post(SCORE, json={"rows": some_rows(1)}).status_code == 200


def test_a_body_that_does_not_come_is_408_and_a_compressed_one_415(model: Path) -> None:
    async def stuck():
        yield b"{"
        await asyncio.sleep(30)

    with Client(make_app(model, Settings(read_timeout=0.05))) as client:
        assert client.post(SCORE, content=stuck()).status_code == 408
        assert client.post(SCORE, content=b"x", headers={"Content-Encoding": "gzip"}).status_code == 415


def test_the_access_log_has_a_line_for_every_answer(model: Path) -> None:
    lines: list = []
    with Client(make_app(model, Settings(token="secret", access_log=lines.append))) as client:
        client.post(SCORE, json={"rows": some_rows(3)}, headers={**TOKEN, "X-Request-ID": "r-1"})
        client.post(SCORE, content=b"{", headers=TOKEN)
        client.get("/nowhere%0A/at/all", headers=TOKEN)
        client.get("/metrics")
    assert [(x["route"], x["status"], x.get("rows"), x["request_id"]) for x in lines] == [
        (SCORE, 200, 3, "r-1"), (SCORE, 400, None, None), ("other", 404, None, None), ("other", 401, None, None)]
    assert lines[0]["model"] == "ranker"
    assert lines[0]["milliseconds"] > 0
    json.dumps(lines)


def test_further_routes_have_the_same_things_around_them(model: Path) -> None:
    def more(service: Service) -> list[Route]:
        async def count(request) -> object:
            body = await service.body(request)
            table = pa.Table.from_pylist(json.loads(body))
            scores = await service.score(service.models.first, table, 1.0)
            return json_response({"sum": scores["p_click"].sum()})

        return [Route("POST", "/v1/sum", count, "Sum of scores", body={"application/json": {"type": "array"}})]

    with Client(make_app(model, Settings(token="secret", max_body=10_000), more=[more])) as client:
        answer = client.post("/v1/sum", json=some_rows(5), headers=TOKEN)
        assert answer.json()["sum"] == pytest.approx(load_scorer(model).score(pa.Table.from_pylist(some_rows(5)))
                                                     ["click"].sum(), rel=1e-6)
        assert client.post("/v1/sum", json=[]).status_code == 401
        assert client.post("/v1/sum", content=b" " * 10_001, headers=TOKEN).status_code == 413
        assert "/v1/sum" in client.get("/openapi.json").json()["paths"]
        assert 'route="/v1/sum",status="200"' in client.get("/metrics", headers=TOKEN).text


def test_a_model_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        make_app(tmp_path)
