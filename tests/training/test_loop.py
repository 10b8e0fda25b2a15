"""The loop through the door that users take: train_model on a small split."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from recsys.config import ModelConfig, TrainingConfig
from recsys.errors import RecsysError, Stopped
from recsys.features.batches import Batch
from recsys.training import checkpoint_storage
from recsys.training import step as steps
from recsys.training.checkpoint import Checkpoints
from recsys.training.journal import Journal, read_journal
from recsys.training.step import PlainStepper, binomial_loss
from recsys.training.trainer import train_model
from tests.processes import live_glob
from tests.training.damage import DAMAGE, flip
from tests.training.toy import toy_split

MODEL = ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), min_count=1, dropout=0.1)
SAME = ("train", "validation", "test", "epochs", "evaluations", "best_epoch")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("recsys"), "propagate", True)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_split(tmp_path_factory.mktemp("data") / "split", n=1000)


@pytest.fixture(scope="module")
def whole(split: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of EVERY that nothing interrupted: its folder and its metrics."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, train_model(split, MODEL, EVERY, out)


def _same(metrics: dict[str, Any], whole: tuple[Path, dict[str, Any]]) -> bool:
    return {k: metrics[k] for k in SAME} == {k: whole[1][k] for k in SAME}


def _config(**more: object) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 2, "batch_size": 128, "log_steps": 1, **more})


EVERY = _config(checkpoint_seconds=0, sparse_schedule={"decay": "cosine"})  # a checkpoint after every step
OVERFITS = _config(epochs=6, checkpoint_seconds=0, sparse_lr=0.5, dense_lr=0.05)


def _steps(out: Path, *keys: str) -> list[tuple]:
    return [tuple(line[k] for k in keys) for line in read_journal(out / "train.jsonl") if line["kind"] == "step"]


def _at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    real = Journal.step

    def step(self: Journal, **line: Any) -> None:
        real(self, **line)
        if line["step"] == number:
            act()

    monkeypatch.setattr(Journal, "step", step)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_every_epoch_takes_every_row(split: Path, tmp_path: Path) -> None:
    # Trap 1: epochs after the first can be silently empty.
    metrics = train_model(split, MODEL, _config(epochs=3), tmp_path / "out")
    rows, batches = metrics["usage"]["samples"] // 3, len(_steps(tmp_path / "out", "step")) // 3
    found = dict.fromkeys(range(3), 0)
    for epoch, _ in _steps(tmp_path / "out", "epoch", "step"):
        found[epoch] += 1
    assert found == dict.fromkeys(range(3), batches)
    assert batches == -(-rows // 128)
    assert [e["epoch"] for e in metrics["epochs"][0]] == [0, 1, 2]


def test_an_epoch_that_ends_early_is_an_error(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = PlainStepper.run, []

    def empty_from_the_second_on(self: PlainStepper, batches: Iterator) -> Iterator:
        calls.append(1)
        return real(self, batches) if len(calls) == 1 else iter([])

    monkeypatch.setattr(PlainStepper, "run", empty_from_the_second_on)
    with pytest.raises(RuntimeError, match=r"epoch 1 ended after 0 of \d+ batches"):
        train_model(split, MODEL, _config(), tmp_path / "out")


def test_evaluation_within_an_epoch_does_not_touch_training(split: Path, tmp_path: Path) -> None:
    losses = {}
    for every in (0, 3):
        out = tmp_path / str(every)
        metrics = train_model(split, MODEL, _config(evaluate_steps=every), out)
        losses[every] = _steps(out, "step", "loss")
        steps = len(losses[every])
        told = [line["step"] for line in read_journal(out / "train.jsonl") if line["kind"] == "evaluation"]
        wanted = {steps // 2, steps} | (set(range(3, steps, 3)) if every else set())
        assert told == sorted(wanted)
        assert [e["step"] for e in metrics["evaluations"][0]] == sorted(wanted - {steps // 2, steps})
    assert losses[0] == losses[3]


def test_early_stopping_within_an_epoch_keeps_the_best_weights(split: Path, tmp_path: Path) -> None:
    training = _config(epochs=30, evaluate_steps=4, patience=3, sparse_lr=0.3, dense_lr=0.02)
    metrics = train_model(split, MODEL, training, tmp_path / "out")
    lines = [line for line in read_journal(tmp_path / "out" / "train.jsonl") if line["kind"] == "evaluation"]
    scores = [line["heads"]["click"]["log_loss"] for line in lines]
    best = scores.index(min(scores))
    assert len(scores) == best + 4
    assert lines[-1]["step"] == len(_steps(tmp_path / "out", "step"))
    assert lines[best]["epoch"] == metrics["best_epoch"][0] < 29
    assert metrics["validation"]["log_loss"] == pytest.approx(scores[best], abs=1e-6)


def test_sigterm_finishes_the_step_saves_and_the_same_call_goes_on(
        split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, dict[str, Any]]) -> None:
    training = EVERY.model_copy(update={"checkpoint_seconds": 300.0})
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        _at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="saved after step 5"):
            train_model(split, MODEL, training, tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) == before
    (saved,) = tmp_path.glob(".out.*.partial/checkpoint/member-0/*/manifest.json")
    assert saved.parent.name == "epoch-0000-batch-000000005"
    assert _same(train_model(split, MODEL, training, tmp_path / "out"), whole)
    assert _steps(tmp_path / "out", "step", "loss", "sparse_lr") == _steps(whole[0], "step", "loss", "sparse_lr")


def test_a_lines_auc_is_that_of_its_rows_also_after_a_stop_between_two_lines(
        split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is scored before it is learnt from; a checkpoint keeps what the next line has gathered so far."""
    logits: list[np.ndarray] = []
    clicks: list[np.ndarray] = []

    def kept(z: torch.Tensor, batch: Batch, kernels: str) -> tuple[torch.Tensor, ...]:
        logits.append(z.detach().numpy()[:, 0].copy())
        clicks.append(batch.successes.numpy()[:, 0].copy())
        return binomial_loss(z, batch, kernels)

    monkeypatch.setattr(steps, "binomial_loss", kept)
    train_model(split, MODEL, _config(epochs=1, log_steps=4, batch_size=32), tmp_path / "whole")
    lines = _steps(tmp_path / "whole", "step", "auc")
    assert len(lines) > 2
    for (_, auc), first, last in zip(lines, [0, *(n for n, _ in lines)], [n for n, _ in lines], strict=False):
        exact = roc_auc_score(np.concatenate(clicks[first:last]), np.concatenate(logits[first:last]))
        assert auc["click"] == pytest.approx(exact, abs=5e-3)
    real, calls = PlainStepper.run, []

    def interrupted(self: PlainStepper, batches: Iterator) -> Iterator:
        for made in real(self, batches):
            yield made
            calls.append(1)
            if len(calls) == 6:  # two steps after a line
                raise KeyboardInterrupt

    monkeypatch.setattr(PlainStepper, "run", interrupted)
    stopped = _config(epochs=1, log_steps=4, batch_size=32, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        train_model(split, MODEL, stopped, tmp_path / "again")
    train_model(split, MODEL, stopped, tmp_path / "again")
    assert _steps(tmp_path / "again", "step", "auc") == lines


def test_the_command_line_says_one_line_and_exits_with_143(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    from recsys import cli

    def stopped(*_: object) -> None:
        raise Stopped("SIGTERM: saved after step 9")

    monkeypatch.setattr("recsys.experiment.run_training", stopped)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "marketplace", "--out", str(tmp_path / "out")])
    assert ended.value.code == 143


