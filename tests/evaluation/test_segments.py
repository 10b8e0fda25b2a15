"""Segments: read as declared, tested with their dependence, corrected and shrunk."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from scipy.stats import kstest

from recsys.config import DecisionConfig, ExperimentConfig
from recsys.errors import InputError
from recsys.evaluation.comparison import ArmRows, Comparison
from recsys.evaluation.lift import offpolicy_lift, randomized_lift
from recsys.evaluation.segments import Segments, equal_lifts, read_segments
from tests.evaluation.bandit import Bandit, config
from tests.evaluation.test_lift import ghostly
from tests.evaluation.test_randomized import simulated

BANDIT = Bandit.make()


def table(**columns) -> pa.Table:
    n = len(next(iter(columns.values())))
    return pa.table({"request_id": [f"r{i}" for i in range(n)], **columns})


def test_frequent_values_are_kept_the_rest_pooled_and_nulls_are_a_segment() -> None:
    made = read_segments(table(s=["b", "a", "b", None, "c", "a", "b", "d", None]), ["s"], 3)["s"]
    assert made.labels == ["a", "b", "not known", "other"]
    assert made.codes.tolist() == [1, 0, 1, 2, 3, 0, 1, 3, 2]
    few = read_segments(table(s=[1, 2, 1]), ["s"])["s"]
    assert (few.labels, few.codes.tolist()) == (["1", "2"], [0, 1, 0])


def test_numbers_with_many_values_are_cut_at_quartiles() -> None:
    values = [float(i) for i in range(100)] + [None]
    made = read_segments(table(s=values), ["s"], 12)["s"]
    assert made.labels == ["0 to 24.75", "24.75 to 49.5", "49.5 to 74.25", "74.25 to 99", "not known"]
    assert np.bincount(made.codes).tolist() == [25, 25, 25, 25, 1]


def test_a_segment_that_differs_within_a_request_is_no_segment() -> None:
    log = pa.table({"request_id": ["r", "r", "q"], "s": ["x", "y", "x"], "slot": [0, 1, 0]})
    with pytest.raises(InputError, match="column s, row 1: segment differs within a request"):
        read_segments(log, ["s"])
    assert read_segments(log, ["slot"])["slot"].labels == ["0", "1"]
    with pytest.raises(InputError, match="missing column"):
        read_segments(log, ["t"])


def test_outcomes_are_refused_in_the_experiment_file() -> None:
    for name in ("click", "ad_id", "dwell_ms"):
        with pytest.raises(ValidationError, match="known only once an ad was shown"):
            DecisionConfig.model_validate({"segments": [name]})
    with pytest.raises(ValidationError, match="every segment once"):
        DecisionConfig.model_validate({"segments": ["device", "device"]})


def comparison(rows: np.ndarray, base: np.ndarray, clusters: np.ndarray) -> Comparison:
    def arm(x: np.ndarray) -> ArmRows:
        return ArmRows({"ctr": x}, 1e5, {"ctr": 1e4}, {}, (), np.ones(len(x)), x)

    return Comparison({"base": arm(base), "a": arm(rows)}, "base", "ctr", clusters, 0.95, 200, 0, True)


def test_equal_lifts_has_uniform_p_values_where_users_are_in_several_segments() -> None:
    rng, p = np.random.default_rng(0), []
    for _ in range(400):
        user = np.repeat(np.arange(300), 6)
        taste = rng.normal(0, 0.4, 300)[user]  # moves all of a user's rows, whatever the segment
        base = 1 + 0.3 * rng.normal(size=len(user))
        rows = 1.1 * base + taste + 0.3 * rng.normal(size=len(user))
        codes = rng.integers(0, 4, len(user))
        found = equal_lifts(comparison(rows, base, user), Segments(list("wxyz"), codes), "a", range(4))
        assert found is not None
        p.append(found["p_value"])
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def report(effect: bool, users: int = 2500, **decision) -> dict:
    log, context = BANDIT.log(users, 1)
    # In the other half of the contexts, the arm does what the baseline does: no lift there.
    good, logged = BANDIT.policy("good", context), BANDIT.policy("logged", context)
    half = np.repeat(context % 2 == 0, BANDIT.rate.shape[1])
    mixed = np.where(half, good["probability"].to_numpy(), logged["probability"].to_numpy())
    if effect:
        good = good.set_column(good.column_names.index("probability"), "probability", pa.array(mixed))
    log = log.append_column("half", pa.array(np.where(context % 2 == 0, "works", "idle")))
    log = log.append_column("thirds", pa.array([f"t{c % 3}" for c in context]))
    setting = config(["logged", "good"]).resolved() | {"decision": {"segments": ["half", "thirds"], **decision}}
    return offpolicy_lift(log, {"logged": logged, "good": good}, ExperimentConfig.model_validate(setting))


def test_an_effect_of_one_segment_is_found_there_and_not_elsewhere() -> None:
    lift = report(effect=True)
    found = lift["segments"]["half"]["arms"]["good"]
    assert found["heterogeneity"]["p_adjusted"] < 1e-6
    assert found["values"]["works"]["p_adjusted"] < 1e-6
    assert abs(found["values"]["idle"]["lift"]["estimate"]) < 1e-9
    assert found["values"]["idle"]["p_adjusted"] == 1.0
    assert found["between_sd"] is None  # two segments: nothing is shrunk
    assert found["values"]["works"]["shrunk"] is None
    thirds = lift["segments"]["thirds"]
    overall = lift["arms"]["good"]["lift"]["estimate"]
    for one in thirds["arms"]["good"]["values"].values():
        assert abs(one["shrunk"]["estimate"] - overall) <= abs(one["lift"]["estimate"] - overall)
        assert one["p_adjusted"] >= one["p_value"]
    assert sum(v["n"] for v in thirds["values"].values()) == lift["arms"]["good"]["n"]


def test_without_enough_evidence_no_normal_interval_or_test_stands_beside_a_betting_interval() -> None:
    lift = report(effect=False, users=200)
    for column in ("half", "thirds"):
        arm = lift["segments"][column]["arms"]["good"]
        assert {one["label"] for one in arm["values"].values()} == {"exploratory"}
        assert arm["heterogeneity"] is None
    for one in lift["segments"]["thirds"]["arms"]["good"]["values"].values():
        assert one["interval_method"] == "betting"
        assert one["shrunk"]["estimate"] != one["lift"]["estimate"]
        assert (one["shrunk"]["low"], one["shrunk"]["high"]) == (None, None)
    whole = report(effect=False)["segments"]["thirds"]["arms"]["good"]
    assert whole["heterogeneity"]["segments"] == ["t0", "t1", "t2"]
    assert all(one["shrunk"]["low"] < one["shrunk"]["high"] for one in whole["values"].values())


def test_ads_that_the_log_never_shows_could_make_the_difference() -> None:
    log, context = BANDIT.log(2500, 1)
    log = log.append_column("thirds", pa.array([f"t{c % 3}" for c in context]))
    policies = {"logged": BANDIT.policy("logged", context), "good": ghostly(BANDIT.policy("good", context))}
    setting = config(["logged", "good"]).resolved() | {"decision": {"segments": ["thirds"]}}
    arm = offpolicy_lift(log, policies, ExperimentConfig.model_validate(setting))["segments"]["thirds"]["arms"]["good"]
    plain = report(effect=False)["segments"]["thirds"]["arms"]["good"]
    assert arm["heterogeneity"] is None
    for label, one in arm["values"].items():
        assert one["lift"]["high"] > plain["values"][label]["lift"]["high"]
        assert one["shrunk"]["low"] is None


def test_multiplicity_is_the_rules() -> None:
    by = {m: report(effect=False, users=600, multiplicity=m)["segments"]["thirds"]["arms"]["good"]["values"]
          for m in ("none", "bh", "holm")}
    for label, one in by["none"].items():
        assert one["p_adjusted"] == one["p_value"]
        assert one["p_value"] <= by["bh"][label]["p_adjusted"] <= by["holm"][label]["p_adjusted"]


def test_little_evidence_in_a_segment_is_refused_there_alone() -> None:
    lift = report(effect=False, users=300, segments=["half", "user_id"], segment_values=2)
    users = lift["segments"]["user_id"]["arms"]["good"]["values"]
    assert [k for k, v in users.items() if "refused" in v] == [k for k in users if k != "other"]
    assert "lift" in users["other"]
    assert lift["segments"]["user_id"]["arms"]["good"]["heterogeneity"] is None


def test_without_declared_segments_none_is_looked_for() -> None:
    assert report(effect=False, users=400, segments=[])["segments"] == {}


def test_randomised_tests_have_segments_and_weeks_too() -> None:
    """A test's segment is that of its rows; stories are the units, in each segment by themselves."""
    table, rate = simulated(500, seed=2)
    request = np.unique(table["request_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    table = table.append_column("topic", pa.array([f"t{r % 2}" for r in request]))
    table = table.append_column("week", pa.array(201400 + request * 40 // (request.max() + 1)))
    plain = config(["uniform", "scores"], method="randomized", unit="group_id", time_column="week").resolved()
    setting = ExperimentConfig.model_validate(plain | {"decision": {"segments": ["topic"]}})
    lift = randomized_lift(table, {"uniform": None, "scores": rate}, setting)
    found = lift["segments"]["topic"]
    assert sum(v["n"] for v in found["values"].values()) == lift["arms"]["scores"]["n"]
    for one in found["arms"]["scores"]["values"].values():
        assert one["interval_method"] == "t"
        assert one["p_adjusted"] < 1e-6
    path = lift["growth"]["arms"]["scores"]
    assert path[-1]["n"] == lift["arms"]["scores"]["n"]
    assert path[-1]["until"] == "201439"
    assert {n["check"] for n in lift["not_checked"]} == {"exposure, logging loss", "pre-period bias"}
    assert lift["arms"]["scores"]["diagnostics"]["viewers_of_picks"] < lift["arms"]["scores"]["diagnostics"]["viewers"]
    with pytest.raises(InputError, match="segment differs within a request"):
        randomized_lift(table.append_column("x", pa.array([str(i) for i in range(table.num_rows)])),
                        {"uniform": None, "scores": rate},
                        ExperimentConfig.model_validate(plain | {"decision": {"segments": ["x"]}}))
