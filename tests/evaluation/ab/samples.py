"""A small experiment with a known truth, shared by the tests of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.evaluation.ab.units import Units


def exposures(users: int = 3000, lift: float = 0.0, seed: int = 0, arms: tuple[str, ...] = ("a", "b"),
              per_impression: bool = False) -> pa.Table:
    """Rows of users who differ in how much they see and click; arms after the first click ``lift`` more often."""
    rng = np.random.default_rng(seed)
    shown = rng.geometric(0.2, users)
    user = np.repeat(np.arange(users), shown)
    arm = rng.integers(0, len(arms), len(user)) if per_impression else rng.integers(0, len(arms), users)[user]
    rate = rng.beta(1, 8, users)
    before = rng.poisson(30 * rate).astype(float)
    click = rng.random(len(user)) < np.minimum(rate[user] * (1 + lift * (arm > 0)), 1)
    mixed = rng.permutation(len(user))
    table = pa.table({
        "user_id": [f"u{u}" for u in user], "impression_id": [f"i{i}" for i in range(len(user))],
        "arm": np.array(arms)[arm], "click": click.astype(np.int8),
        "value": click * rng.gamma(2.0, 1.5, len(user)), "before": before[user]})
    return table.take(pa.array(mixed))


def written(folder: Path, table: pa.Table, name: str = "log.parquet", rows: int = 997) -> Path:
    """The table as a Parquet file of many row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name, row_group_size=rows)
    return folder / name


def units_of(values: dict[str, np.ndarray], rows: int | None = None) -> Units:
    """Units whose numerator ``x`` is given per arm."""
    arms = sorted(values)
    arm = np.repeat(np.arange(len(arms)), [len(values[a]) for a in arms])
    x = np.concatenate([values[a] for a in arms]).astype(np.float64)
    return Units(arms, arm, rows or len(x), {"x": x, "rows": np.ones(len(x))}, 0)
