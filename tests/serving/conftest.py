"""A small real model, trained once for the whole room, and the data it was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import ModelConfig, TrainingConfig
from recsys.datasets.info import DatasetInfo, Label, save_dataset_info

ADS = 40


def make_ads() -> pa.Table:
    rng = np.random.default_rng(3)
    ids = [f"a{i}" for i in range(ADS)]
    return pa.table({"ad_id": ids, "advertiser_id": [f"v{i % 7}" for i in range(ADS)],
                     "title": [f"ad number {i}" for i in range(ADS)], "topic": [f"t{i % 5}" for i in range(ADS)],
                     "bid": rng.uniform(0.1, 2.0, ADS), "content_hash": [f"{i:064x}" for i in range(ADS)]})


def make_impressions(rows: int, seed: int = 0) -> pa.Table:
    """Impressions whose click rate depends on the ad's topic and on a dense feature."""
    rng, ads = np.random.default_rng(seed), make_ads().to_pydict()
    ad = rng.integers(0, ADS, rows)
    age = rng.normal(40, 12, rows)
    click = rng.random(rows) < 1 / (1 + np.exp(2 - 0.8 * (ad % 5) + 0.03 * (age - 40)))
    picks = rng.integers(0, ADS, (rows, 4))
    return pa.table({
        "impression_id": [f"i{i}" for i in range(rows)], "request_id": [f"r{i}" for i in range(rows)],
        "slot": pa.array(rng.integers(0, 3, rows), pa.int32()),
        "user_id": [f"u{i}" for i in rng.integers(0, 50, rows)], "ad_id": [f"a{i}" for i in ad],
        "advertiser_id": [ads["advertiser_id"][i] for i in ad], "topic": [ads["topic"][i] for i in ad],
        "bid": [ads["bid"][i] for i in ad], "age": age, "history": [[f"a{j}" for j in p] for p in picks[:, :2]],
        "candidates": [[f"a{j}" for j in dict.fromkeys([i, *p])] for i, p in zip(ad, picks, strict=True)],
        "click": pa.array(click.astype(np.int8)),
    })


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder trained on 2,000 impressions by the project's own trainer."""
    from recsys.training.trainer import train_model

    split = tmp_path_factory.mktemp("split")
    pq.write_table(make_impressions(2000, 1), split / "train.parquet")
    pq.write_table(make_impressions(500, 2), split / "test.parquet")
    info = DatasetInfo(name="toy", dense=("age",), sparse=("user_id", "ad_id", "advertiser_id", "topic"),
                       sequence=("history",), ad_features=("advertiser_id", "topic"),
                       label={"click": Label(kind="binary", column="click")})
    save_dataset_info(info, split)
    out = tmp_path_factory.mktemp("model") / "m"
    config = ModelConfig(embedding_dim=4, bottom=(8, 4), top=(8,))
    train_model(split, config, TrainingConfig(epochs=1, batch_size=256), out, name="toy")
    return out


@pytest.fixture(scope="session")
def model_of_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model one of whose columns, ``segment``, holds rows of its table: there is no missing value."""
    from recsys.training.trainer import train_model

    split, rows = tmp_path_factory.mktemp("rows"), 1000
    table = make_impressions(rows, 4).append_column("segment", pa.array(np.arange(rows) % 8, pa.int64()))
    pq.write_table(table, split / "train.parquet")
    pq.write_table(table.slice(0, 100), split / "test.parquet")
    save_dataset_info(DatasetInfo(name="rows", dense=("age",), sparse=("ad_id", "segment"), id_rows={"segment": 8},
                                  label={"click": Label(kind="binary", column="click")}), split)
    config = ModelConfig(embedding_dim=4, bottom=(8, 4), top=(8,))
    train_model(split, config, TrainingConfig(epochs=1, batch_size=256), split / "m", name="rows")
    return split / "m"


@pytest.fixture
def impressions(tmp_path: Path) -> Path:
    """1,000 impressions in row groups of 150, which no shard or batch of the tests is a multiple of."""
    pq.write_table(make_impressions(1000, 5), tmp_path / "impressions.parquet", row_group_size=150)
    return tmp_path / "impressions.parquet"


@pytest.fixture
def ads(tmp_path: Path) -> Path:
    pq.write_table(make_ads(), tmp_path / "ads.parquet")
    return tmp_path / "ads.parquet"
