"""kill -9 at random moments, twenty times: the run ends as one that was never touched."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from recsys.training.journal import read_journal
from tests.processes import live_glob
from tests.ranks import CONTEXT
from tests.training.toy import toy_content, toy_split

KILLS = 20


def life(split: Path, out: Path) -> None:
    """One process's attempt at the whole run: a checkpoint every 30 ms, so that one is nearly always being written."""
    import torch

    from recsys.config import ModelConfig, TrainingConfig
    from recsys.training.trainer import train_model

    torch.set_num_threads(1)
    model = ModelConfig(embedding_dim=16, bottom=(8,), top=(16,), content_dim=8, min_count=1, dropout=0.1)
    training = TrainingConfig(epochs=3, batch_size=64, checkpoint_seconds=0.03, evaluate_steps=37, log_steps=10,
                              sparse_schedule={"warmup_steps": 50}, dense_schedule={"decay": "cosine"}, clip_norm=1.0)
    train_model(split, model, training, out, content=toy_content())


def _partial(out: Path) -> list[Path]:
    return live_glob(out.parent, f".{out.name}.*.partial/checkpoint/*/epoch-*")


def _await_checkpoints(process: Any, out: Path, count: int) -> None:
    """Until the life has begun so many new checkpoints, or is over: machines differ in speed, so time says nothing."""
    seen = set(_partial(out))
    while count and process.exitcode is None:
        new = set(_partial(out)) - seen
        count -= bool(new)
        seen |= new
        process.join(0.002)


def _outcome(out: Path) -> dict[str, Any]:
    metrics = json.loads((out / "metrics.json").read_text())
    clock = ("samples_per_second", "input_stall_share", "sums")
    lines = [{k: v for k, v in line.items() if k not in clock} for line in read_journal(out / "train.jsonl")]
    return {k: metrics[k] for k in ("train", "validation", "test", "epochs", "evaluations", "best_epoch")} | {
        "lines": lines, "weights": (out / "model.safetensors").read_bytes()}


@pytest.mark.slow
def test_killed_twenty_times_it_ends_as_if_never_touched(tmp_path: Path) -> None:
    split, out = toy_split(tmp_path / "split", n=8000), tmp_path / "out"
    whole = CONTEXT.Process(target=life, args=(split, tmp_path / "whole"))
    whole.start()
    whole.join(300)
    assert whole.exitcode == 0
    wanted = _outcome(tmp_path / "whole")
    clock = random.Random(7)
    kills = halfway = written = resumed = runs = 0
    while kills < KILLS:
        had_some = bool(_partial(out))
        process = CONTEXT.Process(target=life, args=(split, out))
        process.start()
        _await_checkpoints(process, out, clock.randrange(14))
        process.join(clock.uniform(0.0, 0.05))
        process.kill()
        process.join()
        if out.exists():  # it was faster than the kill
            assert _outcome(out) == wanted
            shutil.rmtree(out)
            runs += 1
            continue
        kills += 1
        resumed += had_some
        folders = _partial(out)
        written += bool(folders)
        halfway += any(not (f / "manifest.json").exists() for f in folders)
    last = CONTEXT.Process(target=life, args=(split, out))
    last.start()
    last.join(300)
    assert last.exitcode == 0
    assert _outcome(out) == wanted
    assert not list(tmp_path.glob(".out.*"))
    print(f"{kills} kills over {runs + 1} runs: {written} left a checkpoint, {halfway} one that was being written, "
          f"{resumed} ended a life that had gone on from one")
    assert written >= KILLS // 2
    assert halfway >= 1
    assert resumed >= KILLS // 4
