"""Real processes: they drain, share a port, and are replaced."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from recsys.errors import InputError
from recsys.serving.http import ServeOptions, Settings, serve
from recsys.serving.http.server import _allow_files
from tests.processes import children_of, wait_until
from tests.serving.http.client import some_rows
from tests.serving.http.test_inference import INFER, as_json

ROOT = Path(__file__).parents[3]
SCORE, TOKEN = "/v1/score", {"Authorization": "Bearer secret"}


@contextmanager
def server(model: Path, *options: str, log: Path | None = None) -> Iterator[tuple[subprocess.Popen, str]]:
    """``serve.py http`` with its address, from when it is ready."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with (log or Path(os.devnull)).open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "serve.py"), "http", "--model", str(model), "--port", str(port), *options],
            env={**os.environ, "RECSYS_TOKEN": "secret", "OMP_NUM_THREADS": "1"}, stdout=out, stderr=subprocess.PIPE,
            text=True)
    base = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx.get(base + "/v2/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.1)
        yield process, base
    finally:
        process.terminate()
        try:
            process.wait(40)
        finally:
            process.kill()
            process.wait()


def test_an_open_address_needs_a_token_and_a_port_must_be_free(model: Path) -> None:
    with pytest.raises(InputError, match="needs a token"):
        serve(ServeOptions({"ranker": model}, host="0.0.0.0"))
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another service's workers do
        s.bind(("127.0.0.1", 0))
        s.listen()
        for workers in (1, 2):
            with pytest.raises(InputError, match="cannot listen"):
                serve(ServeOptions({"ranker": model}, port=s.getsockname()[1], workers=workers))


def test_connections_need_open_files(model: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))  # enough for this process
        _allow_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 300
        if hard != resource.RLIM_INFINITY:
            with pytest.raises(InputError, match="--connections: more connections than this process may open files"):
                serve(ServeOptions({"ranker": model}, port=0, settings=Settings(connections=hard)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_real_server_drains_on_sigterm(model: Path, tmp_path: Path) -> None:
    with server(model, log=tmp_path / "access.log") as (process, base):
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
    lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert [(x["route"], x["status"]) for x in lines if x["method"] == "POST"] == [("other", 401), (SCORE, 200)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_load_balancer_has_time_to_notice(model: Path, workers: str) -> None:
    with server(model, "--drain", "6", "--workers", workers) as (process, base), httpx.Client(base_url=base) as client:
        process.send_signal(signal.SIGTERM)
        while client.get("/v2/health/ready").status_code == 200:
            time.sleep(0.02)
        until = time.monotonic() + 1.0  # a sixth of the time it was given
        while time.monotonic() < until:
            assert httpx.post(base + SCORE, json={"rows": some_rows(2)}, headers=TOKEN).status_code == 200  # still
        assert process.wait(30) == 0


def workers_of(process: subprocess.Popen) -> set[int]:
    """Children that have torch in memory: the workers, not multiprocessing's helper."""
    return children_of(process.pid, "spawn_main")


@pytest.mark.slow
def test_workers_share_a_port_agree_on_the_version_and_are_replaced(model: Path, tmp_path: Path) -> None:
    for version in ("1", "2"):
        shutil.copytree(model, tmp_path / "versions" / version)

    def answers(base: str, n: int) -> list[httpx.Response]:
        """Each on a connection of its own, so that all workers get some."""
        return [httpx.post(base + INFER, json=as_json(some_rows(3)), headers=TOKEN, timeout=30) for _ in range(n)]

    def have_answered() -> set[int]:
        """The workers that are in the log."""
        lines = [json.loads(x) for x in (tmp_path / "log").read_text().splitlines()]
        return {x["pid"] for x in lines if x["status"] == 200}

    with server(tmp_path / "versions", "--workers", "2", log=tmp_path / "log") as (process, base):
        # Both, before one is killed: a port that nobody listens on refuses.
        wait_until(lambda: bool(answers(base, 10)) and len(have_answered()) == 2, "two workers answer")
        load = base + "/v2/repository/models/ranker/load"
        answer = httpx.post(load, json={"parameters": {"version": "1"}}, headers=TOKEN, timeout=60)
        assert answer.status_code == 200
        assert {a.json()["model_version"] for a in answers(base, 20)} == {"1"}
        victim = min(workers_of(process))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(workers_of(process) - {victim}) == 2, "another in its place")
        until = time.monotonic() + 60
        while len(have_answered() - {victim}) < 2 and time.monotonic() < until:
            found = answers(base, 10)
            assert {a.status_code for a in found} == {200}
            assert {a.json()["model_version"] for a in found} == {"1"}  # the new one starts with what is served
        assert have_answered() - {victim} == workers_of(process)
        # All of the service's answers, whichever worker is asked, those of the dead one, too.
        page = httpx.get(base + "/metrics", headers=TOKEN).text
        start = 'recsys_requests_total{route="/v2/models/{model}/infer",status="200"}'
        count = next(x for x in page.splitlines() if x.startswith(start))
        lines = [json.loads(x) for x in (tmp_path / "log").read_text().splitlines()]
        assert float(count.split()[-1]) == sum(x["route"] == "/v2/models/{model}/infer" for x in lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0


def tables_of(pid: int) -> list[dict[str, int]]:
    """KiB of each mapping of a model's file in that process: Rss, Private_Dirty, and what else Linux counts."""
    found: list[dict[str, int]] = []
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):  # the head of the next mapping
            inside = line.endswith("model.safetensors")
            if inside:
                found.append({})
        elif inside and values[-1] == "kB":
            found[-1][name[:-1]] = int(values[0])
    return found


@pytest.mark.slow
def test_workers_have_a_bundles_tables_in_memory_once(tmp_path: Path) -> None:
    from recsys.config import ModelConfig, TrainingConfig
    from recsys.serving.export import Bounds, export_bundle
    from recsys.training.trainer import train_model
    from tests.training.toy import toy_split, toy_table

    split = toy_split(tmp_path / "split")
    pq.write_table(toy_table(600, 7), split / "valid.parquet")
    train_model(split, ModelConfig(embedding_dim=4, bottom=(8,), top=(16,)), TrainingConfig(epochs=1, batch_size=128),
                tmp_path / "model")
    export_bundle(tmp_path / "model", tmp_path / "bundle", data=split, program=False,
                  bounds=Bounds(max_dp=0.2, mean_dp=0.1, auc=0.1))
    with server(tmp_path / "bundle", "--workers", "2") as (process, base):
        wait_until(lambda: len(workers_of(process)) == 2, "two workers")
        httpx.post(base + "/v2/repository/models/ranker/load", headers=TOKEN, timeout=60).raise_for_status()
        # One of them answered; the other may still be starting, and has then loaded what is wanted before it answers.
        # A mapping is not yet a page: those come as the tables are read.
        wait_until(lambda: all(t["Rss"] for pid in workers_of(process) for t in tables_of(pid) or [{"Rss": 0}]),
                   "both have mapped the file and read from it")
        for pid in workers_of(process):
            for table in tables_of(pid):
                assert table["Private_Dirty"] == 0


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_service_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "serve.py"), "http", "--model", str(tmp_path), "--port", "18765",
                           "--workers", "2"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no such file" in done.stderr


def test_the_commands_import_nothing_heavy() -> None:
    code = "import sys, recsys.serving.commands; print({'torch', 'pyarrow', 'numpy', 'starlette'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
