"""Ray's launch files as they stand, submitted with Ray's own command to a real cluster on this machine."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.config import EncoderConfig
from recsys.content import embed_texts, load_vectors
from recsys.serving import read_scores, score_batch
from tests.content.conftest import tiny_llama  # noqa: F401  (a fixture)
from tests.processes import wait_until
from tests.ranks import free_port
from tests.serving.conftest import make_ads, make_impressions, model  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A head node with the job server; the environment in which ``ray job`` finds it."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[default]')")
    with ExitStack() as held:
        home = Path(held.enter_context(tempfile.TemporaryDirectory(
            prefix="ray", ignore_cleanup_errors=True)))  # short: sockets' names have 107 bytes
        ports = [free_port() for _ in range(5)]
        environment = {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                       "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # as deploy/README.md says
        environment.pop("RAY_ADDRESS", None)
        names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
                 "metrics-export-port")
        log = held.enter_context((home / "head.log").open("w"))
        head = subprocess.Popen(
            ["ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
             "--object-store-memory=100000000", "--node-ip-address=127.0.0.1", f"--temp-dir={home / 't'}",
             *(f"--{name}={port}" for name, port in zip(names, ports, strict=True))],
            env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        held.callback(_end, head)
        jobs = f"http://127.0.0.1:{ports[1]}"

        def serves() -> bool:
            assert head.poll() is None, (home / "head.log").read_text()
            try:
                return httpx.get(f"{jobs}/api/jobs/", timeout=5).status_code in (200, 401)  # it asks for the token
            except httpx.TransportError:
                return False

        wait_until(serves, "the job server")
        yield {**environment, "RAY_ADDRESS": jobs}


def _end(head: subprocess.Popen) -> None:
    """``--block`` takes its processes along on SIGTERM; whatever is left of its session goes, too."""
    head.terminate()
    try:
        head.wait(60)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    with suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)


def _submit(cluster: dict[str, str], file: str, *arguments: object) -> str:
    done = subprocess.run(["bash", ROOT / "deploy" / "ray" / file, *map(str, arguments)], cwd=ROOT, env=cluster,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=400, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_the_scoring_job_gives_the_scores_of_one_process(cluster: dict[str, str], model: Path,  # noqa: F811
                                                         tmp_path: Path) -> None:
    for part in range(2):
        pq.write_table(make_impressions(500, part), tmp_path / f"in-{part}.parquet")
    score_batch(model, tmp_path / "in-*.parquet", tmp_path / "here")
    said = _submit(cluster, "score.sh", model, tmp_path / "in-*.parquet", tmp_path / "there")
    assert "succeeded" in said
    here, there = (read_scores(tmp_path / at).drop_columns("scored_at") for at in ("here", "there"))
    assert there.num_rows == 1000
    assert there.equals(here)


@pytest.mark.slow
def test_the_embedding_job_gives_the_vectors_of_one_process(cluster: dict[str, str], tiny_llama: Path,  # noqa: F811
                                                            tmp_path: Path) -> None:
    ads = make_ads()
    (tmp_path / "data").mkdir()
    pq.write_table(ads, tmp_path / "data" / "ads.parquet")
    said = _submit(cluster, "embed.sh", tmp_path / "data", tiny_llama)
    assert "succeeded" in said
    embed_texts(ads, EncoderConfig(kind="llama", model=str(tiny_llama)), tmp_path / "here")
    here, there = load_vectors(tmp_path / "here"), load_vectors(tmp_path / "data" / "content" / tiny_llama.name)
    assert len(there.hashes) == ads.num_rows
    at = [here.rows[key] for key in there.hashes]
    np.testing.assert_array_equal(there.matrix, here.matrix[at])
