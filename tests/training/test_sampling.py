"""Negatives dropped from training: probabilities end up where they would have been."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import ModelConfig, TrainingConfig
from recsys.models.bundle import load_bundle
from recsys.models.ranker import correct_for_sampling
from recsys.serving.scorer import Scorer
from recsys.training.trainer import train_model
from tests.training.toy import toy_split

KEEP = 0.25


def _drop(split: Path) -> None:
    table = pq.read_table(split / "train.parquet")
    lucky = np.random.default_rng(0).random(table.num_rows) < KEEP
    pq.write_table(table.filter(pa.array((table["click"].to_numpy() == 1) | lucky)), split / "train.parquet")


def test_calibrated_as_without_sampling(tmp_path: Path) -> None:
    model = ModelConfig(embedding_dim=4, bottom=(8,), top=(16, 8))
    training = TrainingConfig(batch_size=512, epochs=2, validation_share=0, dense_lr=3e-3)
    ratios = {}
    for sampled in (False, True):
        split = toy_split(tmp_path / f"split-{sampled}", 8_000)
        if sampled:
            _drop(split)
        train_model(split, model, training, tmp_path / f"model-{sampled}", seed=1)
        test = pq.read_table(split / "test.parquet")
        bundle = load_bundle(tmp_path / f"model-{sampled}")
        clicks = float(test["click"].to_numpy().sum())
        ratios[sampled] = Scorer(bundle).score(test)["click"].sum() / clicks
        if sampled:
            assert ratios[True] > 1.5, "without the correction it promises far too much"
            correct_for_sampling(bundle.models[0], KEEP)
            ratios[True] = Scorer(bundle).score(test)["click"].sum() / clicks
    assert abs(ratios[True] / ratios[False] - 1) < 0.05, ratios
