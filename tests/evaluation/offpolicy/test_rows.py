from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import InputError, Refused
from recsys.evaluation import offpolicy
from recsys.evaluation.intervals import cluster_sums, t_interval
from tests.evaluation.bandit import Bandit

BANDIT = Bandit.make()


def replace(table: pa.Table, **columns) -> pa.Table:
    for name, values in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(values, table.schema.field(name).type))
    return table


def test_target_equal_to_logging_gives_the_sample_mean():
    """w = 1, so IPS, SNIPS and DR with q = 0 are all the mean of the clicks."""
    table, context = BANDIT.log(200, seed=1)
    log = offpolicy.read_log(table)
    arm = offpolicy.join_policy(log, BANDIT.policy("logged", context, model=False))
    assert arm.weight == pytest.approx(np.ones(len(log)))
    for estimator in ("ips", "snips", "dr"):
        assert offpolicy.pseudo_outcomes(log, arm, "ctr", estimator).mean() == pytest.approx(log.click.mean())
    assert offpolicy.pseudo_outcomes(log, arm, "ctr", "dm") is None
    facts = offpolicy.diagnostics(log, arm)
    assert facts["ess"] == pytest.approx(len(log))
    assert facts["mean_weight"] == pytest.approx(1.0)


def test_weights_and_model_values_against_a_loop():
    """The vectorised join against one dictionary look-up per row, with rows of the policy shuffled."""
    table, context = BANDIT.log(40, seed=2)
    policy = BANDIT.policy("good", context, wrong=0.7)
    policy = policy.take(np.random.default_rng(0).permutation(policy.num_rows))
    log = offpolicy.read_log(table)
    arm = offpolicy.join_policy(log, policy)
    by_key = {(r["request_id"], r["ad_id"]): r for r in policy.to_pylist()}
    for i, row in enumerate(table.to_pylist()):
        own = by_key[row["request_id"], row["ad_id"]]
        every = [by_key[row["request_id"], f"a{a}"] for a in range(6)]
        assert arm.weight[i] == pytest.approx(own["probability"] / row["propensity"])
        assert arm.q[i] == own["expected_click"]
        assert arm.q_policy[i] == pytest.approx(sum(r["probability"] * r["expected_click"] for r in every))
        assert arm.q_price_policy[i] == pytest.approx(
            sum(r["probability"] * r["expected_click"] * r["price_per_click"] for r in every))
    expected = arm.q_policy + arm.weight * (log.click - arm.q)
    assert offpolicy.pseudo_outcomes(log, arm, "ctr", "dr") == pytest.approx(expected)


def test_estimators_find_the_truth():
    """Mean over 50 logs within four standard errors of the exact value, with an outcome model 40 % too low."""
    cases = [(e, m) for e in ("ips", "snips", "dr") for m in ("ctr", "revenue_per_mille")]
    found = {case: [] for case in cases}
    direct = []
    for seed in range(50):
        table, context = BANDIT.log(150, seed=seed)
        log = offpolicy.read_log(table)
        arm = offpolicy.join_policy(log, BANDIT.policy("good", context, wrong=0.6))
        for estimator, metric in cases:
            found[estimator, metric].append(offpolicy.pseudo_outcomes(log, arm, metric, estimator).mean())
        direct.append(offpolicy.pseudo_outcomes(log, arm, "ctr", "dm").mean())
    for (_, metric), values in found.items():
        assert abs(np.mean(values) - BANDIT.truth("good")[metric]) < 4 * np.std(values) / np.sqrt(50)
    assert np.mean(direct) < 0.7 * BANDIT.truth("good")["ctr"]  # the direct method is as wrong as its model


def test_a_good_model_narrows_the_interval():
    table, context = BANDIT.log(1500, seed=3)
    log = offpolicy.read_log(table)
    arm = offpolicy.join_policy(log, BANDIT.policy("good", context))
    errors = {e: t_interval(cluster_sums(offpolicy.pseudo_outcomes(log, arm, "ctr", e), 1.0, log.clusters)).se
              for e in ("dr", "ips")}
    assert errors["dr"] < errors["ips"]


def test_engagement_is_a_click_with_dwell_time():
    table, context = BANDIT.log(100, seed=4)
    log = offpolicy.read_log(table, engaged_ms=10_000.0)
    expected = (table["click"].to_numpy() == 1) & (table["dwell_ms"].to_numpy() >= 10_000)
    assert (log.engaged == expected).all()
    arm = offpolicy.join_policy(log, BANDIT.policy("logged", context, model=False))
    assert offpolicy.pseudo_outcomes(log, arm, "engagement").mean() == pytest.approx(expected.mean())
    assert offpolicy.read_log(table.drop_columns(["dwell_ms"])).engaged is None


