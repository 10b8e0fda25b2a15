"""Revenue, welfare, surplus, cost per click and hides of an arm, against the bandit's truth."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from recsys.evaluation import offpolicy
from recsys.evaluation.economics import economics_rows
from recsys.evaluation.intervals import cluster_sums, t_interval
from recsys.evaluation.lift import offpolicy_lift
from tests.evaluation.bandit import Bandit, config
from tests.report.test_schema import check

BANDIT = Bandit.make()
BID = BANDIT.price * 1.5  # what a click is worth in the test's market
HIDE = np.random.default_rng(7).uniform(0.01, 0.1, BANDIT.rate.shape)


def market(users: int, seed: int):
    table, context = BANDIT.log(users, seed)
    ad = np.array([int(a[1:]) for a in table["ad_id"].to_pylist()])
    hide = np.random.default_rng(seed + 10**6).random(len(ad)) < HIDE[context, ad]
    return table.append_column("hide", pa.array(hide.astype(np.int8))), context


def policy(name: str, context: np.ndarray, **changes) -> pa.Table:
    return BANDIT.policy(name, context, **changes).append_column("bid", pa.array(BID[context].ravel()))


def truth(name: str) -> dict[str, float]:
    shown = BANDIT.targets[name]
    clicks = shown * BANDIT.rate
    known = BANDIT.truth(name)
    return {"welfare_per_mille": float(1000 * (clicks * BID).sum(axis=1).mean()),
            "hide": float((shown * HIDE).sum(axis=1).mean()),
            "cost_per_click": known["revenue_per_mille"] / known["ctr"] / 1000,
            "surplus_per_mille": float(1000 * (clicks * (BID - BANDIT.price)).sum(axis=1).mean()), **known}


@pytest.mark.parametrize("estimator", ["dr", "ips", "snips"])
def test_every_metric_is_found_in_the_mean_and_covered(estimator) -> None:
    errors: dict[str, list[float]] = {}
    inside: dict[str, list[bool]] = {}
    known = truth("good")
    for seed in range(30):
        table, context = market(500, seed)
        log = offpolicy.read_log(table)
        own = policy("good", context, wrong=0.8)
        arm = offpolicy.join_policy(log, own)
        made = {m: offpolicy.pseudo_outcomes(log, arm, m, estimator) for m in offpolicy.METRICS}
        rows, events = economics_rows(table, log, own, arm, made, estimator)
        assert rows.keys() == events.keys()
        assert set(rows) == {"welfare_per_mille", "surplus_per_mille", "cost_per_click", "hide"}
        np.testing.assert_allclose(rows["welfare_per_mille"] - rows["surplus_per_mille"], made["revenue_per_mille"])
        for metric, values in rows.items():
            found = t_interval(cluster_sums(values, 1.0, log.clusters))
            errors.setdefault(metric, []).append(found.estimate / known[metric] - 1)
            inside.setdefault(metric, []).append(found.low <= known[metric] <= found.high)
    for metric, found_errors in errors.items():
        se = np.std(found_errors, ddof=1) / np.sqrt(30)
        assert abs(np.mean(found_errors)) < 4 * se + 1e-9, metric
        assert np.mean(inside[metric]) >= 0.8, metric


def test_linearised_cost_per_click_has_the_delta_methods_error() -> None:
    table, context = market(600, 1)
    log = offpolicy.read_log(table)
    own = policy("good", context)
    arm = offpolicy.join_policy(log, own)
    made = {m: offpolicy.pseudo_outcomes(log, arm, m) for m in offpolicy.METRICS}
    rows = economics_rows(table, log, own, arm, made)[0]["cost_per_click"]
    linear = t_interval(cluster_sums(rows, 1.0, log.clusters))
    ratio = t_interval(cluster_sums(made["revenue_per_mille"] / 1000, made["ctr"], log.clusters))
    assert linear.estimate == pytest.approx(ratio.estimate)
    assert linear.se == pytest.approx(ratio.se, rel=0.02)  # rows a cluster vary: equal up to that


def test_the_report_carries_both_sides_of_the_market_with_their_truth() -> None:
    table, context = market(2500, 3)
    arms = ["logged", "good"]
    lift = offpolicy_lift(table, {n: policy(n, context) for n in arms}, config(arms), truth={n: truth(n) for n in arms})
    found = lift["arms"]["good"]["secondary"]
    for metric in ("welfare_per_mille", "surplus_per_mille", "cost_per_click", "hide", "revenue_per_mille"):
        one = found[metric]
        assert one["value"] == pytest.approx(one["true_value"], rel=0.25), metric
        assert one["lift"]["low"] < one["lift"]["high"]
        base = lift["arms"]["logged"]["secondary"][metric]["value"]
        assert one["absolute_lift"]["estimate"] == pytest.approx(one["value"] - base)
        assert one["se"] > 0


def test_what_is_not_there_is_left_out() -> None:
    table, context = market(300, 4)
    log = offpolicy.read_log(table)
    bare = BANDIT.policy("good", context).drop_columns(["price_per_click"])
    arm = offpolicy.join_policy(log, bare)
    made = {m: offpolicy.pseudo_outcomes(log, arm, m) for m in offpolicy.METRICS}
    assert set(economics_rows(table.drop_columns(["hide"]), log, bare, arm, made)[0]) == set()
    assert set(economics_rows(table, log, bare, arm, made)[0]) == {"hide"}


def test_each_metric_is_intervalled_by_its_own_events() -> None:
    table, context = market(9000, 3)
    hide = table["hide"].to_numpy().copy()
    at = table.column_names.index("hide")

    def lift_of(hides: int) -> dict:
        kept = np.zeros_like(hide)
        kept[np.flatnonzero(hide)[:hides]] = 1
        arms = ["logged", "good"]
        setting = config(arms).resolved() | {"decision": {"guardrails": [
            {"metric": "hide", "better": "lower", "tolerated": 0.9}]}}
        return offpolicy_lift(table.set_column(at, "hide", pa.array(kept)), {n: policy(n, context) for n in arms},
                              type(config(arms)).model_validate(setting))

    few, none = lift_of(60), lift_of(1)
    arm = few["arms"]["good"]
    assert arm["label"] == arm["secondary"]["revenue_per_mille"]["label"] == "confirmatory"
    assert arm["secondary"]["hide"]["label"] == "exploratory"
    assert "effective clicks" in arm["interval_reason"]
    guard = few["decision"]["guardrails"]["good"]["hide"]
    assert (guard["status"], guard["note"]) == ("unclear", "exploratory evidence")
    assert few["decision"]["verdict"]["good"] == "Review"
    alone = none["arms"]["good"]["secondary"]["hide"]  # one hide carries no interval; the goal keeps its own
    assert (alone["lift"], alone["value_interval"]) == (None, None)
    assert "no interval is published" in alone["refused"]
    assert alone["value"] >= 0
    assert none["arms"]["good"]["lift"] == arm["lift"]
    check("lift", json.loads(json.dumps(none)))  # a refused metric is in the published schema too
