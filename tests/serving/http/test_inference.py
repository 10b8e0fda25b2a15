"""The Open Inference Protocol's routes, the repository's, and the API page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import ModelConfig, TrainingConfig
from recsys.datasets.info import DatasetInfo, Label, save_dataset_info
from recsys.serving import load_scorer, make_app
from recsys.serving.http import Settings
from recsys.serving.http.tensors import HEADER
from recsys.serving.http.values import NUMPY
from tests.serving.http.client import COLUMNS, Client, some_rows

MODEL = "/v2/models/ranker"
INFER = MODEL + "/infer"


def as_json(rows: list[dict], **more) -> dict:
    """The rows as tensors in JSON."""
    def tensor(name: str) -> dict:
        values = [r[name] for r in rows]
        if name == "history":
            return {"name": name, "datatype": "BYTES", "shape": [len(rows), 2], "data": values}
        return {"name": name, "datatype": "FP64" if name == "age" else "BYTES", "shape": [len(rows)], "data": values}

    return {"inputs": [tensor(n) for n in COLUMNS], **more}


@pytest.fixture(scope="module")
def versions(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 2 and 10 of a model, which differ in their names."""
    folder = tmp_path_factory.mktemp("versions")
    for version in ("2", "10"):
        shutil.copytree(model, folder / version)
        file = folder / version / "model.json"
        file.write_text(file.read_text().replace('"model_id": "', f'"model_id": "v{version}-'))
    (folder / "not a version").mkdir()
    return folder


@pytest.fixture(scope="module")
def client(versions: Path) -> Iterator[Client]:
    with Client(make_app(versions, Settings(max_rows=100))) as client:
        yield client


def test_scores_are_the_models_in_every_form(model: Path, client: Client) -> None:
    rows = some_rows(20)
    expected = load_scorer(model).score(pa.Table.from_pylist(rows))["click"]
    answer = client.post(INFER, json=as_json(rows, id="abc")).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("ranker", "10", "abc")
    assert answer["parameters"]["model_id"].startswith("v10-")
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected, rtol=1e-6)
    binary = client.post(MODEL + "/versions/10/infer", json=as_json(rows, parameters={"binary_data_output": True}))
    head = json.loads(binary.content[: int(binary.headers[HEADER])])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 80}
    np.testing.assert_allclose(np.frombuffer(binary.content[-80:], "<f4"), expected, rtol=1e-6)


def test_requests_that_wait_together_get_their_own_scores(model: Path, client: Client) -> None:
    scorer, sets = load_scorer(model), [some_rows(n, seed=n) for n in (1, 3, 40, 7)]
    bad = [*some_rows(2), some_rows(1)[0] | {"topic": None}]
    answers = client.all(*(("POST", INFER, {"json": as_json(s)}) for s in sets),
                         ("POST", INFER, {"json": as_json(bad)}), ("POST", INFER, {"json": {"inputs": []}}))
    assert [a.status_code for a in answers] == [200] * 5 + [400]
    for rows, answer in zip([*sets, bad], answers, strict=False):
        np.testing.assert_allclose(answer.json()["outputs"][0]["data"],
                                   scorer.score(pa.Table.from_pylist(rows))["click"], rtol=1e-6)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """A model of numbers and integer ids only, and rows for it."""
    from recsys.training.trainer import train_model

    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("numbers")
    columns = {"age": pa.array(rng.normal(40, 9, 600), pa.float32()),
               "price": pa.array(rng.normal(1, 1, 600), pa.float32()), "shop": rng.integers(0, 9, 600),
               "city": rng.integers(0, 50, 600)}
    table = pa.table({**columns, "request_id": [f"r{i}" for i in range(600)],
                      "click": pa.array((rng.random(600) < 0.3 + 0.05 * (np.array(columns["shop"]) > 4)).astype("i1"))})
    (folder / "split").mkdir()
    for part in ("train", "test"):
        pq.write_table(table, folder / "split" / f"{part}.parquet")
    save_dataset_info(DatasetInfo(name="numbers", dense=("age", "price"), sparse=("shop", "city"),
                                  label={"click": Label(kind="binary", column="click")}), folder / "split")
    train_model(folder / "split", ModelConfig(embedding_dim=4, bottom=(4,), top=(4,)),
                TrainingConfig(epochs=1, batch_size=100), folder / "model", name="numbers")
    return folder / "model", table.slice(0, 30)


