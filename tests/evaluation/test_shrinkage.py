from __future__ import annotations

import numpy as np
import pytest

from recsys.evaluation.shrinkage import shrink


def test_equal_errors_give_james_and_steins_estimator() -> None:
    x, v, target = np.array([0.3, -0.1, 0.5, 0.9, 0.2]), 0.04, 0.1
    factor = 3 * v / ((x - target) ** 2).sum()  # (k - 2) V / sum of squares
    made = shrink(x, np.full(5, v**0.5), target)
    assert made.estimate == pytest.approx(x - factor * (x - target), rel=1e-9)
    assert made.factor == pytest.approx(np.full(5, factor), rel=1e-9)
    assert made.between == pytest.approx((((x - target) ** 2).mean() - v) ** 0.5)


def test_estimates_that_differ_less_than_their_noise_are_drawn_as_far_as_k_allows() -> None:
    made = shrink([0.1, 0.12, 0.09, 0.11], [1.0, 2.0, 1.0, 3.0], 0.1)
    assert made.between == 0.0
    assert made.factor == pytest.approx(np.full(4, 0.5))  # (k - 2) / k


def test_noisier_estimates_are_drawn_further_and_two_not_at_all() -> None:
    made = shrink([0.5, 0.5, -0.5, 0.1], [0.1, 0.3, 0.2, 0.05], 0.0)
    order = np.argsort([0.1, 0.3, 0.2, 0.05])
    assert (np.diff(made.factor[order]) > 0).all()
    two = shrink([0.5, -0.5], [0.1, 0.3], 0.0)
    assert two.estimate.tolist() == [0.5, -0.5]
    assert two.between is None


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1])
def test_shrinking_lowers_the_error_and_keeps_the_coverage(spread: float) -> None:
    """2,000 draws of eight segments with unequal errors: total squared error, and mean coverage of 95 % intervals."""
    rng, k = np.random.default_rng(3), 8
    errors = np.array([0.02, 0.03, 0.03, 0.04, 0.05, 0.05, 0.08, 0.1])
    better, covered = 0.0, 0.0
    for _ in range(2000):
        truth = 0.1 + rng.normal(0, spread, k)
        x = truth + rng.normal(0, errors)
        made = shrink(x, errors, 0.1)
        better += ((x - truth) ** 2).sum() - ((made.estimate - truth) ** 2).sum()
        covered += (np.abs(made.estimate - truth) <= 1.96 * made.se).mean()
    assert better > 0
    assert covered / 2000 >= 0.94


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_segment_that_is_most_of_the_data_keeps_its_coverage(share: float) -> None:
    """Twelve segments of one lift, drawn to their own mean: the largest weighs ``share`` in it."""
    rng, k = np.random.default_rng(4), 12
    weights = np.append(share, np.full(k - 1, (1 - share) / (k - 1)))
    errors = 0.02 / np.sqrt(weights)
    covered = np.zeros(k)
    for _ in range(1500):
        x = 0.1 + rng.normal(0, errors)
        made = shrink(x, errors, float((weights * x).sum()))
        covered += np.abs(made.estimate - 0.1) <= 1.96 * made.se
    assert (covered / 1500).min() >= 0.93
