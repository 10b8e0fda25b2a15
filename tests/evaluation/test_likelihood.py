from __future__ import annotations

import numpy as np
import pytest
from statsmodels.emplike.descriptive import DescStat

from recsys.evaluation import intervals
from recsys.evaluation.likelihood import empirical_likelihood, log_ratio

ONES = np.ones


def test_agrees_with_statsmodels_for_a_mean():
    x = np.random.default_rng(0).gamma(0.3, 1, 60)
    made = empirical_likelihood(intervals.ClusterSums(x, ONES(60)), null=0.5, calibrated=False)
    assert (made.low, made.high) == pytest.approx(DescStat(x).ci_mean(), rel=1e-6)
    statistic, p_value = DescStat(x).test_mean(0.5, result_object=False)
    assert made.p_value == pytest.approx(p_value, rel=1e-6)
    assert log_ratio(x - 0.5, ONES(60)) == pytest.approx(statistic, rel=1e-6)


def test_ratio_is_the_mean_of_its_estimating_equation():
    rng = np.random.default_rng(1)
    a, b = rng.poisson(2.0, 200).astype(float), 1.0 + rng.poisson(6.0, 200)
    made = empirical_likelihood(intervals.ClusterSums(a, b), calibrated=False)
    for end in (made.low, made.high):
        assert log_ratio(a - end * b, ONES(200)) == pytest.approx(3.841458820694124, rel=1e-6)
    t = intervals.t_interval(intervals.ClusterSums(a, b))
    assert (made.low, made.high) == pytest.approx((t.low, t.high), abs=0.15 * (t.high - t.low))
    assert made.se == t.se


def test_calibrated_covers_rare_events_where_t_and_chi_square_do_not():
    """200 samples of 1,500 weighted rows with about six clicks."""
    rng, truth = np.random.default_rng(2), 0.004 * 3.0
    hit = dict.fromkeys(("t", "chi2", "el"), 0)
    for _ in range(200):
        x = (rng.random(1500) < 0.004) * rng.gamma(1.0, 3.0, 1500)
        sums = intervals.ClusterSums(x, ONES(1500))
        for name, made in (("t", intervals.t_interval(sums)), ("el", empirical_likelihood(sums)),
                           ("chi2", empirical_likelihood(sums, calibrated=False))):
            hit[name] += made.low <= truth <= made.high
    assert hit["el"] >= 200 * (0.95 - 2 * np.sqrt(0.95 * 0.05 / 200))
    assert hit["t"] < hit["chi2"] < hit["el"]
    assert hit["t"] < 180


def test_interval_dispatches_and_labels():
    rng = np.random.default_rng(3)
    sums = intervals.ClusterSums(rng.gamma(2, size=200), rng.gamma(3, size=200))
    made = intervals.interval(sums, intervals.Choice("el", "exploratory", "few clicks"), null=0.7)
    assert (made.method, made.label) == ("el", "exploratory")
    assert made.low < made.estimate < made.high
    assert (made.p_value <= 0.05) == (not made.low <= 0.7 <= made.high)


def test_degenerate_sums():
    flat = empirical_likelihood(intervals.ClusterSums(ONES(5), ONES(5)), null=1.0)
    assert (flat.low, flat.high, flat.p_value) == (1.0, 1.0, 1.0)
    two = empirical_likelihood(intervals.ClusterSums(np.array([1.0, 3.0]), ONES(2)))
    assert 1.0 <= two.low <= 2.0 <= two.high <= 3.0  # never past the hull of the data
    assert log_ratio(np.array([1.0, 2.0]), ONES(2)) == np.inf


def test_clusters_that_are_alike_up_to_rounding_have_no_width():
    """A rate of exactly 1 in every cluster, but for the last bit of its sums."""
    size = np.random.default_rng(0).integers(1, 9, 500).astype(float)
    made = empirical_likelihood(intervals.ClusterSums(size * (1 + 2e-16 * (np.arange(500) % 2)), size))
    assert made.estimate == pytest.approx(1.0)
    assert made.high - made.low < 1e-12
