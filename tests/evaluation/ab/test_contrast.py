from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import tea_tasting as tt
from scipy.stats import ttest_ind
from tea_tasting.aggr import Aggregates

from recsys.errors import Refused
from recsys.evaluation.ab.contrast import aggregates, always_valid, compare
from recsys.evaluation.ab.units import Metric, read_units
from recsys.evaluation.welch import welch_interval
from tests.evaluation.ab.samples import exposures, units_of, written
from tests.evaluation.test_welch import GBSTATS


def moments(total: float, squares: float, n: int) -> Aggregates:
    return Aggregates(n, {"x": total / n}, {"x": (squares - total**2 / n) / (n - 1)})


def test_known_answers_from_moments():
    """gbstats' absolute t and the estimate of its relative one, through the same door as the verb."""
    made = compare(moments(*GBSTATS[:3]), moments(*GBSTATS[3:]), Metric("x"))
    assert made.relative is not None
    assert made.relative.estimate == pytest.approx(0.70732, abs=1e-5)
    assert made.relative.se == pytest.approx(0.37879, abs=1e-5)
    assert made.absolute.estimate == pytest.approx(0.29, abs=1e-5)
    assert (made.absolute.low, made.absolute.high) == pytest.approx((0.04538, 0.53462), abs=1e-5)
    assert made.absolute.p_value == pytest.approx(0.02016, abs=1e-5)


def test_always_valid_known_answer():
    fixed = welch_interval(*GBSTATS[:2], 3000, *GBSTATS[3:])
    made = always_valid(fixed, 3000 + 3461, tuning=1000)
    assert made.estimate == pytest.approx(0.50336, abs=1e-5)
    assert (made.low, made.high) == pytest.approx((-0.55844, 1.56516), abs=1e-5)


