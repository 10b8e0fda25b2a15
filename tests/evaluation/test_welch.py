from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq

from recsys.errors import InputError, Refused
from recsys.evaluation.intervals import Interval
from recsys.evaluation.welch import fieller, relative_lift, welch_interval, welch_means

GBSTATS = (1396.87, 52377.9767, 3407, 2422.7, 134698.29, 3461)


def test_relative_lift_of_gbstats_known_answer():
    made = welch_interval(*GBSTATS)
    assert made.estimate == pytest.approx(0.70732, abs=1e-5)
    assert (made.low, made.high) == pytest.approx((-0.03526, 1.44989), abs=1e-5)
    assert made.p_value == pytest.approx(0.06191, abs=1e-5)
    assert made.se == pytest.approx(0.37879, abs=1e-5)


def test_absolute_difference_known_answer():
    made = welch_interval(*GBSTATS, relative=False)
    assert made.estimate == pytest.approx(0.29)
    assert (made.low, made.high) == pytest.approx((0.04538, 0.53462), abs=1e-5)
    assert made.p_value == pytest.approx(0.02016, abs=1e-5)


def lift_of(a: float, variance_a: float, n_a: int, b: float, variance_b: float, n_b: int) -> tuple[Interval, Interval]:
    difference = welch_means(a, variance_a, n_a, b, variance_b, n_b, relative=False)
    return difference, relative_lift(a, variance_a / n_a, b, variance_b / n_b, difference)


def test_the_lift_is_clear_of_zero_where_the_difference_is_and_not_where_the_delta_method_says():
    a, b = GBSTATS[0] / GBSTATS[2], GBSTATS[3] / GBSTATS[5]
    spread = [(s - n * m * m) / (n - 1) for m, s, n in ((a, GBSTATS[1], GBSTATS[2]), (b, GBSTATS[4], GBSTATS[5]))]
    difference, made = lift_of(a, spread[0], GBSTATS[2], b, spread[1], GBSTATS[5])
    assert difference.low > 0
    assert welch_interval(*GBSTATS).low < 0  # of the same sums
    assert 0 < made.low < made.estimate < made.high
    assert made.estimate == pytest.approx(0.70732, abs=1e-5)
    assert made.se == pytest.approx(0.37879, abs=1e-5)
    assert made.p_value == difference.p_value
    assert made.method == "fieller"


@given(st.floats(0.01, 10), st.floats(0, 1), st.floats(-5, 10), st.floats(1e-4, 1), st.floats(0.5, 4))
def test_ends_are_where_the_test_of_the_ratio_stops_refusing(base, base_se, other, other_se, multiplier):
    assume(base > 1.01 * multiplier * base_se)

    def excess(r: float) -> float:
        return abs(other - r * base) / np.sqrt(other_se**2 + r * r * base_se**2) - multiplier

    low, high = fieller(base, base_se**2, other, other_se**2, multiplier)
    assert low < other / base < high
    for end, out in ((low, low - 1e-3 * (high - low)), (high, high + 1e-3 * (high - low))):
        inside = end + (end - out)
        assert excess(inside) < 0 < excess(out)
        assert brentq(excess, inside, out) == pytest.approx(end, rel=1e-6, abs=1e-6)
    # the ratio of the same numbers in another unit
    assert fieller(3 * base, 9 * base_se**2, 3 * other, 9 * other_se**2, multiplier) == pytest.approx((low, high))


def test_a_baseline_that_could_be_zero_has_no_lift():
    words = r"baseline's 1 is not clearly above zero \(interval -0.2 to 2.2\), so a lift over it has no upper end"
    with pytest.raises(Refused, match=words + "$"):  # nor a lower one
        fieller(1.0, 0.36, 0.5, 0.1, 2.0)
    with pytest.raises(Refused, match=words + "; the variant has at least 1.3[0-9] times as much") as found:
        fieller(1.0, 0.36, 3.0, 0.1, 2.0)
    least = float(str(found.value).split()[-4])
    assert 3.0 - least == pytest.approx(2 * np.sqrt(0.1 + least**2 * 0.36), rel=0.01)
    with pytest.raises(Refused, match="not above zero"):
        lift_of(0.0, 0.0, 10, 1.0, 1.0, 10)
    with pytest.raises(Refused, match="standard error"):
        relative_lift(1.0, 0.0, 1.0, 0.0, Interval(0.0, 0.0, 0.0))


def test_lifts_of_rare_events_keep_their_level_and_the_delta_method_does_not():
    """Two arms of 500 users with about 10 and 15 skewed events: the delta method errs twice as often."""
    rng, true, missed = np.random.default_rng(0), 1.5, {"delta": 0, "fieller": 0}
    for _ in range(2000):
        a, b = (rng.poisson(rate * rng.gamma(0.5, 2, 500)).astype(float) for rate in (0.02, 0.02 * true))
        if a.sum() < 5:
            continue
        facts = (a.mean(), a.var(ddof=1), 500, b.mean(), b.var(ddof=1), 500)
        delta = welch_means(*facts)
        missed["delta"] += not delta.low <= true - 1 <= delta.high
        try:
            made = lift_of(*facts)[1]
        except Refused:
            continue
        missed["fieller"] += not made.low <= true - 1 <= made.high
    assert missed["fieller"] <= 2000 * (0.05 + 3 * 0.005)
    assert missed["delta"] > 1.3 * missed["fieller"]


def test_too_few_units_are_refused():
    with pytest.raises(InputError, match="too few units"):
        welch_interval(1.0, 1.0, 1, 2.0, 2.0, 2)
