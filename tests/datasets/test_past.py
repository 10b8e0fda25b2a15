from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.datasets.past import add_past
from recsys.datasets.recipe import PastRule
from recsys.errors import InputError

RULES = {
    "liked": PastRule(by="user", latest="ad", where={"click": 1}, length=3),
    "seen": PastRule(by="user", count=True), "clicks": PastRule(by="ad", count=True, where={"click": 1}),
    "rate": PastRule(by="ad", mean="click", prior=2.0),
}


def _table(n: int = 300, seed: int = 0) -> pa.Table:
    r = np.random.default_rng(seed)
    return pa.table({
        "user": [f"u{i}" for i in r.integers(0, 6, n)], "ad": [f"a{i}" for i in r.integers(0, 9, n)],
        "click": pa.array(r.integers(0, 2, n), pa.int8()),
        "ts": pa.array(r.integers(0, 60, n) * 1_000_000, pa.timestamp("us", "UTC")),  # many rows of one instant
    })


def test_columns_are_what_a_slow_search_finds() -> None:
    table = _table()
    found = add_past(table, RULES).to_pylist()
    rows = table.to_pylist()
    for row, made in zip(rows, found, strict=True):
        before = [r for r in rows if r["ts"] < row["ts"]]
        same_user = sorted((r for r in before if r["user"] == row["user"]), key=lambda r: r["ts"])
        same_ad = [r for r in before if r["ad"] == row["ad"]]
        assert made["liked"] == [r["ad"] for r in same_user if r["click"]][-3:]
        assert made["seen"] == len(same_user)
        assert made["clicks"] == sum(r["click"] for r in same_ad)
        overall = np.mean([r["click"] for r in before]) if before else 0.5
        expected = (sum(r["click"] for r in same_ad) + 2 * overall) / (len(same_ad) + 2)
        assert made["rate"] == pytest.approx(expected)


def test_no_outcome_of_its_own_time_or_later_leaks() -> None:
    table = _table()
    made = add_past(table, RULES)
    cut = 30_000_000
    late = table["ts"].cast(pa.int64()).to_numpy() >= cut
    flipped = np.where(late, 1 - table["click"].to_numpy(), table["click"].to_numpy())
    other = add_past(table.set_column(2, "click", pa.array(flipped, pa.int8())), RULES)
    until = pa.array(table["ts"].cast(pa.int64()).to_numpy() <= cut)
    assert made.filter(until).select(list(RULES)).equals(other.filter(until).select(list(RULES)))
    assert not made.select(list(RULES)).equals(other.select(list(RULES)))


def test_missing_columns_and_times_are_refused() -> None:
    table = _table(5)
    with pytest.raises(InputError, match="column site: missing column"):
        add_past(table, {"x": PastRule(by="site", count=True)})
    times = pa.array([None, *table["ts"].to_pylist()[1:]], table["ts"].type)
    with pytest.raises(InputError, match="row 0: past needs the time"):
        add_past(table.set_column(3, "ts", times), RULES)
    with pytest.raises(ValueError, match="exactly one of latest"):
        PastRule(by="user")
    assert add_past(table.slice(0, 0), RULES).num_rows == 0
