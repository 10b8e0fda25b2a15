"""``recsys tune`` on a small simulated marketplace."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from filelock import FileLock

from recsys.config import load_config
from recsys.errors import InputError
from recsys.experiment.tuning import run_tuning
from tests.processes import children_of

SMALL = ["data.simulate={users: 200, advertisers: 20, ads: 100, requests: 5000}", "training.epochs=4",
         "encoders={length: {kind: length}}", "arms={ids_only: {}, length: {content: length}}",
         "training.batch_size=512", "training.sparse_lr=0.0001", "training.dense_lr=0.00001", "model.content_dim=4"]
SPACE = ("training.sparse_lr: {low: 0.001, high: 0.3, log: true}\n"
         "training.dense_lr: {low: 0.0003, high: 0.03, log: true}\n")


def test_search_looks_at_the_training_part_alone_and_its_best_file_trains(tmp_path: Path) -> None:
    config, out = load_config("marketplace", SMALL), tmp_path / "out"
    (tmp_path / "space.yaml").write_text(SPACE)
    run_tuning(config, out, arm="length", trials=1, space=tmp_path / "space.yaml")
    # The split is there now and is not made again. Whoever opens this file fails:
    (out / "split" / "test.parquet").write_bytes(b"not to be read")
    found = run_tuning(config, out, arm="length", trials=3, space=tmp_path / "space.yaml")
    assert (out / "split" / "test.parquet").read_bytes() == b"not to be read"
    assert sorted(p.name for p in (out / "search").iterdir()) == ["ads.parquet", "dataset.json", "train.parquet"]
    assert found["best"]["value"] < found["experiment"]
    assert json.loads((out / "trials.json").read_text())["best"] == found["best"]
    assert (out / "tuning.png").read_bytes().startswith(b"\x89PNG")
    best = load_config(out / "best.yaml")
    assert best == load_config("marketplace", [*SMALL, *found["set"]])
    assert best.training.sparse_lr == found["best"]["settings"]["training.sparse_lr"]


def test_one_search_a_folder_at_a_time(tmp_path: Path) -> None:
    config = load_config("marketplace", SMALL)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".tune.lock"):
        with pytest.raises(InputError, match="a search is running in this folder"):
            run_tuning(config, tmp_path / "out", arm="ids_only", trials=1)


@pytest.mark.parametrize(("change", "arm", "words"), [
    ([], None, "which arm"), (["model.kind=ridge"], "length", "ridge"), ([], "absent", "no such arm")])
def test_bad_requests_are_one_line(tmp_path: Path, change: list[str], arm: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_tuning(load_config("marketplace", [*SMALL, *change]), tmp_path / "out", arm=arm, trials=1)
    assert not (tmp_path / "out").exists()


def _command(folder: Path, out: str, *more: str) -> list[str]:
    (folder / "space.yaml").write_text(SPACE)
    sets = [word for item in SMALL for word in ("--set", item)]
    return [sys.executable, "-m", "recsys.cli", "tune", "marketplace", "--arm", "ids_only", "--out", str(folder / out),
            "--trials", "7", "--space", str(folder / "space.yaml"), "--json", *sets, *more]


def _trials(out: Path) -> list[tuple[int, str]]:
    try:
        with sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True) as connection:
            return list(connection.execute("select number, state from trials order by number"))
    except sqlite3.Error:
        return []


def _plain(text: str) -> dict:
    found = json.loads(text)
    for trial in found["trials"]:
        del trial["training_seconds"]
    return found


@pytest.mark.slow
def test_killed_three_times_the_search_ends_as_if_never_interrupted(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(_command(tmp_path, "whole"), env=environment, capture_output=True, text=True, check=True)
    kills, seen = 0, 0
    while kills < 3:
        process = subprocess.Popen(_command(tmp_path, "out"), env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(_trials(tmp_path / "out")) <= seen:
            time.sleep(0.05)
        time.sleep(0.3 * kills)  # at its start, and in the midst of it
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, seen = kills + 1, len(_trials(tmp_path / "out"))
    assert kills >= 2
    again = subprocess.run(_command(tmp_path, "out"), env=environment, capture_output=True, text=True, check=True)
    assert _plain(again.stdout) == _plain(whole.stdout)
    assert [number for number, _ in _trials(tmp_path / "out")] == list(range(7))
    assert (tmp_path / "out" / "best.yaml").read_bytes() == (tmp_path / "whole" / "best.yaml").read_bytes()


@pytest.mark.slow
def test_two_processes_share_a_search_and_end_with_their_parent(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(_command(tmp_path, "out", "--jobs", "2"), env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(_trials(tmp_path / "out")) < 3:
        time.sleep(0.05)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(children) >= 2
    assert not any(_alive(child) for child in children)
    done = subprocess.run(_command(tmp_path, "out", "--jobs", "2"), env=environment, capture_output=True, text=True,
                          check=True)
    found = json.loads(done.stdout)
    assert [t["number"] for t in found["trials"]] == list(range(7))
    assert found["counts"]["complete"] + found["counts"]["pruned"] == 7
    assert found["best"]["value"] < found["experiment"]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False
