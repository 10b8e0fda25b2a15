"""Negatives dropped from training: probabilities end up where they would have been."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from recsys.config import ModelConfig, TrainingConfig
from recsys.models.bundle import load_bundle
from recsys.models.ranker import correct_for_sampling
from recsys.serving.scorer import Scorer
from recsys.training.trainer import train_model
from tests.training.toy import toy_split

KEEP = 0.25


def test_calibrated_as_without_sampling(tmp_path: Path) -> None:
    model = ModelConfig(embedding_dim=4, bottom=(8,), top=(16, 8))
    training = TrainingConfig(batch_size=512, epochs=2, validation_share=0.2, dense_lr=3e-3)
    split = toy_split(tmp_path / "split", 8_000)
    test = pq.read_table(split / "test.parquet")
    ratios, rows = {}, {}
    for keep in (1.0, KEEP):
        out = tmp_path / f"model-{keep}"
        metrics = train_model(split, model, training.model_copy(update={"negative_keep": keep}), out, seed=1)
        ratios[keep] = Scorer.load(out).score(test)["click"].sum() / test["click"].to_numpy().sum()
        rows[keep] = json.loads((out / "manifest.json").read_text())["rows"]["train"]
        assert abs(metrics["validation"]["calibration_ratio"] - 1) < 0.1
        assert abs(metrics["epochs"][0][-1]["validation"]["calibration_ratio"] - 1) < 0.1, "while it trains, too"
    assert rows[KEEP] < 0.75 * rows[1.0]
    assert abs(ratios[KEEP] / ratios[1.0] - 1) < 0.05, ratios
    bundle = load_bundle(tmp_path / f"model-{KEEP}")
    correct_for_sampling(bundle.models[0], KEEP)  # what it would be off by: it has been corrected once
    assert Scorer(bundle).score(test)["click"].sum() / test["click"].to_numpy().sum() < 0.6
