from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.errors import InputError, RecsysError
from recsys.serving import load_scorer, places, read_scores, score_batch, workers
from recsys.serving.commands import main
from recsys.serving.inputs import find_inputs, read_inputs
from recsys.serving.job import new_job
from recsys.serving.places import place
from recsys.serving.rows import Pairs
from recsys.serving.shards import Task, Work, probe, score_shard
from recsys.stage import sha256_file
from recsys.storage import filesystem, join
from tests import stores
from tests.processes import children_of, command_line, live_glob, wait_until
from tests.ranks import free_port
from tests.serving.conftest import make_impressions

ROOT = Path(__file__).parents[2]


def same(a: str | Path, b: str | Path) -> bool:
    return bool(read_scores(a).drop_columns("scored_at").equals(read_scores(b).drop_columns("scored_at")))


def row_checksums(folder: str | Path) -> list[int]:
    rows = read_scores(folder).drop_columns("scored_at").to_pylist()
    return sorted(hash(tuple(r.values())) for r in rows)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "serve.py"), "batch", *map(str, arguments)]


def parts(folder: str | Path) -> list[str]:
    return [n for n in place(folder).names() if n.startswith("part-")]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """20,000 impressions; some are rejected."""
    table = make_impressions(20_000, 7)
    bid = table["bid"].to_numpy().copy()
    bid[::997] = -1.0
    pq.write_table(table.set_column(table.column_names.index("bid"), "bid", [bid]), tmp_path / "in.parquet",
                   row_group_size=1500)
    return tmp_path / "in.parquet"


@pytest.fixture
def bucket() -> Iterator[str]:
    with stores.s3() as (address, _):
        yield address


