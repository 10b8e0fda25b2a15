from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import ModelConfig, TrainingConfig
from recsys.content.device import device_name
from recsys.errors import InputError, RecsysError, Stopped
from recsys.ledger import book, load_card
from recsys.training import trainer
from recsys.training.checkpoint import Checkpoints
from recsys.training.journal import Evaluation, read_journal
from recsys.training.trainer import train_model
from tests.training.toy import toy_content, toy_split, toy_table

MODEL = ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), content_dim=8, min_count=1)
TRAINING = TrainingConfig(epochs=2, batch_size=64, validation_share=0.1)
QUALITY = ("auc", "normalized_entropy", "log_loss", "calibration_ratio")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_split(tmp_path_factory.mktemp("data") / "split")


def _train(split: Path, out: Path, *, training: TrainingConfig = TRAINING, **more: object) -> dict:
    return train_model(split, more.pop("model", MODEL), training, out, **more)  # type: ignore[arg-type]


def test_model_folder_is_complete_and_a_second_run_does_nothing(split: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    metrics = _train(split, out, content=toy_content())
    assert {p.name for p in out.iterdir()} == {
        "manifest.json", "metrics.json", "model.json", "model.safetensors", "plan.json", "vocabulary.parquet",
        "content.safetensors", "train.jsonl"}
    assert [p for p in tmp_path.iterdir() if p.name != "model"] == []
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["n"] == 1000
    assert metrics["samples_per_second"] > 0
    assert 0 <= metrics["input_stall_share"] <= 1
    rows = json.loads((out / "manifest.json").read_text())["rows"]
    assert metrics["usage"]["samples"] == 2 * (2000 - rows["validation"])
    assert 0 < metrics["usage"]["utilisation"] <= 1
    assert metrics["usage"]["device"] == "cpu"
    assert metrics["usage"]["device_name"] == device_name("cpu")
    (row,) = book([metrics["usage"]], load_card("2026-11"), "aws-c6a-large", "x", "arm").to_pylist()
    assert (row["x_Device"], row["x_GpuSeconds"]) == ("cpu", 0.0)
    assert row["ResourceId"] == device_name("cpu")
    before = (out / "metrics.json").stat().st_mtime_ns
    assert _train(split, out, content=toy_content()) == metrics
    assert (out / "metrics.json").stat().st_mtime_ns == before


def test_same_seed_same_metrics_other_seed_others(split: Path, tmp_path: Path) -> None:
    runs = [_train(split, tmp_path / str(i), seed=s)["test"] for i, s in enumerate((0, 0, 1))]
    assert runs[0] == runs[1]
    assert runs[0]["log_loss"] != runs[2]["log_loss"]


def test_content_lifts_the_ranker(split: Path, tmp_path: Path) -> None:
    # Users and ads recur, so ids alone learn something; the click follows the match of contents.
    training = TRAINING.model_copy(update={"epochs": 6})
    ids = _train(split, tmp_path / "ids", training=training)["test"]
    content = _train(split, tmp_path / "content", training=training, content=toy_content())["test"]
    assert content["auc"] > 0.70
    assert content["auc"] > ids["auc"] + 0.02
    assert content["normalized_entropy"] < 0.93


def test_binomial_labels_and_several_heads(tmp_path: Path) -> None:
    label = {"click": {"kind": "binary", "column": "click"},
             "engage": {"kind": "binomial", "trials": "trials", "successes": "successes"}}
    split = toy_split(tmp_path / "split", label=label)
    metrics = _train(split, tmp_path / "out", model=MODEL.model_copy(update={"heads": ("click", "engage")}))
    engage = metrics["test"]["heads"]["engage"]
    assert engage["trials"] == 5000
    assert engage["calibration_ratio"] == pytest.approx(1, abs=0.2)
    assert metrics["test"]["trials"] == 1000


def test_metrics_are_also_told_by_surface_and_within_users(split: Path, tmp_path: Path) -> None:
    metrics = _train(split, tmp_path / "out", content=toy_content(), training=TRAINING.model_copy(update={"epochs": 4}))
    test, table = metrics["test"], pq.read_table(split / "test.parquet")
    assert 0.55 < test["gauc"] < 0.9
    assert 40 < test["gauc_users"] <= len(table["user_id"].unique())
    assert 0 < test["ece"] < 0.1
    assert {k: v["n"] for k, v in test["by_surface"].items()} == {
        str(s): n for s, n in Counter(table["surface"].to_pylist()).items()}
    loss = sum(v["log_loss"] * v["trials"] for v in test["by_surface"].values())
    assert loss / test["trials"] == pytest.approx(test["log_loss"])


def test_weights_count(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=400)
    table = pq.read_table(split / "test.parquet")
    kept = table.slice(0, 50)
    weight = np.zeros(table.num_rows)
    weight[:50] = 2.0
    pq.write_table(table.append_column("weight", pa.array(weight)), split / "test.parquet")
    train = pq.read_table(split / "train.parquet")
    pq.write_table(train.append_column("weight", pa.array(np.ones(train.num_rows))), split / "train.parquet")
    weighted = _train(split, tmp_path / "one")["test"]
    pq.write_table(kept.append_column("weight", pa.array(np.ones(50))), split / "test.parquet")
    alone = _train(split, tmp_path / "two")["test"]
    for name in QUALITY:
        assert weighted[name] == pytest.approx(alone[name], rel=1e-6)


def test_ensemble_is_the_mean_probability(split: Path, tmp_path: Path) -> None:
    from recsys.serving.scorer import Scorer

    _train(split, tmp_path / "two", training=TRAINING.model_copy(update={"ensemble": 2}))
    scorer = Scorer.load(tmp_path / "two")
    table = toy_table(50, 3)
    both = scorer.score(table)["click"]
    bundle = scorer._bundle
    single = []
    for model in bundle.models:
        scorer._bundle = replace(bundle, models=(model,))
        single.append(scorer.score(table)["click"])
    np.testing.assert_allclose(both, np.mean(single, axis=0), atol=1e-9)
    assert np.abs(single[0] - single[1]).max() > 1e-4


def test_early_stopping_keeps_the_best_weights(split: Path, tmp_path: Path) -> None:
    training = TrainingConfig(epochs=40, batch_size=64, validation_share=0.2, patience=2, sparse_lr=0.3, dense_lr=0.01)
    metrics = _train(split, tmp_path / "out", training=training)
    epochs, best = metrics["epochs"][0], metrics["best_epoch"][0]
    losses = [e["validation"]["log_loss"] for e in epochs]
    assert len(epochs) == best + 3 < 40
    assert min(losses) == losses[best]
    assert metrics["validation"]["log_loss"] == pytest.approx(losses[best], abs=1e-6)


def test_test_part_can_be_withheld_and_a_watcher_ends_and_resumes_a_run(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split")
    whole = _train(split, tmp_path / "whole")
    (split / "test.parquet").unlink()
    told: list[Evaluation] = []

    def watch(evaluation: Evaluation) -> None:
        told.append(evaluation)
        if len(told) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(split, tmp_path / "out", test=False, watch=watch)
    metrics = _train(split, tmp_path / "out", test=False, watch=watch)
    assert "test" not in metrics
    assert metrics["validation"] == whole["validation"]
    assert sorted({(t.index, t.epoch) for t in told}) == [(1, 0), (2, 1)]
    assert told[-1].heads["click"] == whole["epochs"][0][1]["validation"]


def test_divergence_is_an_error_not_a_model(split: Path, tmp_path: Path) -> None:
    with pytest.raises(RecsysError, match=r"diverged.*dense_lr"):
        _train(split, tmp_path / "out", training=TRAINING.model_copy(update={"dense_lr": 1e30}))
    assert list(tmp_path.iterdir()) == []


def _dies_at_save(monkeypatch: pytest.MonkeyPatch, number: int, written: bool) -> None:
    """KeyboardInterrupt at the n-th checkpoint: once it is written, or before."""
    real, calls = Checkpoints.save, []

    def dies(self: Checkpoints, *args: object) -> None:
        calls.append(args)
        if len(calls) < number or written:
            real(self, *args)  # type: ignore[arg-type]
        if len(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", dies)


SCHEDULES = {"sparse_schedule": {"warmup_steps": 6, "decay": "linear"}, "dense_schedule": {"decay": "cosine"}}


@pytest.mark.parametrize(("seconds", "written", "more"), [
    (300.0, True, {}),  # a checkpoint an epoch
    (0.0, True, {**SCHEDULES, "clip_norm": 0.5, "evaluate_steps": 3}),  # one after every step
    (0.0, False, {"dense_optimizer": "adagrad", "sparse_optimizer": "adagrad", "precision": "bfloat16"}),
])
def test_interrupted_run_ends_with_identical_metrics(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     seconds: float, written: bool, more: dict) -> None:
    training = TrainingConfig(**{"epochs": 3, "batch_size": 256, "ensemble": 2, "checkpoint_seconds": seconds,
                                 "log_steps": 5, **more})
    model = MODEL.model_copy(update={"dropout": 0.2})
    whole = _train(split, tmp_path / "whole", training=training, model=model, content=toy_content())
    with monkeypatch.context() as patch:
        _dies_at_save(patch, 5, written)
        with pytest.raises(KeyboardInterrupt):
            _train(split, tmp_path / "out", training=training, model=model, content=toy_content())
    assert not (tmp_path / "out").exists()
    resumed = _train(split, tmp_path / "out", training=training, model=model, content=toy_content())
    for part in ("train", "validation", "test", "epochs", "evaluations", "best_epoch"):
        assert resumed[part] == whole[part]
    clock = ("samples_per_second", "input_stall_share", "sums")
    lines = [[{k: v for k, v in line.items() if k not in clock} for line in read_journal(tmp_path / n / "train.jsonl")]
             for n in ("whole", "out")]
    assert lines[0] == lines[1]  # learning rates among them
    steps = [line for line in lines[0] if line["kind"] == "step"]
    assert len(steps) == 2 * (3 + 3 * 8 // 5)  # one every 5 steps, and an epoch's last
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "out")]
    assert weights[0] == weights[1]


def test_validation_slice_keeps_groups_together() -> None:
    from recsys.training.labels import validation_mask

    table = pa.table({"request_id": [f"r{i // 3}" for i in range(3000)], "group_id": [None] * 2900 + ["story"] * 100})
    mask = validation_mask(table, 0.2)
    assert 0.12 < mask[:2900].mean() < 0.28
    assert (mask[:2898].reshape(-1, 3).min(1) == mask[:2898].reshape(-1, 3).max(1)).all()
    assert len(set(mask[2900:])) == 1
    assert not validation_mask(table, 0.0).any()
    assert (validation_mask(table.slice(1000), 0.2) == mask[1000:]).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"dense": ["prise"]}, "column prise: missing column"),
    ({"dense": ["user_id"]}, "column user_id: wrong type"),
    ({"label": {}}, "column label.click: no label for this head"),
    ({"label": {"click": {"kind": "binary", "column": "price"}}}, r"column price, row 0: value not allowed"),
    ({"label": {"click": {"kind": "binomial", "trials": "click", "successes": "trials"}}}, "column trials, row 0"),
])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, change: dict, message: str) -> None:
    split = toy_split(tmp_path / "split", n=100, **change)
    with pytest.raises(InputError, match=message):
        _train(split, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["split"]


def test_truncated_and_missing_files_are_refused(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=100)
    data = (split / "train.parquet").read_bytes()
    (split / "train.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"train\.parquet: not a readable Parquet file"):
        _train(split, tmp_path / "out")
    (split / "train.parquet").unlink()
    with pytest.raises(InputError, match="no such file"):
        _train(split, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["split"]


def test_unknown_device_is_refused(split: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such device"):
        _train(split, tmp_path / "out", device="tpu")


def test_hash_of_content_is_part_of_the_key() -> None:
    ids, vectors = toy_content()
    assert trainer.content_hash((ids, vectors)) != trainer.content_hash((ids, vectors + 1))


def test_an_error_after_training_costs_no_checkpoint(split: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _train(split, tmp_path / "whole")
    real, steps = trainer.evaluate, []

    def breaks(models: list, *args: object) -> object:
        if len(args) == 3:  # the metrics at the end tell how many rows
            raise InputError("storage that hiccups")
        return real(models, *args)

    monkeypatch.setattr(trainer, "evaluate", breaks)
    with pytest.raises(InputError, match="hiccups"):
        _train(split, tmp_path / "out")
    assert list(tmp_path.glob(".out.*.partial/checkpoint/member-0/*"))
    monkeypatch.setattr(trainer, "evaluate", real)
    monkeypatch.setattr(trainer.PlainStepper, "run", lambda *_: steps.append(1) or iter(()))
    assert _train(split, tmp_path / "out")["test"] == whole["test"]
    assert not steps  # nothing was trained again
    assert not list((tmp_path / "out").glob("checkpoint"))


def test_sigterm_during_the_evaluation_stops_after_it(split: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.evaluate

    def asked(*args: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "evaluate", asked)
    with pytest.raises(Stopped, match="after epoch 1"):
        _train(split, tmp_path / "out")
    assert list(tmp_path.glob(".out.*.partial/checkpoint/member-0/*"))


def test_tables_are_told_of_the_best_weights(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache over the tables would else go on serving the last epoch's rows."""
    from recsys.models.embeddings.fused import FusedEmbeddings

    told: list[int] = []
    monkeypatch.setattr(FusedEmbeddings, "loaded", lambda self: told.append(1))
    _train(split, tmp_path / "out")
    assert told == [1]


@pytest.mark.slow
def test_criteo_attribution_reaches_lightgbm(data_home: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "train.py"), "criteo_attribution", "--out", str(tmp_path / "run")]
    subprocess.run(command, check=True, env={**os.environ, "RECSYS_DATA_HOME": str(data_home)}, timeout=500)
    test = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert test["auc"] >= 0.645
    assert test["normalized_entropy"] <= 0.95
    assert test["calibration_ratio"] == pytest.approx(1, abs=0.05)