def numeric(table: pa.Table, kinds: dict[str, str], **parameters: str) -> tuple[str, str, dict]:
    heads, tail = [], b""
    for name, kind in kinds.items():
        data = table[name].to_numpy().astype(NUMPY[kind]).tobytes()
        own = {"missing": parameters[name]} if name in parameters else {}
        heads.append({"name": name, "datatype": kind, "shape": [table.num_rows],
                      "parameters": {"binary_data_size": len(data), **own}})
        tail += data
    text = json.dumps({"inputs": heads}).encode()
    return "POST", INFER, {"content": text + tail, "headers": {HEADER: str(len(text))}}


def test_plain_numbers_skip_tables_and_score_the_same(numbers: tuple[Path, pa.Table], monkeypatch) -> None:
    folder, table = numbers
    scorer, kinds = load_scorer(folder), {"age": "FP32", "price": "FP32", "shop": "INT32", "city": "INT64"}
    with Client(make_app(folder)) as client:
        own, seen = client.app.service.models.first.scorer, []
        monkeypatch.setattr(own, "score_block", lambda d, i: seen.append(d.shape) or type(own).score_block(own, d, i))
        holes = table.set_column(0, "age", pa.array([np.nan if i % 3 else 40.0 for i in range(30)], pa.float32()))
        cases = [(table, kinds, {}, True), (table, {**kinds, "age": "FP64"}, {}, False),
                 (holes, kinds, {"age": "NaN"}, False), (holes, kinds, {"age": "NaN", "price": "NaN"}, True),
                 (table, kinds, {"shop": -1}, False)]
        for rows, types, missing, block in cases:
            seen.clear()
            answer = client.all(numeric(rows, types, **missing))[0]
            nulls = rows.set_column(0, "age", pa.array(rows["age"].to_numpy(), from_pandas=True))
            expected = scorer.score(nulls)["click"]
            np.testing.assert_allclose(answer.json()["outputs"][0]["data"], expected, rtol=1e-5)
            assert bool(seen) == block, (types, missing)
        several = client.all(*(numeric(table.slice(at, n), kinds) for at, n in ((0, 1), (1, 20), (21, 9))))
        got = np.concatenate([a.json()["outputs"][0]["data"] for a in several])
        np.testing.assert_allclose(got, scorer.score(table)["click"], rtol=1e-5)
        assert client.all(numeric(holes, kinds))[0].status_code == 400


def test_metadata(client: Client) -> None:
    server = client.get("/v2").json()
    assert server["models"] == ["ranker"]
    assert {"binary_tensor_data", "model_repository"} <= set(server["extensions"])
    metadata = client.get(MODEL).json()
    assert metadata["versions"] == ["2", "10"]
    assert {i["name"]: (i["datatype"], i["shape"]) for i in metadata["inputs"]} == {
        "age": ("FP32", [-1]), "user_id": ("BYTES", [-1]), "ad_id": ("BYTES", [-1]), "advertiser_id": ("BYTES", [-1]),
        "topic": ("BYTES", [-1]), "history": ("BYTES", [-1, -1])}
    assert metadata["outputs"] == [{"name": "p_click", "datatype": "FP32", "shape": [-1]}]
    assert client.get(MODEL + "/ready").json() == {"name": "ranker", "ready": True}
    assert client.get(MODEL + "/versions/10/ready").status_code == 200


@pytest.mark.parametrize("name", ["other", "%2e%2e", "..%2franker", "%2e%2e%2franker", "ranker%00", "ranker/versions/2",
                                  "ranker/versions/..%2f10", "ranker/versions/010", "%2fetc%2fpasswd", "ranker%0a",
                                  "%ff%fe", "r" * 5000])
def test_other_names_and_versions_are_404(client: Client, name: str) -> None:
    for method, path in (("GET", f"/v2/models/{name}"), ("GET", f"/v2/models/{name}/ready"),
                         ("POST", f"/v2/models/{name}/infer"), ("POST", f"/v2/repository/models/{name}/load"),
                         ("POST", f"/v2/repository/models/{name}/unload")):
        answer = client.all((method, path, {}))[0]
        assert (answer.status_code, list(answer.json())) == (404, ["error"]), path
        assert "passwd" not in answer.text


