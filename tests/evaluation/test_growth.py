"""The lift as the data grow: its last look is the report's, and its bounds hold at all looks at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.evaluation.growth import growth
from recsys.evaluation.lift import offpolicy_lift
from tests.evaluation.bandit import Bandit, config
from tests.evaluation.test_segments import comparison

BANDIT = Bandit.make()


def report(when: pa.Array | None, users: int = 2500, **changes) -> dict:
    log, context = BANDIT.log(users, 0)
    if when is not None:
        log = log.append_column("ts", when.slice(0, log.num_rows))
    return offpolicy_lift(log, {n: BANDIT.policy(n, context) for n in ("logged", "good")},
                          config(["logged", "good"], **changes))


def test_the_last_look_is_the_report_and_bounds_are_wider_than_one_looks() -> None:
    times = pa.array(np.random.default_rng(0).permutation(20_000) * 1_000_000, pa.timestamp("us", "UTC"))
    lift = report(times)
    path = lift["growth"]["arms"]["good"]
    assert path[-1]["n"] == lift["arms"]["good"]["n"]
    assert path[-1]["lift"]["estimate"] == pytest.approx(lift["arms"]["good"]["lift"]["estimate"])
    assert path[-1]["one_look"]["low"] == pytest.approx(lift["arms"]["good"]["lift"]["low"], abs=2e-3)
    for look in path:
        assert look["lift"]["low"] < look["one_look"]["low"] < look["one_look"]["high"] < look["lift"]["high"]
    assert [p["n"] for p in path] == sorted(p["n"] for p in path)
    assert [p["until"] for p in path] == sorted(p["until"] for p in path)
    halves = lift["growth"]["halves"]["good"]
    assert halves["first"]["low"] < halves["second"]["high"]
    assert halves["p_value"] > 1e-3  # nothing changes over time here
    assert lift["growth"]["looks"] == 20


def test_rows_of_one_time_are_one_look_and_no_time_is_said() -> None:
    weeks = pa.array(np.repeat([201401, 201402, 201403, 201404], 5000), pa.int64())
    log, context = BANDIT.log(2500, 0)
    log = log.append_column("week", weeks.slice(0, log.num_rows))
    policies = {n: BANDIT.policy(n, context) for n in ("logged", "good")}
    lift = offpolicy_lift(log, policies, config(["logged", "good"], time_column="week"))
    path = lift["growth"]["arms"]["good"]
    assert [p["until"] for p in path] == ["201401", "201402", "201403"]
    assert path[0]["n"] == 5000
    assert "no column ts" in report(None, 300)["growth"]["refused"]


def test_bounds_hold_at_every_look_where_an_interval_of_one_look_does_not() -> None:
    """200 logs without any lift, users who come again: how often does a watcher of 20 looks ever see zero left?"""
    rng, ever = np.random.default_rng(1), {"lift": 0, "one_look": 0}
    setting = config(["base", "a"], growth_looks=20)
    for _ in range(200):
        user = rng.integers(0, 600, 4000)
        taste = rng.normal(0, 0.5, 600)[user]
        base, rows = (1 + taste + rng.normal(0, 1, 4000) for _ in range(2))
        path = growth(comparison(rows, base, user), pa.chunked_array([pa.array(np.arange(4000))]), setting)["arms"]["a"]
        for key in ever:
            ever[key] += any(not p[key]["low"] <= 0 <= p[key]["high"] for p in path)
    assert ever["lift"] <= 0.05 * 200 + 2 * (0.05 * 0.95 * 200) ** 0.5
    assert ever["one_look"] > 0.12 * 200
