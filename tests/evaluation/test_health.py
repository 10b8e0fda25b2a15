from __future__ import annotations

import numpy as np
import pyarrow as pa

from recsys.evaluation import health


def log(slots: dict[str, list[int]]) -> pa.Table:
    rows = [(r, s) for r, held in slots.items() for s in held]
    return pa.table({"request_id": [r for r, _ in rows], "slot": pa.array([s for _, s in rows], pa.int32())})


def test_a_slot_that_lacks_below_a_logged_one_was_lost() -> None:
    whole = {f"r{i}": [0, 1, 2] for i in range(100)}
    assert health.logging_loss(log(whole))[0]["ok"]
    one = health.logging_loss(log(whole | {"r0": [0, 2]}))[0]
    assert one["ok"]
    assert one["detail"].startswith("1 of 300 slots")
    many = health.logging_loss(log(whole | {f"r{i}": [2] for i in range(10)}))[0]
    assert not many["ok"]
    assert many["detail"].startswith("20 of 300 slots")
    assert health.logging_loss(log(whole).drop_columns(["slot"])) == []


def test_a_shown_ad_must_have_been_a_candidate() -> None:
    table = pa.table({"ad_id": ["a", "b", "c"], "candidates": [["a", "b"], ["b"], ["a", "b"]]})
    made = health.exposure(table)[0]
    assert not made["ok"]
    assert made["detail"].startswith("1 of 3 shown ads")
    assert health.exposure(table.slice(0, 2))[0]["ok"]
    assert health.exposure(pa.table({"ad_id": ["a"]})) == []


def test_support_names_the_arm_that_leaves_it_most() -> None:
    assert health.support({"a": 0.001, "b": 0.0}, 0.01)["ok"]
    made = health.support({"a": 0.001, "b": 0.02}, 0.01)
    assert not made["ok"]
    assert "(b)" in made["detail"]


def test_repeats_are_counted_alike_by_value_and_by_hash() -> None:
    plain = pa.table({"impression_id": ["x", "y", "x", None, None]})
    hashed = pa.table({"impression_id": pa.array(np.array([7, 9, 7], np.uint64))})
    assert health.duplicates(plain, ())["detail"] == "1 of 5 rows repeat an impression"
    assert health.duplicates(hashed, ())["detail"] == "1 of 3 rows repeat an impression"
    twice = pa.table({"impression_id": ["x", "y"], "request_id": ["r", "r"], "slot": [0, 0]})
    assert health.duplicates(twice)["detail"] == "1 of 2 rows repeat an impression or a decision"
