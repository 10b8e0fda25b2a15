from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys.errors import InputError, RecsysError
from recsys.serving import load_scorer, read_scores, score_batch
from recsys.serving.processes import Processes
from recsys.serving.workers import default_workers, likely_device, worker_processes
from tests.processes import children_of, wait_until
from tests.serving.conftest import make_impressions

ROOT = Path(__file__).parents[2]


def nothing() -> None:
    """Prepares nothing."""


def missing() -> None:
    raise InputError("no such file", file="model.json")


def sleep_for_ever() -> None:
    time.sleep(3600)


def touch(path: Path) -> None:
    path.write_text(str(os.getpid()))


def refuse(message: str) -> None:
    raise InputError(message, file="in.parquet", row=3)


def fail() -> None:
    [].pop()


def write_and_take_back(path: Path) -> None:
    try:
        path.write_text("half")
        time.sleep(3600)
    finally:
        path.unlink()


def spawned() -> set[int]:
    return children_of(os.getpid(), "spawn_main")


@pytest.mark.slow
def test_work_is_done_elsewhere_though_preparing_failed(tmp_path: Path) -> None:
    with Processes(missing, touch) as processes:
        processes.start(2)
        wait_until(lambda: len(spawned()) == 2, "two processes are there")
        processes.start(2)
        assert len(spawned()) == 2
        for name in ("a", "b"):
            processes.give(tmp_path / name)
        assert list(processes.results()) == [True, True]
    found = {int((tmp_path / name).read_text()) for name in ("a", "b")}
    assert len(found) == 2
    assert os.getpid() not in found
    assert not spawned()


@pytest.mark.slow
def test_an_error_is_raised_where_results_are_read() -> None:
    with Processes(nothing, refuse) as processes:
        processes.start(1)
        processes.give("damaged Parquet file")
        with pytest.raises(InputError, match=r"in.parquet, row 3: damaged Parquet file"):
            list(processes.results())
    with Processes(nothing, fail) as processes:
        processes.start(1)
        processes.give()
        with pytest.raises(IndexError) as caught:
            list(processes.results())
        assert "in fail" in caught.value.__notes__[0]  # where it happened
    assert not spawned()


@pytest.mark.slow
def test_a_killed_one_is_told_apart() -> None:
    with Processes(nothing, sleep_for_ever) as processes:
        processes.start(2)
        processes.give()
        wait_until(lambda: len(spawned()) == 2, "two processes are there")
        for pid in spawned():
            os.kill(pid, 9)
        processes.give()
        assert list(processes.results()) == [False, False]


@pytest.mark.slow
def test_those_that_prepare_end_at_once_and_those_that_work_take_back_what_they_write(tmp_path: Path) -> None:
    with Processes(sleep_for_ever, touch) as processes:
        processes.start(1)
        began = time.monotonic()
    assert time.monotonic() - began < 600  # of the hour that preparing takes
    assert not spawned()
    with Processes(nothing, write_and_take_back) as processes:
        processes.start(1)
        processes.give(tmp_path / "part")
        wait_until((tmp_path / "part").exists, "the part is begun")
    assert not spawned()
    assert not (tmp_path / "part").exists()


@pytest.mark.slow
def test_a_large_job_that_turns_out_wrong_is_one_line_and_leaves_neither_processes_nor_files(
        model: Path, tmp_path: Path) -> None:
    table = make_impressions(600_000, 3).drop_columns(["candidates", "history"])  # enough for two processes
    pq.write_table(table, tmp_path / "in.parquet")
    settings = ["--model", model, "--input", tmp_path / "in.parquet", "--output", tmp_path / "out", "--workers", 3]
    job = subprocess.Popen([sys.executable, str(ROOT / "serve.py"), "batch", *map(str, settings)],
                           stderr=subprocess.PIPE, text=True)
    seen: set[int] = set()
    while job.poll() is None:
        seen |= children_of(job.pid, "spawn_main")
        time.sleep(0.005)
    assert job.stderr is not None
    stderr = job.stderr.read()
    assert job.returncode == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert "history: missing column" in stderr
    assert len(seen) == 2  # they had been started
    assert not any(Path(f"/proc/{pid}").exists() for pid in seen)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_worker_that_loads_another_model_than_the_job_s_scores_nothing(model: Path, impressions: Path,
                                                                        tmp_path: Path) -> None:
    from recsys.serving.inputs import find_inputs, plan_shards, read_inputs
    from recsys.serving.rows import Pairs
    from recsys.serving.shards import Task, probe

    scorer, files = load_scorer(model), read_inputs(find_inputs(impressions))
    score_batch(model, impressions, tmp_path / "whole", scorer=scorer)
    pairs = Pairs(scorer.columns, (), 64, None)
    task = Task(str(model), "an older one's", None, tuple(files), tuple(plan_shards(files, 100)), str(tmp_path / "out"),
                "key", read_scores(tmp_path / "whole")["scored_at"][0].as_py(), probe(scorer, pairs, files), 64, (),
                "cpu")
    with worker_processes(str(model), "cpu") as processes:
        processes.start(1)
        processes.give(task, 0.0)
        with pytest.raises(RecsysError, match="was replaced while the job started"):
            list(processes.results())
    assert not (tmp_path / "out").exists()


def test_small_jobs_and_gpus_have_one_worker(impressions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys.serving.inputs import Shard

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    large = [Shard(n, 0, n << 20, (n + 1) << 20) for n in range(5)]
    assert default_workers(large, "cpu") == 5
    assert default_workers(large, "cuda:0") == 1
    assert default_workers([Shard(0, 0, 0, 1000)] * 3, "cpu") == 1
    monkeypatch.setattr("glob.glob", lambda _: [])
    assert [likely_device(d) for d in ("auto", "cpu", "cuda")] == ["cpu", "cpu", "cuda"]
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/nvidia0"] if "nvidia" in pattern else [])
    assert default_workers(large, likely_device("auto")) == 1
