from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys.errors import InputError, Refused
from recsys.evaluation.ab.analysis import Plan, analyse, check_unit
from recsys.evaluation.ab.contrast import always_valid
from recsys.evaluation.ab.units import Metric, Units, read_units
from recsys.evaluation.welch import welch_means
from tests.evaluation.ab.samples import exposures, units_of, written

CTR = Metric("click", "rows", "before")


def run(tmp_path, table: pa.Table, metrics: list[Metric] | None = None, unit: str = "user_id", **plan) -> dict:
    file = written(tmp_path, table)
    units = read_units(file, "arm", unit, metrics or [CTR])
    return analyse(units, metrics or [CTR], Plan("a", **plan), unit, [check_unit(file, unit)])


def test_a_real_lift_is_found_and_reported_whole(tmp_path):
    result = run(tmp_path, exposures(6000, lift=0.3), [CTR, Metric("value")])
    json.dumps(result, allow_nan=False)
    line = result["metrics"]["click/rows"]["variants"]["b"]
    assert line["significant"]
    assert line["decided_on"] == "cuped"
    assert line["cuped"]["variance_reduction"] > 0.1
    assert line["cuped"]["relative"]["low"] < 0.3 < line["cuped"]["relative"]["high"]
    assert line["raw"]["absolute"]["se"] > line["cuped"]["absolute"]["se"]
    assert line["numerators"]["b"] / line["denominators"]["b"] == pytest.approx(line["raw"]["variant"])
    assert 0 < line["cuped"]["detectable_relative_lift"] < line["raw"]["detectable_relative_lift"]
    assert line["p_adjusted"] >= line["p_value"]
    assert sum(result["arms"].values()) == 6000
    assert [c["check"] for c in result["health"]] == ["sample ratio", "one arm per unit", "unit of analysis",
                                                      "pre-period before"]


def test_detectable_lift_is_found_about_four_times_of_five(tmp_path):
    detectable = run(tmp_path, exposures(1200))["metrics"]["click/rows"]["variants"]["b"]["cuped"][
        "detectable_relative_lift"]
    found = [run(tmp_path, exposures(1200, lift=detectable, seed=100 + s))["metrics"]["click/rows"]["variants"]["b"][
        "significant"] for s in range(30)]
    assert 0.6 <= np.mean(found) <= 0.97


def test_sample_ratio_mismatch_refuses_every_number():
    units = units_of({"a": np.ones(821_588), "b": np.ones(815_482)})
    result = analyse(units, [Metric("x")], Plan("a"))
    assert "metrics" not in result
    assert not result["healthy"]
    assert "sample ratio" in result["refused"]
    assert "chi2 22.774, p = 1.82e-06" in result["refused"]
    shares = {"a": 821_588.0, "b": 815_482.0}
    units.values["x"][::7] = 3.0
    assert analyse(units, [Metric("x")], Plan("a", shares=shares))["healthy"]


def test_clustered_data_analysed_per_impression_is_refused(tmp_path):
    result = run(tmp_path, exposures(800), [Metric("click")], "impression_id")
    assert "analyse by user_id" in result["refused"]
    assert "metrics" not in result


def test_randomisation_finer_than_the_unit_is_refused(tmp_path):
    result = run(tmp_path, exposures(800, per_impression=True), [Metric("click")])
    assert "one arm per unit" in result["refused"]


def test_pre_period_bias_is_refused(tmp_path):
    table = exposures(2000)
    tilted = np.array(table["before"]) + 0.5 * (np.array(table["arm"]) == "b")
    table = table.set_column(table.column_names.index("before"), "before", pa.array(tilted))
    assert "pre-period before" in run(tmp_path, table)["refused"]


def test_peeking_at_a_fixed_horizon_is_refused():
    with pytest.raises(Refused, match="looked at 5 times"):
        analyse(units_of({"a": np.arange(9.0), "b": np.arange(9.0)}), [Metric("x")], Plan("a", looks=5, method="fixed"))


def test_always_valid_keeps_its_level_under_peeking_and_fixed_does_not():
    """A/A data looked at twenty times: share of experiments that ever look significant."""
    rng, wrong = np.random.default_rng(0), {"fixed": 0, "sequential": 0}
    for _ in range(300):
        a, b = rng.gamma(1.0, size=(2, 4000))
        looks = [welch_means(a[:n].mean(), a[:n].var(ddof=1), n, b[:n].mean(), b[:n].var(ddof=1), n, relative=False)
                 for n in range(200, 4001, 200)]
        safe = [always_valid(look, 400 * (i + 1), tuning=4000) for i, look in enumerate(looks)]
        for method, made in (("fixed", looks), ("sequential", safe)):
            wrong[method] += any(look.p_value <= 0.05 for look in made)
        assert all((look.p_value <= 0.05) == (not look.low <= 0 <= look.high) for look in safe)
    assert wrong["fixed"] > 45
    assert wrong["sequential"] <= 15


