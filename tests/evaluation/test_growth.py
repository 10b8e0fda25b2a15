"""The lift as the data grow: its last look is the report's, and its bounds hold at all looks at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from recsys.evaluation.comparison import ArmRows, Comparison
from recsys.evaluation.growth import growth
from recsys.evaluation.intervals import cluster_sums, t_interval
from recsys.evaluation.lift import offpolicy_lift
from recsys.evaluation.sequential import always_valid_multiplier
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
    assert path[-1]["one_look"] == lift["arms"]["good"]["lift"]
    assert (path[-1]["method"], path[-1]["label"]) == (lift["arms"]["good"]["interval_method"], "confirmatory")
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
        both = comparison(rows, base, user)
        plain = {n: replace(arm, weight=None, hits=None) for n, arm in both.arms.items()}  # t at every look
        both = replace(both, arms=plain, paired=False)
        path = growth(both, pa.chunked_array([pa.array(np.arange(4000))]), setting)["arms"]["a"]
        for key in ever:
            ever[key] += any(not p[key]["low"] <= 0 <= p[key]["high"] for p in path)
    assert ever["lift"] <= 0.05 * 200 + 2 * (0.05 * 0.95 * 200) ** 0.5
    assert ever["one_look"] > 0.12 * 200


def test_looks_are_intervalled_by_their_own_evidence() -> None:
    """Few clicks: the report bets, so do its looks; a look that would be refused is none."""
    rare = Bandit.make(click_rate=0.02)
    log, context = rare.log(700, 4)
    log = log.append_column("ts", pa.array(np.arange(log.num_rows)))
    lift = offpolicy_lift(log, {n: rare.policy(n, context) for n in ("logged", "good")}, config(["logged", "good"]))
    path, whole = lift["growth"]["arms"]["good"], lift["arms"]["good"]
    assert whole["interval_method"] == "betting"
    assert path[-1]["one_look"] == whole["lift"]
    assert {(p["method"], p["label"]) for p in path} == {("betting", "exploratory")}
    assert len(path) < 20
    assert path[0]["n"] > log.num_rows / 20
    for look in path:
        assert look["lift"]["low"] <= look["one_look"]["low"] < look["one_look"]["high"] < look["lift"]["high"]
    assert lift["growth"]["halves"]["good"]["p_value"] is None
    drift = next(t for t in lift["threats"] if t["threat"] == "Novelty and drift")
    assert "Not enough evidence" in drift["evidence"]


def test_bounds_hold_at_every_look_where_clicks_are_few() -> None:
    """150 logs without a lift, some clicks of 200 users: a normal sequence of the same looks fails, the bounds hold."""
    rng, ever, normal, setting = np.random.default_rng(5), 0, 0, config(["base", "a"], growth_looks=10)
    told = 0
    for _ in range(150):
        user = rng.integers(0, 200, 1200)
        weights = rng.lognormal(0, 1.2, (2, 1200))
        click = rng.random(1200) < 0.02
        arms = {n: ArmRows({"ctr": w * click}, 0.0, {}, {}, (), w, w * click)
                for n, w in zip(("base", "a"), weights, strict=True)}
        both = Comparison(arms, "base", "ctr", user, 0.95, 200, 0, True)
        path = growth(both, pa.chunked_array([pa.array(np.arange(1200))]), setting)["arms"]["a"]
        told += len(path)
        ever += any(not p["lift"]["low"] <= 0 <= p["lift"]["high"] for p in path)
        for p in path:
            sums = cluster_sums(arms["a"].rows["ctr"][:p["n"]], arms["base"].rows["ctr"][:p["n"]], user[:p["n"]])
            plain = t_interval(sums)
            half = plain.se * always_valid_multiplier(p["units"], 0.05, setting.decision.tuning)
            if not plain.estimate - half <= 1 <= plain.estimate + half:
                normal += 1
                break
    assert told > 600
    assert ever <= 0.05 * 150
    assert normal > ever