def test_always_valid_p_value_is_where_the_interval_meets_zero():
    fixed = welch_interval(*GBSTATS, relative=False)
    made = always_valid(fixed, 6868)
    assert (made.p_value <= 0.05) == (made.low > 0)
    # at the level of the p-value, with the same mixing rate, the interval ends at zero
    rate = 6868 * (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / 5000
    half = fixed.se * math.sqrt(2 * (rate + 1) / rate * math.log(math.sqrt(rate + 1) / made.p_value))
    assert half == pytest.approx(fixed.estimate)


@pytest.mark.parametrize("metric", [Metric("value"), Metric("click", "rows"), Metric("value", None, "before"),
                                    Metric("click", "rows", "before")])
def test_agrees_with_tea_tasting_on_the_users_table(tmp_path, metric):
    table = exposures(2000, lift=0.2)
    units = read_units(written(tmp_path, table), "arm", "user_id", [metric])
    made = compare(*(aggregates(units, a, metric) for a in "ab"), metric)
    users = table.group_by(["user_id", "arm"]).aggregate([("click", "sum"), ("value", "sum"), ("before", "min"),
                                                          ([], "count_all")])
    users = users.rename_columns(["user_id", "arm", "click", "value", "before", "rows"])
    peer = tt.Experiment(m=tt.RatioOfMeans(metric.numerator, metric.denominator, metric.covariate),
                         variant="arm").analyze(users)["m"]
    assert made.baseline == pytest.approx(peer.control)
    assert made.variant == pytest.approx(peer.treatment)
    assert (made.absolute.low, made.absolute.high) == pytest.approx((peer.effect_size_ci_lower,
                                                                     peer.effect_size_ci_upper))
    assert made.absolute.p_value == pytest.approx(peer.pvalue)
    assert made.absolute.se == pytest.approx(peer.effect_size / peer.statistic)
    assert made.relative is not None
    assert made.relative.estimate == pytest.approx(peer.rel_effect_size)
    size = tt.RatioOfMeans(metric.numerator, metric.denominator, metric.covariate, n_obs=2000).solve_power(users)[0]
    assert made.detectable == pytest.approx(size.effect_size / made.baseline, rel=0.05)  # from both arms' own spread


def test_a_mean_is_students_and_cuped_shortens():
    rng = np.random.default_rng(0)
    a, b = rng.gamma(2, size=300), rng.gamma(2.2, size=400)
    units = units_of({"a": a, "b": b})
    made = compare(*(aggregates(units, n, Metric("x")) for n in "ab"), Metric("x"))
    assert made.absolute.p_value == pytest.approx(ttest_ind(b, a, equal_var=False).pvalue)
    units.values["before"] = units.values["x"] + rng.normal(0, 0.3, 700)
    both = Metric("x", covariate="before")
    adjusted = compare(*(aggregates(units, n, both) for n in "ab"), both)
    assert adjusted.absolute.se < 0.5 * made.absolute.se


def test_cluster_robust_interval_covers_where_rows_do_not(tmp_path):
    """A/A: the lift is 0. By user the interval holds; by impression it is too short."""
    covered = {"user_id": 0, "impression_id": 0}
    metric = Metric("click", "rows")
    rng = np.random.default_rng(1)
    for seed in range(60):
        users = 150
        shown = rng.integers(20, 60, users)
        user = np.repeat(np.arange(users), shown)
        click = rng.random(len(user)) < rng.beta(1, 4, users)[user]
        arm = np.where((np.arange(users) % 2)[user] == 1, "b", "a")
        table = pa.table({"user_id": user, "impression_id": np.arange(len(user)), "arm": arm,
                          "click": click.astype(np.int8)})
        file = written(tmp_path, table, f"{seed}.parquet", 10_000)
        for unit in covered:
            units = read_units(file, "arm", unit, [metric])
            made = compare(*(aggregates(units, a, metric) for a in "ab"), metric)
            covered[unit] += made.absolute.low <= 0 <= made.absolute.high
    assert covered["user_id"] >= 52
    assert covered["impression_id"] < 40


def test_nothing_to_compare_is_refused():
    same = units_of({"a": np.ones(10), "b": np.ones(10)})
    with pytest.raises(Refused, match="same value"):
        compare(*(aggregates(same, n, Metric("x")) for n in "ab"), Metric("x"))
    with pytest.raises(Refused, match="at least two"):
        aggregates(units_of({"a": np.ones(1), "b": np.ones(10)}), "a", Metric("x"))
    zero = units_of({"a": np.arange(5.0), "b": np.arange(5.0)})
    zero.values["below"] = np.zeros(10)
    with pytest.raises(Refused, match="denominator"):
        compare(*(aggregates(zero, n, Metric("x", "below")) for n in "ab"), Metric("x", "below"))


def test_baseline_without_events_has_no_relative_lift():
    units = units_of({"a": np.zeros(50), "b": np.arange(50.0)})
    made = compare(*(aggregates(units, n, Metric("x")) for n in "ab"), Metric("x"))
    assert made.relative is None
    assert "x, read the difference: the baseline's 0 is not above zero" in made.unbounded
    assert made.detectable is None
    assert made.absolute.low > 0


@pytest.mark.parametrize("tuning", [None, 500.0])
def test_a_lift_is_clear_of_zero_where_its_difference_is_and_has_an_end_where_its_baseline_is(tuning):
    """At one look, and at any: one test, of variant - (1 + lift) baseline."""
    rng, seen = np.random.default_rng(3), set()
    for events in (3, 6, 12, 40):
        for lift in (1, 2, 4):
            units = units_of({"a": rng.permutation(np.arange(300) < events),
                              "b": rng.permutation(np.arange(300) < lift * events)})
            made = compare(*(aggregates(units, n, Metric("x")) for n in "ab"), Metric("x"), tuning=tuning)
            if made.relative is None:
                assert "not clearly above zero" in made.unbounded
            else:
                assert (made.relative.low > 0) == (made.absolute.low > 0)
                assert made.relative.p_value == made.absolute.p_value
            seen.add((made.relative is None, made.absolute.low > 0))
    assert seen >= {(True, False), (False, True), (False, False)}


def test_numbers_whose_squares_are_none_are_named():
    units = units_of({"a": np.arange(50.0), "b": np.where(np.arange(50) == 7, 1e300, 1.0)})
    with pytest.raises(Refused, match=r"x reaches 1e\+300 in arm b"):
        aggregates(units, "b", Metric("x"))