def test_propensity_that_is_unknown_missing_or_reconstructed_is_not_used():
    table, _ = BANDIT.log(100, seed=5)
    with pytest.raises(Refused, match=r"1 of .* rows have no logged propensity"):
        offpolicy.read_log(replace(table, propensity=[None, *table["propensity"].to_pylist()[1:]]))
    with pytest.raises(Refused, match="column propensity is missing"):
        offpolicy.read_log(table.drop_columns(["propensity"]))
    counts = {v["values"]: v["counts"] for v in table["ad_id"].value_counts().to_pylist()}
    shares = [counts[a] / table.num_rows for a in table["ad_id"].to_pylist()]
    with pytest.raises(Refused, match="reconstructed"):
        offpolicy.read_log(replace(table, propensity=shares))
    with pytest.raises(Refused, match="propensity_source"):
        offpolicy.read_log(table.append_column("propensity_source", pa.array(["model"] * table.num_rows)))


def test_wrong_propensities_are_refused_by_the_mean_weight():
    table, context = BANDIT.log(800, seed=6)
    policy = BANDIT.policy("uniform", context)
    log = offpolicy.read_log(table)
    offpolicy.require_unit_weight(offpolicy.diagnostics(log, offpolicy.join_policy(log, policy)), "uniform")
    flat = offpolicy.read_log(replace(table, propensity=np.full(table.num_rows, 0.25)))
    with pytest.raises(Refused, match="mean importance weight"):
        offpolicy.require_unit_weight(offpolicy.diagnostics(flat, offpolicy.join_policy(flat, policy)), "uniform")


def test_support_gap_shows_in_the_mean_weight():
    """The logging policy never shows ad 0, the target mostly does: E[w] = 1 - its mass on ad 0."""
    logging = BANDIT.logging.copy()
    logging[:, 0] = 0.0
    logging /= logging.sum(axis=1, keepdims=True)
    world = Bandit(BANDIT.rate, logging, {"uniform": BANDIT.targets["uniform"]}, BANDIT.price)
    table, context = world.log(800, seed=7)
    log = offpolicy.read_log(table)
    facts = offpolicy.diagnostics(log, offpolicy.join_policy(log, world.policy("uniform", context)))
    assert facts["mean_weight"] == pytest.approx(5 / 6, abs=0.02)
    with pytest.raises(Refused, match="never could"):
        offpolicy.require_unit_weight(facts, "uniform")


def test_policy_that_does_not_fit_the_log_is_an_input_error():
    table, context = BANDIT.log(60, seed=8)
    log = offpolicy.read_log(table)
    policy = BANDIT.policy("good", context)
    half = replace(policy, probability=policy["probability"].to_numpy() / 2)
    with pytest.raises(InputError, match=r"'r0' slot 0: probabilities do not sum to 1; got 0\.5"):
        offpolicy.join_policy(log, half)
    with pytest.raises(InputError, match="no candidate of this"):
        offpolicy.join_policy(log, policy.slice(6))
    twice = replace(policy, ad_id=["a0", "a0", *policy["ad_id"].to_pylist()[2:]])
    shown_zero = replace(table, ad_id=["a0"] * table.num_rows, propensity=np.ones(table.num_rows))
    with pytest.raises(InputError, match="candidate listed twice"):
        offpolicy.join_policy(offpolicy.read_log(shown_zero), twice)
    with pytest.raises(InputError, match=r"column probability, row 1: value not allowed; got 1\.5"):
        offpolicy.join_policy(log, replace(policy, probability=[0.0, 1.5, *policy["probability"].to_pylist()[2:]]))


def test_unit_must_be_a_column_of_the_log():
    table, _ = BANDIT.log(20, seed=9)
    with pytest.raises(InputError, match="column group_id: missing column"):
        offpolicy.read_log(table, unit="group_id")
    with pytest.raises(InputError, match="no rows"):
        offpolicy.read_log(table.slice(0, 0))


def test_several_slots_of_a_request_are_separate_decisions():
    log = offpolicy.read_log(pa.table({
        "impression_id": ["i0", "i1"], "request_id": ["r", "r"], "slot": pa.array([0, 2], pa.int32()),
        "user_id": ["u", "v"], "ad_id": ["a", "b"], "propensity": [0.5, 0.25], "click": pa.array([1, 0], pa.int8()),
    }))
    policy = pa.table({
        "request_id": ["r"] * 5, "slot": pa.array([2, 2, 0, 0, 7], pa.int32()), "ad_id": ["a", "b", "a", "b", "a"],
        "probability": [0.9, 0.1, 0.3, 0.7, 1.0],
    })
    assert offpolicy.join_policy(log, policy).weight == pytest.approx([0.6, 0.4])


def test_clipping_lowers_the_estimate():
    table, context = BANDIT.log(300, seed=10)
    log = offpolicy.read_log(table)
    arm = offpolicy.join_policy(log, BANDIT.policy("good", context, model=False))
    values = [offpolicy.pseudo_outcomes(log, arm, "ctr", "clipped_ips", clip).mean() for clip in (0.5, 1.0, 2.0, None)]
    assert values == sorted(values)
    assert set(offpolicy.diagnostics(log, arm)["clip_sensitivity"]) == {"2", "5", "10", "20", "50"}


def test_the_direct_method_gets_no_interval():
    with pytest.raises(Refused, match="direct method alone is never published"):
        offpolicy.require_not_direct("dm")