def test_several_looks_make_the_analysis_sequential():
    rng = np.random.default_rng(1)
    units = units_of({n: rng.gamma(1.0, size=300) for n in "ab"})
    once, often = (analyse(units, [Metric("x")], Plan("a", looks=n)) for n in (1, 4))
    assert often["plan"]["method"] == "sequential"
    one, many = (r["metrics"]["x"]["variants"]["b"]["raw"]["absolute"] for r in (once, often))
    assert many["method"] == "always_valid"
    assert many["high"] - many["low"] > 1.3 * (one["high"] - one["low"])


def test_multiplicity_follows_the_named_policy():
    rng = np.random.default_rng(3)
    values = {n: rng.normal(m, 1, 2000) for n, m in (("a", 5), ("b", 5.08), ("c", 5.09), ("d", 5.0))}
    found = {p: analyse(units_of(values), [Metric("x")], Plan("a", multiplicity=p))["metrics"]["x"]["variants"]
             for p in ("none", "holm", "bh")}
    p = sorted(line["p_value"] for line in found["none"].values())
    holm, bh = (sorted(line["p_adjusted"] for line in found[name].values()) for name in ("holm", "bh"))
    assert holm == pytest.approx(np.maximum.accumulate(np.minimum([3 * p[0], 2 * p[1], p[2]], 1)))
    assert bh == pytest.approx(np.minimum.accumulate([p[2], 1.5 * p[1], 3 * p[0]])[::-1])
    assert [line["p_adjusted"] for line in found["none"].values()] == [line["p_value"] for line in
                                                                       found["none"].values()]


def test_winsorising_cuts_the_tail_and_says_so():
    rng = np.random.default_rng(4)
    values = {n: np.append(rng.gamma(1.0, size=999), 500.0 if n == "b" else 1.0) for n in "ab"}
    plain = analyse(units_of(values), [Metric("x")], Plan("a"))["metrics"]["x"]
    cut = analyse(units_of(values), [Metric("x")], Plan("a", winsorise=0.99))["metrics"]["x"]
    assert plain["winsorised"] is None
    assert cut["winsorised"]["share_of_units"] == pytest.approx(0.01)
    assert cut["variants"]["b"]["raw"]["absolute"]["se"] < 0.2 * plain["variants"]["b"]["raw"]["absolute"]["se"]
    assert cut["variants"]["b"]["numerators"] == plain["variants"]["b"]["numerators"]  # what was seen, uncut


def test_little_evidence_is_labelled_or_refused():
    rng = np.random.default_rng(5)
    few = {n: (rng.random(500) < 0.05).astype(float) for n in "ab"}
    line = analyse(units_of(few), [Metric("x")], Plan("a"))["metrics"]["x"]["variants"]["b"]
    assert line["label"] == "exploratory"
    assert 0 < line["bayes"]["chance_to_beat"] < 1
    with pytest.raises(Refused, match="effective sample size"):
        analyse(units_of({"a": np.arange(6.0), "b": np.arange(6.0)}), [Metric("x")], Plan("a"))


def test_bad_plans_are_named():
    units = units_of({"a": np.arange(50.0), "b": np.arange(50.0)})
    for wrong in ({"alpha": 0.0}, {"looks": 0}, {"method": "often"}, {"multiplicity": "some"}, {"tuning": -1.0},
                  {"winsorise": 0.2}):
        with pytest.raises(InputError, match=f"column {next(iter(wrong))}"):
            Plan("a", **wrong)
    with pytest.raises(InputError, match="expected one of a, b"):
        analyse(units, [Metric("x")], Plan("control"))
    with pytest.raises(InputError, match="shares do not match"):
        analyse(units, [Metric("x")], Plan("a", shares={"a": 1.0, "z": 1.0}))
    with pytest.raises(InputError, match="one arm only"):
        analyse(Units(["a"], np.zeros(5, np.int64), 5, {"x": np.ones(5)}, 0), [Metric("x")], Plan("a"))


def test_a_ratio_that_one_unit_dominates_is_refused(tmp_path):
    """Half of all rows are one user's: the standard error over users does not hold that user's own chance."""
    table = exposures(2000)
    heavy = table.filter(pc.equal(table["user_id"], table["user_id"][0])).slice(0, 1)
    table = pa.concat_tables([table, heavy.take(pa.array(np.zeros(table.num_rows, dtype=np.int64)))])
    with pytest.raises(Refused, match="of equal size"):
        run(tmp_path, table.drop_columns(["impression_id"]))
