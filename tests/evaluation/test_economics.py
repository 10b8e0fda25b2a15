"""Revenue, welfare, surplus, cost per click and hides of an arm, against the bandit's truth."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import Refused
from recsys.evaluation import offpolicy
from recsys.evaluation.comparison import ArmRows, Comparison
from recsys.evaluation.economics import economics_rows
from recsys.evaluation.intervals import Choice, cluster_sums, effective, interval, t_interval
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


def of_market(users: int, seed: int) -> tuple[dict, pa.Table, np.ndarray]:
    table, context = market(users, seed)
    arms = ["logged", "good"]
    return offpolicy_lift(table, {n: policy(n, context) for n in arms}, config(arms)), table, context


@pytest.mark.parametrize(("users", "label"), [(2500, "confirmatory"), (140, "exploratory")])
def test_cost_per_click_is_intervalled_from_revenue_and_clicks_themselves(users: int, label: str) -> None:
    lift, table, context = of_market(users, 3)
    log = offpolicy.read_log(table)
    made, sums = {}, {}
    for name in ("logged", "good"):
        arm = offpolicy.join_policy(log, policy(name, context))
        paid, clicks = (offpolicy.pseudo_outcomes(log, arm, m) for m in ("revenue_per_mille", "ctr"))
        sums[name] = cluster_sums(paid / 1000, clicks, log.clusters)
        found = lift["arms"][name]["secondary"]["cost_per_click"]
        assert found["label"] == label
        choice = Choice("t+el" if label == "confirmatory" else "betting", label, "")
        made[name] = interval(sums[name], choice, seed=0)
        assert found["value_interval"] == pytest.approx({"low": made[name].low, "high": made[name].high})
        assert found["interval_method"] == ("t" if label == "confirmatory" and name == "good" else made[name].method)
    one = lift["arms"]["good"]["secondary"]["cost_per_click"]
    if label == "confirmatory":
        assert one["se"] > 0
        return
    own, base = (interval(sums[n], choice, 0.975, seed=0) for n in ("good", "logged"))
    assert one["lift"]["low"] == pytest.approx(own.low / base.high - 1)
    assert one["lift"]["high"] == pytest.approx(own.high / base.low - 1)
    assert one["absolute_lift"]["high"] == pytest.approx(own.high - base.low)
    assert one["se"] is None


def test_costs_of_few_clicks_cover_or_are_refused() -> None:
    """Prices that differ, eight to twenty clicks: betting on paid - r bought holds the cost, Student's t does not."""
    hits: dict[str, list[bool]] = {"cost": [], "t": []}
    rows, choice = 2000, Choice("el", "exploratory", "")
    for seed in range(100):
        rng = np.random.default_rng(seed)
        click = (rng.random(rows) < 0.006).astype(float)
        paid = click * rng.gamma(1.0, 1.0, rows)
        events = effective(paid)
        arm = ArmRows({"revenue_per_mille": 1000 * paid, "ctr": click}, rows, {"cost_per_click": events}, {})
        c = Comparison({"a": arm}, "a", "ctr", np.arange(rows), 0.95, 0, 0, paired=True)
        if events < 5:
            with pytest.raises(Refused, match="no interval of a cost is published below 5"):
                c.cost("a", "cost_per_click", choice)
            continue
        made, plain = c.cost("a", "cost_per_click", choice), t_interval(cluster_sums(paid, click, np.arange(rows)))
        assert made.method == "betting"
        hits["cost"].append(made.low <= 1 <= made.high)
        hits["t"].append(plain.low <= 1 <= plain.high)
    assert len(hits["cost"]) > 60
    assert np.mean(hits["cost"]) >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / len(hits["cost"])) > np.mean(hits["t"])


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
