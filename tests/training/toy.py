"""A tiny split dataset with every kind of feature, and a click that content decides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ADS, USERS, DIM = 40, 60, 8


def toy_content(ads: int = ADS) -> tuple[list[str], np.ndarray]:
    vectors = np.random.default_rng(5).normal(size=(ads, DIM)).astype(np.float32)
    return [f"ad{i}" for i in range(ads)], vectors


def toy_table(n: int, seed: int, users: int = USERS, ads: int = ADS) -> pa.Table:
    r = np.random.default_rng(seed)
    _, vectors = toy_content(ads)
    likes = np.random.default_rng(6).integers(0, ads, (users, 3))
    user, ad = r.integers(0, users, n), r.integers(0, ads, n)
    price = r.lognormal(size=n)
    taste = vectors[likes[user]].mean(1)
    z = -1.0 + 1.5 * (taste * vectors[ad]).sum(1) / np.sqrt(DIM) - 0.5 * np.log1p(price)
    click = (r.random(n) < 1 / (1 + np.exp(-z))).astype(np.int8)
    return pa.table({
        "impression_id": [f"{seed}-{i}" for i in range(n)], "request_id": [f"{seed}-{i // 2}" for i in range(n)],
        "ad_id": [f"ad{a}" for a in ad], "user_id": [f"u{u}" for u in user],
        "surface": r.choice(["feed", "discovery"], n), "price": np.where(r.random(n) < 0.1, np.nan, price),
        "history": pa.array([[f"ad{a}" for a in likes[u]] for u in user], pa.list_(pa.string())), "click": click,
        "trials": np.full(n, 5, np.int64), "successes": r.binomial(5, 1 / (1 + np.exp(-z))),
    })


def toy_split(folder: Path, n: int = 2000, **changes: object) -> Path:
    """Write train.parquet, test.parquet and dataset.json."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(toy_table(n, 1), folder / "train.parquet", row_group_size=700)
    pq.write_table(toy_table(n // 2, 2), folder / "test.parquet")
    info = {"name": "toy", "dense": ["price"], "sparse": ["ad_id", "user_id", "surface"], "sequence": ["history"],
            "ad_features": ["ad_id"], "label": {"click": {"kind": "binary", "column": "click"}}, **changes}
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder
