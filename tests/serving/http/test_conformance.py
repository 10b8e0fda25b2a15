"""A real server and clients that are not ours: Triton's, schemathesis, noise on the socket, versions under load."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from recsys.serving import load_scorer
from tests.serving.conftest import make_ads
from tests.serving.http.client import COLUMNS, some_rows
from tests.serving.http.test_inference import INFER, as_json
from tests.serving.http.test_server import TOKEN, server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a server of versions 1 and 2 with ranking, and its access log."""
    folder = tmp_path_factory.mktemp("served")
    for version in ("1", "2"):
        shutil.copytree(model, folder / "versions" / version)
    pq.write_table(make_ads(), folder / "ads.parquet")
    pq.write_table(pa.table({"user_id": ["u1"], "age": [30.0], "history": [["a1"]]}), folder / "users.parquet")
    (folder / "ranking.yaml").write_text(yaml.safe_dump({
        "ads": str(folder / "ads.parquet"), "users": {"parquet": str(folder / "users.parquet")},
        "log": {"folder": str(folder / "log")}}))
    with server(folder / "versions", "--ranking", str(folder / "ranking.yaml"),
                log=folder / "access.log") as (process, base):
        yield base, folder / "access.log"
        assert process.poll() is None


def no_500(log: Path) -> Counter:
    """Statuses in the access log: none is a 5xx but those that say when to come again."""
    found = Counter(json.loads(line)["status"] for line in log.read_text().splitlines())
    assert not {s for s in found if s >= 500} - {503, 504}, found
    return found


def test_tritons_client_works_as_it_is(running: tuple[str, Path], model: Path) -> None:
    client_of = pytest.importorskip("tritonclient.http")
    from tritonclient.utils import InferenceServerException

    address, rows = running[0].removeprefix("http://"), some_rows(25)
    expected = load_scorer(model).score(pa.Table.from_pylist(rows))["click"]
    client = client_of.InferenceServerClient(address)  # writes into the headers that it is given
    with pytest.raises(InferenceServerException, match="token"):
        client.get_server_metadata()
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("ranker", headers={**TOKEN})
    assert not client.is_model_ready("other", headers={**TOKEN})
    assert "binary_tensor_data" in client.get_server_metadata(headers={**TOKEN})["extensions"]
    metadata = client.get_model_metadata("ranker", headers={**TOKEN})
    assert [i["name"] for i in metadata["inputs"]] == load_scorer(model).columns

    def tensors(binary: bool) -> list:
        found = []
        for name in COLUMNS:
            values = np.array([r[name] for r in rows], np.float64 if name == "age" else object)
            found.append(client_of.InferInput(name, list(values.shape), "FP64" if name == "age" else "BYTES"))
            found[-1].set_data_from_numpy(values, binary_data=binary)
        return found

    for given in (True, False):
        for wanted in (True, False):
            outputs = [client_of.InferRequestedOutput("p_click", binary_data=wanted)]
            answer = client.infer("ranker", tensors(given), outputs=outputs, request_id="q1", headers={**TOKEN},
                                  timeout=5_000_000)
            np.testing.assert_allclose(answer.as_numpy("p_click"), expected, rtol=1e-5)
            assert answer.get_response()["id"] == "q1"
    answer = client.infer("ranker", tensors(True), model_version="2", headers={**TOKEN})  # all, binary
    np.testing.assert_allclose(answer.as_numpy("p_click"), expected, rtol=1e-5)
    pending = [client.async_infer("ranker", tensors(True), headers={**TOKEN}) for _ in range(4)]
    assert all(len(p.get_result().as_numpy("p_click")) == 25 for p in pending)

    client.load_model("ranker", headers={**TOKEN})
    states = {r["version"]: r["state"] for r in client.get_model_repository_index(headers={**TOKEN})}
    assert states == {"1": "UNAVAILABLE", "2": "READY"}
    client.unload_model("ranker", headers={**TOKEN})
    assert not client.is_server_ready()
    with pytest.raises(InferenceServerException, match="not loaded"):
        client.infer("ranker", tensors(True), headers={**TOKEN})
    client.load_model("ranker", headers={**TOKEN})
    assert client.is_server_ready()
    wrong = tensors(True)
    wrong[COLUMNS.index("age")].set_data_from_numpy(np.full(25, np.nan))
    with pytest.raises(InferenceServerException, match="column age, row 0: value not allowed"):
        client.infer("ranker", wrong, headers={**TOKEN})
    with pytest.raises(InferenceServerException, match="missing input"):
        client.infer("ranker", tensors(True)[1:], headers={**TOKEN})
    client.close()


def test_schemathesis_finds_no_5xx_and_no_undocumented_answer(running: tuple[str, Path], tmp_path: Path) -> None:
    base, log = running
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    # 503 (unloaded) and 504 (a deadline of a millisecond) are answers that the page describes.
    allowed = '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "4xx", "503", "504"]\n'
    names = '[parameters]\n"path.model" = "ranker"\n"path.version" = "2"\n'
    # Any names, then those that lead further; unloading would only close the doors again.
    for config, more in ((allowed, ()), (allowed + names, ("--exclude-path-regex", "unload"))):
        (tmp_path / "schemathesis.toml").write_text(config)
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", base + "/openapi.json", "-H",
             f"Authorization: {TOKEN['Authorization']}", "--phases", "coverage,fuzzing", "-n", "8",
             "--generation-deterministic", "--checks", checks, *more],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-4000:]
        cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert cases is not None
        assert cases[1] == cases[2]
        assert int(cases[1]) > 300
    assert no_500(log)[200] > 0


def test_ten_thousand_random_bodies_and_noise_get_clean_refusals(running: tuple[str, Path]) -> None:
    base, log = running
    host, port = base.removeprefix("http://").split(":")
    rng, found = np.random.default_rng(0), Counter()
    good = json.dumps(as_json(some_rows(2))).encode()
    connection = http.client.HTTPConnection(host, int(port))
    for i in range(10_000):
        body = bytearray(rng.bytes(int(rng.integers(0, 200)))) if i % 2 else bytearray(good)
        for at in rng.integers(0, max(len(body), 1), 2) if i % 2 == 0 else ():
            body[at] = rng.integers(0, 256)
        headers = dict(TOKEN)
        if i % 3 == 0:
            headers["Inference-Header-Content-Length"] = str(int(rng.integers(0, len(body) + 2)))
        connection.request("POST", (INFER, "/v1/score", "/v1/rank", "/v1/feedback")[i % 8 // 2], bytes(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        found[answer.status] += 1
        assert answer.status in (200, 400), (answer.status, text, bytes(body))
        assert answer.status == 200 or list(json.loads(text)) == ["error"]
    assert found[400] > 8000
    for _ in range(200):  # and bytes that are no HTTP
        with socket.create_connection((host, int(port))) as s:
            s.sendall(rng.bytes(100) + b"\r\n\r\n")
            s.settimeout(5)
            assert s.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    no_500(log)


def test_twenty_reloads_under_load_fail_no_request(running: tuple[str, Path]) -> None:
    base, _ = running
    host, port = base.removeprefix("http://").split(":")
    body, ending, found = json.dumps(as_json(some_rows(50))).encode(), threading.Event(), Counter()

    def client() -> None:
        connection = http.client.HTTPConnection(host, int(port))
        while not ending.is_set():
            connection.request("POST", INFER, body, {**TOKEN, "Timeout-Ms": "30000"})
            answer = connection.getresponse()
            text = answer.read()
            found[answer.status, json.loads(text).get("model_version")] += 1

    clients = [threading.Thread(target=client) for _ in range(4)]
    for c in clients:
        c.start()
    admin = http.client.HTTPConnection(host, int(port))
    for i in range(20):
        text = json.dumps({"parameters": {"version": str(1 + i % 2)}})
        admin.request("POST", "/v2/repository/models/ranker/load", text, TOKEN)
        answer = admin.getresponse()
        assert (answer.status, json.loads(answer.read())["version"]) == (200, str(1 + i % 2))
        before = sum(found.values())
        while sum(found.values()) < before + 5:
            time.sleep(0.01)
    ending.set()
    for c in clients:
        c.join()
    assert {status for status, _ in found} == {200}, found
    assert {version for _, version in found} == {"1", "2"}
