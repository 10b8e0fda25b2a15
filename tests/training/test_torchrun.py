from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys.models.bundle import load_bundle
from tests.processes import live_glob, wait_until
from tests.ranks import free_port
from tests.training.toy import toy_split

ROOT = Path(__file__).parents[2]
# Row-wise and table-wise tables, a history that is a list, two heads; nothing but the ranks differs between runs.
SCRIPT = """
import json, sys, torch
from pathlib import Path
from recsys.cli import main
from recsys.config import ModelConfig, TrainingConfig
from recsys.log import setup_logging
from recsys.training.trainer import train_model
from recsys.training.world import World, end_rank
from recsys.errors import RecsysError

torch.set_num_threads(1)
setup_logging()
split, out, model, training = sys.argv[1:5]
world, code = World.from_environment("cpu"), 0
try:
    with world.together():
        train_model(Path(split), ModelConfig(**json.loads(model)), TrainingConfig(**json.loads(training)), Path(out),
                    world=world)
except RecsysError as error:
    if not error.reported:
        print(f"error: {error}", file=sys.stderr)
    code = error.exit_code
except OSError as error:
    print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    code = 1
else:
    world.close()
end_rank(code)
"""
MODEL = {"embedding_dim": 4, "bottom": [8], "top": [16], "min_count": 1}
TRAINING = {"epochs": 2, "batch_size": 64, "lanes": 2, "validation_share": 0.1,
            "tables": {"user_id": {"sharding": "row_wise"}, "surface": {"optimizer": "sgd", "lr": 0.01}}}
QUALITY = ("auc", "normalized_entropy", "log_loss", "calibration_ratio", "gauc")


def _torchrun(script: Path, split: Path, out: Path, *launch: str, training: dict = TRAINING) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *launch, str(script), str(split), str(out),
               json.dumps(MODEL), json.dumps(training)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def _local(ranks: int) -> tuple[str, ...]:
    return (f"--nproc-per-node={ranks}", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")


def _metrics(out: Path) -> dict:
    return dict(json.loads((out / "metrics.json").read_text()))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)
    return file


def _alone(script: Path, split: Path, out: Path, training: dict = TRAINING) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    subprocess.run([sys.executable, str(script), str(split), str(out), json.dumps(MODEL), json.dumps(training)],
                   check=True, timeout=400, env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_two_ranks_train_the_model_that_one_does(script: Path, tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=4000)
    process = _torchrun(script, split, tmp_path / "two", *_local(2))
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    _alone(script, split, tmp_path / "one")
    one, two = _metrics(tmp_path / "one"), _metrics(tmp_path / "two")
    for part in ("train", "validation", "test"):
        for name in QUALITY[: 4 if part == "train" else 5]:
            assert two[part][name] == pytest.approx(one[part][name], abs=2e-4), (part, name)
        assert two[part]["n"] == one[part]["n"]
    assert two["usage"]["samples"] == one["usage"]["samples"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".two")] == []
    plan = json.loads((tmp_path / "two" / "plan.json").read_text())
    tables = {row["table"]: row for row in plan["tables"]}
    assert plan["ranks"] == 2
    assert (tables["user_id"]["sharding"], tables["user_id"]["ranks"]) == ("row_wise", [0, 1])
    assert tables["ad_id"]["sharding"] == "table_wise"
    assert said.count("MiB a rank") == 1  # rank 0 prints it, alone
    # The exported folder is whole, and like any other: loaded without ranks, it has the single run's weights.
    weights = [load_bundle(tmp_path / n, "cpu").models[0].weights() for n in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for key, tensor in weights[0].items():
        assert float((weights[1][key] - tensor).abs().max()) < 2e-3, key


@pytest.mark.slow
def test_bad_input_ends_all_ranks_with_one_line_and_leaves_nothing(script: Path, tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=200, label={})
    process = _torchrun(script, split, tmp_path / "out", *_local(2))
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, said
    assert "no label for this head" in lines[0]
    assert {p.name for p in tmp_path.iterdir()} == {"split", "train.py"}


@pytest.mark.slow
def test_a_killed_node_is_done_without_and_the_run_ends_as_if_it_had_lived(script: Path, tmp_path: Path) -> None:
    """Two nodes (two torchruns, one rendezvous); one is killed; the other goes on alone from the last checkpoint."""
    split = toy_split(tmp_path / "split", n=20_000)
    training = {**TRAINING, "epochs": 3, "checkpoint_seconds": 0.2, "batch_size": 32}
    port = free_port()
    launch = ("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=run",
              f"--rdzv-endpoint=127.0.0.1:{port}", "--monitor-interval=0.2",
              "--rdzv-conf=last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3")
    first = _torchrun(script, split, tmp_path / "out", *launch, training=training)
    wait_until(lambda: _listens(port) or first.poll() is not None, "the first holds the rendezvous")
    second = _torchrun(script, split, tmp_path / "out", *launch, training=training)
    try:
        seen: set[Path] = set()
        until = time.monotonic() + 300
        while len(seen) < 3 and time.monotonic() < until:
            assert first.poll() is None, first.communicate()[0]
            seen |= set(live_glob(tmp_path, ".out.*.partial/checkpoint/member-0/epoch-*/manifest.json"))
            time.sleep(0.05)
        assert len(seen) >= 3
        for pid in (second.pid, *_workers(second.pid)):  # the node is gone, without a word
            os.kill(pid, signal.SIGKILL)
        said, _ = first.communicate(timeout=500)
        assert first.returncode == 0, said
    finally:
        for process in (first, second):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert "goes on from" in said
    _alone(script, split, tmp_path / "one", training)
    one, two = _metrics(tmp_path / "one"), _metrics(tmp_path / "out")
    for name in QUALITY:
        assert two["test"][name] == pytest.approx(one["test"][name], abs=1e-3), name
    assert two["usage"]["samples"] == one["usage"]["samples"]


def _listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def _workers(agent: int) -> list[int]:
    """What an agent has started: in sessions of their own, so that a signal to its group misses them."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(agent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]