def _cut(split: Path, out: Path, monkeypatch: pytest.MonkeyPatch, training: TrainingConfig, step: int = 11) -> Path:
    """A run that ended after some steps; the folder of its checkpoints."""
    with monkeypatch.context() as patch:
        _at_step(patch, step, _interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_model(split, MODEL, training, out)
    (folder,) = out.parent.glob(f".{out.name}.*.partial/checkpoint/member-0")
    return folder


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(
        split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
        whole: tuple[Path, dict[str, Any]], message: str) -> None:
    folder = _cut(split, tmp_path / "out", monkeypatch, EVERY)
    older, newest = sorted(folder.iterdir())[-2:]
    DAMAGE[message](newest)
    caplog.set_level(logging.INFO, "recsys")
    caplog.clear()
    resumed = train_model(split, MODEL, EVERY, tmp_path / "out")
    (warning,) = [r.getMessage() for r in caplog.records if "is not used" in r.getMessage()]
    assert warning.startswith(f"checkpoint {newest} is not used: {message}")
    assert f"goes on from {older}" in caplog.text
    assert _same(resumed, whole)


def test_without_a_whole_checkpoint_training_starts_again_and_says_so(
        split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
        whole: tuple[Path, dict[str, Any]]) -> None:
    folder = _cut(split, tmp_path / "out", monkeypatch, EVERY)
    for checkpoint in folder.iterdir():
        flip(checkpoint / "rank-0.safetensors")
    resumed = train_model(split, MODEL, EVERY, tmp_path / "out")
    assert "training starts from the beginning" in caplog.text
    assert _same(resumed, whole)


def test_the_latest_and_the_best_are_kept_and_one_without_its_best_is_not_used(
        split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    training = OVERFITS.model_copy(update={"keep_checkpoints": 3})
    whole = train_model(split, MODEL, training, tmp_path / "whole")
    best, length = whole["best_epoch"][0], len(_steps(tmp_path / "whole", "step")) // 6
    assert best < 4, "this test needs a run that overfits"
    folder = _cut(split, tmp_path / "out", monkeypatch, training, (best + 2) * length - 1)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [f"epoch-{best + 1:04d}-batch-{b:09d}" for b in (0, length - 4, length - 3, length - 2)]
    flip(folder / names[0] / "rank-0.safetensors")
    resumed = train_model(split, MODEL, training, tmp_path / "out")
    reason = f"it needs the best weights so far, in {names[0]}"
    assert f"checkpoint {folder / names[-1]} is not used: {reason}" in caplog.text
    assert _same(resumed, (tmp_path / "whole", whole))


def test_nothing_is_unpickled_when_a_run_goes_on(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cut(split, tmp_path / "out", monkeypatch, EVERY)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a pickle is read")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    restored = []
    real = Checkpoints.restore
    monkeypatch.setattr(Checkpoints, "restore", lambda self, *a: restored.append(1) or real(self, *a))
    train_model(split, MODEL, EVERY, tmp_path / "out")
    assert restored == [1]


def test_a_run_that_goes_on_without_the_optimizers_state_is_another(
        split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, dict[str, Any]]) -> None:
    # Trap 2: lost moments of Adam are silent; that nothing is lost is seen by what a loss would do.
    _cut(split, tmp_path / "out", monkeypatch, EVERY)
    monkeypatch.setattr("recsys.training.checkpoint.load_state_tensors", lambda *_: None)
    train_model(split, MODEL, EVERY, tmp_path / "out")
    wanted, found = (_steps(out, "step", "loss") for out in (whole[0], tmp_path / "out"))
    assert found[:11] == wanted[:11]
    assert found[11:] != wanted[11:]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_the_ones_before(
        split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, dict[str, Any]]) -> None:
    real, calls = checkpoint_storage._write_file, []

    def full(path: Path, tensors: Any) -> Any:
        calls.append(path)
        if len(calls) == 5:
            raise OSError(28, "No space left on device", str(path))
        return real(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_storage, "_write_file", full)
        with pytest.raises(OSError, match="No space left"):
            train_model(split, MODEL, EVERY, tmp_path / "out")
    assert len(calls) == 5
    assert _same(train_model(split, MODEL, EVERY, tmp_path / "out"), whole)


def test_divergence_is_said_where_it_happens(split: Path, tmp_path: Path) -> None:
    with pytest.raises(RecsysError, match=r"diverged in epoch 0.*dense_lr.*clip_norm"):
        train_model(split, MODEL, _config(dense_lr=1e30), tmp_path / "out")


def test_a_checkpoint_is_written_while_training_goes_on(split: Path, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """The write of one checkpoint is held back until a later step was made: it must not have to wait for it."""
    made = threading.Event()
    real, held = checkpoint_storage._write_file, []

    def slow(path: Path, tensors: Any) -> Any:
        if "epoch-0000" in str(path) and not held:
            held.append(made.wait(30))
        return real(path, tensors)

    monkeypatch.setattr(checkpoint_storage, "_write_file", slow)
    _at_step(monkeypatch, 4, made.set)
    train_model(split, MODEL, _config(evaluate_steps=2, checkpoint_seconds=300, patience=0), tmp_path / "out")
    assert held == [True]


@pytest.mark.slow
def test_sigterm_from_outside_ends_the_command_with_143_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = ["data.simulate={users: 300, advertisers: 20, ads: 150, requests: 12000}", "arms={ids: {}}", "baseline=ids",
             "training.epochs=40", "training.log_steps=1", "training.batch_size=256", "training.patience=0"]
    command = [sys.executable, "-m", "recsys", "train", "marketplace", "--out", str(out),
               *(word for item in small for word in ("--set", item))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not any(len(read_journal(p)) > 20 for p in live_glob(out, "**/train.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 143
    assert "SIGTERM: saved after step" in said.splitlines()[-1]
    assert "Traceback" not in said
    again = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=500,
                           check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "goes on from" in again.stderr