def test_an_object_store_holds_input_and_output(model: Path, impressions: Path, tmp_path: Path, bucket: str,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    score_batch(model, impressions, tmp_path / "whole", shard_rows=300)
    table, system = pq.read_table(impressions), filesystem(bucket)[0]
    for i, part in enumerate((table.slice(0, 600), table.slice(600))):
        pq.write_table(part, f"runs/logs/day={i}/x.parquet", filesystem=system)
    out = str(join(bucket, "scores"))
    first = score_batch(model, f"{bucket}/logs/**/*.parquet", out, shard_rows=300)
    assert first["rows"]["scored"] == 1000
    assert same(out, tmp_path / "whole")
    assert score_batch(model, f"{bucket}/logs/*/x.parquet", out, shard_rows=300)["cached"]
    assert not [n for n in place(out).names() if ".claim-" in n]
    place(out).put(first["facts"]["parts"][1]["name"], b"spoilt")
    with pytest.raises(InputError, match="damaged part"):
        read_scores(out)
    mended = score_batch(model, f"{bucket}/logs/*/x.parquet", out, shard_rows=300)
    assert [p["sha256"] for p in mended["facts"]["parts"]] == [p["sha256"] for p in first["facts"]["parts"]]
    with pytest.raises(SystemExit) as done:
        main(["batch", "--model", str(model), "--input", f"{bucket}/logs/*/x.parquet", "--output", out,
              "--shard-rows", "300"])
    assert done.value.code == 0
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(InputError, match="no such file"):
        score_batch(model, f"{bucket}/none-*.parquet", out)


def test_claims_of_a_store_hold_off_others_and_those_of_the_dead_do_not(bucket: str) -> None:
    import socket

    store = place(join(bucket, "claims"))
    with store.claim("a") as mine:
        assert mine
        with store.claim("a") as other:
            assert not other
        with store.claim("b") as free:
            assert free
    store.put(f"_shards/a.claim-{places._process_table()}-4194305-abc", b"{}")  # beyond the largest process id
    with store.claim("a") as taken_over:
        assert taken_over
    store.put("_shards/a.claim-elsewhere-1-abc", b"{}")
    with store.claim("a") as held:
        assert not held
    store.put(f"_shards/b.claim-{socket.gethostname()}-00000000-4194305-abc", b"{}")  # a container of the host's name
    with store.claim("b") as held:
        assert not held


def test_a_store_refuses_a_second_job_while_workers_of_the_first_are_there(bucket: str) -> None:
    store = place(join(bucket, "two"))
    with store.start("one", new_job("one")) as first:
        with store.start("one", new_job("one")) as again:
            assert again == first
        with pytest.raises(RecsysError, match="another scoring job"), store.start("two", new_job("two")):
            pass
        assert json.loads(store.read("job.json") or b"") == first
    with store.start("two", new_job("two")) as second:
        assert second["key"] == "two"


def test_calls_of_one_job_that_start_together_agree_on_it(tmp_path: Path, bucket: str) -> None:
    for folder in (tmp_path / "out", join(bucket, "out")):
        found: list[str] = []
        all_in = threading.Barrier(6, timeout=20)

        def call(where: str | Path = folder, found: list[str] = found, all_in: threading.Barrier = all_in) -> None:
            with place(where).start("key", {**new_job("key"), "by": threading.get_ident()}) as started:
                all_in.wait()  # none has left before all are in
                found.append(json.dumps(started))

        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6
        assert len(set(found)) == 1


@pytest.mark.parametrize("at", ["folder", "s3"])
def test_a_call_waits_for_one_that_takes_long_to_start_the_same_job(tmp_path: Path, bucket: str, at: str,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    where = place(tmp_path / "out" if at == "folder" else str(join(bucket, "slow")))
    writing, go, put, job = threading.Event(), threading.Event(), type(where).put, new_job("mine")

    def slow(self: Any, name: str, data: bytes) -> None:
        if name == "job.json":
            writing.set()
            assert go.wait(300)
        put(self, name, data)

    attempts: list[float] = []
    sleep = time.sleep

    def start() -> Any:
        with where.start("mine", job) as started:
            return started

    monkeypatch.setattr(places, "_START_SECONDS", 0.0)
    monkeypatch.setattr(type(where), "put", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(start)
        assert writing.wait(300)
        monkeypatch.setattr(places.time, "sleep", lambda seconds: (attempts.append(seconds), sleep(seconds))[1])
        second = pool.submit(start)
        wait_until(lambda: len(attempts) > 2 or second.done(), "the second call to ask again")
        go.set()
        assert first.result() == second.result() == job


def test_two_calls_at_once_score_each_shard_once(model: Path, impressions: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    score_batch(model, impressions, tmp_path / "whole", shard_rows=50)
    scored: list[int] = []

    def counted(job, shard, work, on_rows=None):
        scored.append(shard.number)
        time.sleep(0.02)
        return score_shard(job, shard, work, on_rows)

    monkeypatch.setattr("recsys.serving.workers.score_shard", counted)
    scorer, manifests = load_scorer(model), []
    calls = [threading.Thread(target=lambda: manifests.append(
        score_batch(model, impressions, tmp_path / "out", shard_rows=50, scorer=scorer))) for _ in range(2)]
    for one in calls:
        one.start()
    for one in calls:
        one.join()
    assert sorted(scored) == list(range(20))
    assert manifests[0]["facts"] == manifests[1]["facts"]
    assert same(tmp_path / "out", tmp_path / "whole")


def test_a_shard_that_another_worker_finished_meanwhile_is_left_as_it_is(model: Path, impressions: Path,
                                                                         tmp_path: Path) -> None:
    scorer, out, inner = load_scorer(model), tmp_path / "out", []

    class Slow:
        columns, heads, model_id = scorer.columns, scorer.heads, scorer.model_id

        def score(self, table):
            if not inner and table.num_rows == 1000:  # as if its claim had run out
                inner.append(True)
                for lock in (out / "_shards").glob("*-*.lock"):
                    lock.unlink()
                inner.append(score_batch(model, impressions, out, scorer=scorer))
            return scorer.score(table)

    late = score_batch(model, impressions, out, scorer=Slow())
    assert late["facts"] == inner[1]["facts"]
    assert not list(out.rglob("*.partial"))


def test_a_part_written_again_behind_the_manifest_is_found_by_a_rerun(model: Path, impressions: Path, bucket: str,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(join(bucket, "late"))
    score_batch(model, impressions, out, shard_rows=250)
    want, store = read_scores(out), place(out)
    part = json.loads(store.read("manifest.json") or b"")["facts"]["parts"][1]["name"]
    record = f"_shards/{part.removeprefix('part-').removesuffix('.parquet')}.json"
    # As in a store whose ETags change with every write, not with every change.
    held, mark = json.loads(store.read(record) or b""), type(store).mark
    monkeypatch.setattr(type(store), "mark", lambda self, name: "new" if name == part else mark(self, name))
    store.put(record, json.dumps({**held, "mark": "new"}).encode())
    with pytest.raises(InputError, match="damaged part"):
        read_scores(out)
    assert not score_batch(model, impressions, out, shard_rows=250)["cached"]
    assert read_scores(out).equals(want)
    assert score_batch(model, impressions, out, shard_rows=250)["cached"]


def test_a_full_disk_is_one_line_and_the_rerun_goes_on(model: Path, impressions: Path, tmp_path: Path) -> None:
    score_batch(model, impressions, tmp_path / "whole", shard_rows=100)
    out = tmp_path / "out"
    limit = len(place(tmp_path / "whole").read(parts(tmp_path / "whole")[0]) or b"") - 64
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(RecsysError, match="run again to go on"):
            score_batch(model, impressions, out, shard_rows=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.partial"))
    score_batch(model, impressions, out, shard_rows=100)
    assert row_checksums(out) == row_checksums(tmp_path / "whole")


@pytest.mark.slow
def test_processes_score_as_one_and_a_killed_one_is_made_up_for(model: Path, large: Path, tmp_path: Path) -> None:
    score_batch(model, large, tmp_path / "whole", shard_rows=50, workers=1)
    settings = ("--model", model, "--input", large, "--shard-rows", 50)
    out = tmp_path / "out"
    job = subprocess.Popen(command(*settings, "--output", out, "--workers", 3), stderr=subprocess.PIPE, text=True)
    while job.poll() is None and not (out / "job.json").exists():
        time.sleep(0.01)
    victim = None
    while victim is None and job.poll() is None:
        # On a busy machine the first process could be done before the others are: it gets one moment in twenty.
        time.sleep(0.01)
        os.kill(job.pid, signal.SIGSTOP)
        until = time.monotonic() + 0.2
        while victim is None and time.monotonic() < until:
            victim = next((pid for pid in sorted(children_of(job.pid, "spawn_main")) if held(out, pid)), None)
            time.sleep(0.0005)
        if victim is None:
            os.kill(job.pid, signal.SIGCONT)
    assert victim is not None, job.communicate()[1]
    os.kill(victim, signal.SIGKILL)
    os.kill(job.pid, signal.SIGCONT)
    stderr = job.communicate(timeout=120)[1]
    assert job.returncode == 0, stderr
    assert "a worker was killed" in stderr
    assert row_checksums(out) == row_checksums(tmp_path / "whole")
    assert pq.read_table(out / "rejected.parquet").equals(pq.read_table(tmp_path / "whole" / "rejected.parquet"))


def held(out: Path, pid: int) -> bool:
    """Whether that process has a shard of the job in hand."""
    return any(f".{pid}-" in p.name for p in live_glob(out, ".part-*.partial"))


def call(settings: dict[str, Any], variables: dict[str, str]) -> None:
    os.environ.update(variables)
    score_batch(**settings, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "shard_rows", "many"), [("folder", 20, 30), ("s3", 250, 8)])
def test_kills_of_calls_that_share_a_job(model: Path, large: Path, tmp_path: Path, bucket: str, at: str,
                                         shard_rows: int, many: int) -> None:
    """Two calls work on one job; at random moments one of them is killed, and another one started in its place."""
    score_batch(model, large, tmp_path / "whole", shard_rows=shard_rows, workers=1)
    out = str(tmp_path / "out") if at == "folder" else str(join(bucket, "killed"))
    settings = {"model": model, "input": large, "output": out, "shard_rows": shard_rows}
    # Children are forked from a process that has imported everything: they are killed at work, not while starting.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "recsys.serving.workers", "recsys.models.bundle", "torch._dynamo"])
    variables = {n: v for n, v in os.environ.items() if n.startswith("AWS_")}
    seed = time.time_ns()
    print("seed", seed)
    rng, kills, progress = np.random.default_rng(seed), 0, [0]

    def start() -> Any:
        process = context.Process(target=call, args=(settings, variables))
        process.start()
        return process

    calls = [start(), start()]
    while kills < many:
        goal = progress[-1] + int(rng.integers(0, 5))  # counted in work, as a busy machine starts processes slowly
        while len(parts(out)) < goal and calls[0].exitcode is None:
            time.sleep(0.01 if at == "folder" else 0.2)
        time.sleep(rng.uniform(0, 0.05))  # a shard takes milliseconds, and the last kill must meet some
        i = int(rng.integers(2))
        assert calls[i].exitcode is None, f"the job was over or failed after {kills} kills"
        calls[i].kill()
        calls[i].join()
        kills += 1
        progress.append(len(parts(out)))
        calls[i] = start()
    assert place(out).read("manifest.json") is None
    assert progress == sorted(progress)
    assert many / 4 < progress[-1] < 20_000 // shard_rows
    print("parts at each kill", progress)
    for one in calls:
        one.join()
        assert one.exitcode == 0
    assert row_checksums(out) == row_checksums(tmp_path / "whole")
    assert len(parts(out)) == 20_000 // shard_rows
    assert not [n for n in place(out).names() if n.endswith(".partial") or ".claim-" in n]


def test_a_process_that_goes_on_loads_the_model_of_its_next_job(model: Path, large: Path, tmp_path: Path) -> None:
    """As those of a Ray cluster do, which keep what the job before has loaded."""
    folder, files = shutil.copytree(model, tmp_path / "model"), read_inputs(find_inputs(large))
    scorer = load_scorer(folder)
    schema = probe(scorer, Pairs(scorer.columns, (), 64, None), files)

    def opened(key: str) -> Work:
        return workers._opened(Task(str(folder), sha256_file(folder), None, tuple(files), (), str(tmp_path / "out"),
                                    key, dt.datetime.now(dt.UTC), schema, 64, (), "cpu"))[1]

    first = opened("one").scorer
    assert first.model_id == scorer.model_id
    spec = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**spec, "model_id": "another"}))
    assert opened("two").scorer.model_id == "another"
    (folder / "model.json").write_text(json.dumps(spec))  # and one of the same weights, which may be calibrated anew
    assert opened("three").scorer is not first
    workers._load.cache_clear()


def test_a_ray_cluster_that_is_not_there_is_one_line_before_anything_is_touched(
        model: Path, impressions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    settings = {"model": model, "input": impressions, "output": tmp_path / "out", "shard_rows": 500, "workers": 1}
    score_batch(**settings)
    (tmp_path / "out" / "manifest.json").unlink()
    before = sorted(p.name for p in (tmp_path / "out").rglob("*"))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match=r"RAY_ADDRESS: no Ray cluster answers; got '127\.0\.0\.1:") as caught:
        score_batch(**settings, engine="ray")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == before


@pytest.mark.slow
def test_ray_scores_the_same_though_a_worker_is_killed(model: Path, large: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    score_batch(model, large, tmp_path / "whole", shard_rows=500, workers=1)
    out, killed = tmp_path / "out", []
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.wait(0.002):
            for partial in live_glob(out, ".part-*.partial"):
                pid = int(partial.name.rsplit(".", 2)[1].split("-")[0])
                if "ray::" in command_line(pid):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        manifest = score_batch(model, large, out, shard_rows=500, engine="ray", workers=2)
    finally:
        stop.set()
        killer.join()
    assert killed
    assert manifest["rows"]["input"] == 20_000
    assert row_checksums(out) == row_checksums(tmp_path / "whole")
    assert score_batch(model, large, out, shard_rows=500, engine="ray", workers=2)["cached"]