def test_versions_change_under_the_clients_and_back(client: Client) -> None:
    load, body = "/v2/repository/models/ranker/load", as_json(some_rows(2))
    states = client.post("/v2/repository/index").json()
    assert [(r["version"], r["state"]) for r in states] == [("2", "UNAVAILABLE"), ("10", "READY")]
    assert client.post(load, json={"parameters": {"version": "2"}}).json() == {"name": "ranker", "version": "2"}
    assert client.post(INFER, json=body).json()["model_version"] == "2"
    assert client.post(MODEL + "/versions/10/infer", json=body).status_code == 404
    assert [r["version"] for r in client.post("/v2/repository/index", json={"ready": True}).json()] == ["2"]
    assert client.post(load, json={"parameters": {"version": "7"}}).status_code == 404
    assert client.post(load, json={"parameters": {"version": "../2"}}).status_code == 404
    assert client.post(load, json={"parameters": {"version": 10}}).status_code == 400
    assert client.post(load, content=b"{").status_code == 400
    assert client.post(load, content=b"[]").status_code == 400
    assert client.get(MODEL).json()["model_id"].startswith("v2-")
    assert client.post("/v2/repository/models/ranker/unload").status_code == 200
    assert client.post(INFER, json=body).status_code == 404
    assert client.get("/v2/health/ready").status_code == 503
    assert client.post(load).json() == {"name": "ranker", "version": "10"}
    assert client.post(INFER, json=body).status_code == 200


def test_a_damaged_version_leaves_the_served_one_in_place(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "1")
    with Client(make_app({"a": tmp_path})) as client:
        shutil.copytree(model, tmp_path / "2")
        (tmp_path / "2" / "model.safetensors").write_bytes(b"damaged")
        answer = client.post("/v2/repository/models/a/load")
        assert answer.status_code == 400
        assert str(tmp_path) not in answer.text
        assert client.post("/v2/models/a/infer", json=as_json(some_rows(1))).json()["model_version"] == "1"
        for text in ("[]", "null", '{"format": 2}', "{"):
            (tmp_path / "2" / "model.json").write_text(text)
            assert client.post("/v2/repository/models/a/load").status_code == 400
        shutil.copytree(model, tmp_path / "3")
        reasons = [r["reason"] for r in client.post("/v2/repository/index").json()]
        assert reasons == ["", "could not be loaded", "not in use"]
        assert 'recsys_model_loads_total{model="a",outcome="failed"} 5.0' in client.get("/metrics").text


def test_numbers_at_the_edge_never_make_a_500(client: Client) -> None:
    for value, status in ((1e308, 400), (-3.5e38, 400), (3.4e38, 200), (5e-324, 200)):
        rows = [some_rows(1)[0] | {"age": value}]
        answers = [client.post(INFER, json=as_json(rows)), client.post("/v1/score", json={"rows": rows})]
        assert [a.status_code for a in answers] == [status] * 2
        for answer in answers if status == 400 else ():  # the input, the row, the value, and what was expected
            assert all(part in answer.json()["error"] for part in ("age", "row 0", str(value), "float32"))
    text = json.dumps(as_json([some_rows(1)[0] | {"age": float("nan")}]))
    assert client.post(INFER, content=text).status_code == 400
    body = as_json(some_rows(1))
    for kind, data, status in (("FP32", np.array([np.nan], "<f4"), 400), ("FP64", np.array([np.inf]), 400),
                               ("FP64", np.array([1e308]), 400),
                               ("FP32", np.array([-np.inf], "<f4"), 400),
                               ("UINT64", np.array([2**64 - 1], "<u8"), 400)):
        body["inputs"][4] = {"name": "age", "datatype": kind, "shape": [1],
                             "parameters": {"binary_data_size": len(data.tobytes())}}
        text = json.dumps(body).encode()
        answer = client.post(INFER, content=text + data.tobytes(), headers={HEADER: str(len(text))})
        assert answer.status_code == status, (kind, answer.text)


def test_changed_bodies_never_make_a_500(client: Client) -> None:
    rng = np.random.default_rng(0)
    head = as_json(some_rows(2))
    head["inputs"][4] = {"name": "age", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    text = json.dumps(head).encode()
    good, requests = text + np.ones(2, "<f4").tobytes(), []
    for i in range(400):  # a good body with a few bytes changed goes deeper than noise
        body = bytearray(good)
        for at in rng.integers(0, len(body), 1 + i % 3):
            body[at] = rng.integers(0, 256)
        length = len(text) + (int(rng.integers(-3, 4)) if i % 10 == 0 else 0)
        requests.append(("POST", INFER, {"content": bytes(body), "headers": {HEADER: str(length)}}))
    found = [a.status_code for start in range(0, 400, 40) for a in client.all(*requests[start : start + 40])]
    assert set(found) == {200, 400}


def test_the_api_page_describes_every_route_and_loads_nothing(client: Client) -> None:
    document = client.get("/openapi.json").json()
    assert {m for p in document["paths"].values() for m in p} == {"get", "post"}
    assert document["paths"]["/v2/models/{model}/infer"]["post"]["responses"].keys() == {
        "200", "400", "403", "404", "408", "413", "415", "503", "504"}
    page = client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert all(path in page.text for path in document["paths"])
    assert not re.search(r"(src|href)=.?(https?:)?//", page.text)
