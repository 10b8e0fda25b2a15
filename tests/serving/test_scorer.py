from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.config import ModelConfig, TrainingConfig
from recsys.errors import InputError
from recsys.serving.scorer import Scorer
from recsys.training.trainer import train_model
from tests.training.toy import toy_content, toy_split, toy_table


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scorer")
    train_model(toy_split(folder / "split"), ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), content_dim=8),
                TrainingConfig(epochs=1, batch_size=128), folder / "model", content=toy_content())
    return folder / "model"


def test_scores_are_probabilities_and_match_the_metrics(model_dir: Path) -> None:
    import json

    scorer = Scorer.load(model_dir)
    table = toy_table(1000, 2)  # the test part
    p = scorer.score(table)["click"]
    assert p.dtype == np.float64
    assert p.shape == (1000,)
    y = table["click"].to_numpy()
    loss = -(y * np.log(p) + (1 - y) * np.log1p(-p)).mean()
    assert loss == pytest.approx(json.loads((model_dir / "metrics.json").read_text())["test"]["log_loss"], abs=1e-6)
    assert scorer.heads == ["click"]
    assert scorer.columns == ["price", "ad_id", "user_id", "surface", "history"]
    assert scorer.model_id.startswith("model-")


def test_result_does_not_depend_on_the_batch(model_dir: Path) -> None:
    scorer, table = Scorer.load(model_dir), toy_table(300, 4)
    whole = scorer.score(table)["click"]
    parts = np.concatenate([scorer.score(table.slice(a, 7))["click"] for a in range(0, 300, 7)])
    np.testing.assert_allclose(parts, whole, atol=1e-6, rtol=0)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_allclose(scorer.score(table.take(pa.array(order)))["click"], whole[order], atol=1e-6, rtol=0)


def test_rows_never_seen_in_training_score(model_dir: Path) -> None:
    scorer = Scorer.load(model_dir)
    table = pa.table({"price": pa.array([1.0, None]), "ad_id": ["new ad", "ad1"], "user_id": ["new user", None],
                      "surface": ["new surface", "feed"], "history": pa.array([["gone"], None], pa.list_(pa.string()))})
    p = scorer.score(table)["click"]
    assert ((p > 0) & (p < 1)).all()


def test_no_rows_give_no_scores(model_dir: Path) -> None:
    assert Scorer.load(model_dir).score(toy_table(5, 1).slice(5))["click"].shape == (0,)


def test_missing_column_is_named(model_dir: Path) -> None:
    with pytest.raises(InputError, match=r"in\.parquet, column surface: missing column"):
        Scorer.load(model_dir).score(toy_table(5, 1).drop_columns(["surface"]), "in.parquet")


@pytest.mark.parametrize(("name", "message"), [
    ("model.json", "damaged file"), ("model.safetensors", "damaged file"), ("content.safetensors", "damaged file"),
    ("vocabulary.parquet", "not a readable Parquet file"),
])
def test_damaged_folder_is_refused(model_dir: Path, tmp_path: Path, name: str, message: str) -> None:
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() if file.name != name else file.read_bytes()[:50])
    with pytest.raises(InputError, match=message):
        Scorer.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match="no such file"):
        Scorer.load(tmp_path)


@pytest.mark.slow
def test_throughput(model_dir: Path) -> None:
    scorer, table = Scorer.load(model_dir), toy_table(200_000, 9)
    scorer.score(table.slice(0, 1000))
    started = time.perf_counter()
    scorer.score(table)
    assert table.num_rows / (time.perf_counter() - started) > 50_000
