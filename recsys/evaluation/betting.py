"""Intervals that do not lean on the central limit theorem: betting, and empirical Bernstein.

At ad click rates a normal or bootstrap interval covers far less than it says when there are few effective
clicks. A betting interval is the set of values that a gambler who bets against them could not get rich on:
it holds at any sample size for bounded data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from recsys.errors import InputError
from recsys.evaluation.intervals import ClusterSums, Floats, Interval

Game = Callable[[float], tuple[Floats, Floats]]  # ratio -> outcomes, and the lowest outcomes there can be
CAP = 0.5  # share of the wealth that a single outcome can lose (WSR's c)
DOUBLINGS = 26  # of the distance from the estimate, before an end counts as infinite
BOUND_FACTOR = 2.0  # headroom over the largest loss seen, where nothing is known of what it could have been


def _bounded(x: ArrayLike, low: float, high: float) -> Floats:
    values = np.asarray(x, dtype=np.float64)
    if not high > low:
        raise InputError("bounds not allowed", got=(low, high), expected="low < high")
    outside = ~((values >= low) & (values <= high))
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError("value outside its bounds", row=row, got=float(values[row]),
                         expected=f"within [{low}, {high}]")
    if len(values) < 2:
        raise InputError("too few values", got=len(values), expected="at least two")
    return values


def empirical_bernstein(x: ArrayLike, low: float, high: float, confidence: float = 0.95) -> Interval:
    """Two-sided empirical Bernstein interval of the mean of independent values in [low, high].

    Half width sqrt(2 V ln(4/a) / n) + 7 (high - low) ln(4/a) / (3 (n - 1)), V the sample variance,
    a = 1 - confidence.

    References:
        Maurer, Pontil (2009). Empirical Bernstein bounds and sample variance penalization. COLT, theorem 4.
    """
    values = _bounded(x, low, high)
    n, log_term = len(values), np.log(4 / (1 - confidence))
    half = np.sqrt(2 * values.var(ddof=1) * log_term / n) + 7 * (high - low) * log_term / (3 * (n - 1))
    mean = float(values.mean())
    return Interval(mean, max(low, mean - float(half)), min(high, mean + float(half)), method="empirical_bernstein")


def betting_mean(x: ArrayLike, low: float, high: float, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Hedged-capital betting interval of the mean of independent values in [low, high].

    For each candidate mean m (values and m scaled to [0, 1]) two gamblers bet the predictable amounts
    l_t = sqrt(2 ln(2/a) / (n s^2_{t-1})), capped at CAP/m and CAP/(1-m), that the mean is above and below m;
    m is kept while half of either gambler's wealth never reached 1/a. Either wealth is monotone in m, so the ends
    are roots. Values are taken in a random order fixed by ``seed``, as the bets depend on it.

    Args:
        x: float[n].
        low: known lower bound of a value.
        high: known upper bound of a value.
        confidence: guaranteed coverage.
        seed: of the order.

    References:
        Waudby-Smith, Ramdas (2023). Estimating means of bounded random variables by betting. JRSS B 86(1).
    """
    values = _bounded(x, low, high)
    u = np.random.default_rng(seed).permutation((values - low) / (high - low))
    n, alpha, mean = len(u), 1 - confidence, float(u.mean())
    steps = np.arange(1, n + 1)
    running_mean = (0.5 + np.cumsum(u)) / (steps + 1)
    running_var = (0.25 + np.cumsum((u - running_mean) ** 2)) / (steps + 1)
    stake = np.sqrt(2 * np.log(2 / alpha) / (n * np.concatenate([[0.25], running_var[:-1]])))
    # The mean above m is the mean of 1 - u below 1 - m: one search serves both ends.
    at_low = _refused_below(u, stake, alpha, mean)
    at_high = 1 - _refused_below(1 - u, stake, alpha, 1 - mean)
    return Interval(float(values.mean()), low + (high - low) * at_low, low + (high - low) * at_high, method="betting")


def _refused_below(u: Floats, stake: Floats, alpha: float, mean: float) -> float:
    """The largest m below the mean (to 2^-36 of it) that the gambler on a higher mean has refused; 0 if none."""
    def excess(m: float) -> float:
        return float(np.cumsum(np.log1p(np.minimum(stake, CAP / m) * (u - m))).max()) - np.log(2 / alpha)

    step = 2.0**-36 * mean
    if not mean > 0 or excess(step) < 0:
        return 0.0
    if excess(mean) >= 0:
        return mean
    return max(0.0, float(brentq(excess, step, mean, xtol=step / 2)) - step)  # the root's refused side


def betting_interval(sums: ClusterSums, confidence: float = 0.95, seed: int = 0,
                     bound_factor: float = BOUND_FACTOR) -> Interval:
    """Betting interval of a ratio of cluster sums, by inverting the test of E[a_c - r b_c] = 0.

    Each candidate ratio r makes clusters z_c = a_c - r b_c; the two gamblers of :func:`betting_mean` bet on the
    sign of their mean. The true bounds of z_c are not known for off-policy data (weights of ads that were not
    shown are not logged), so the largest loss that these clusters could have made stands in for each; where
    ``sums.largest`` is not known, ``bound_factor`` times the largest that they made. Coverage is then no theorem, but
    measured (docs/certification.md). That is why its label is ``exploratory``.

    Args:
        sums: G clusters.
        confidence: coverage aimed at.
        seed: of the clusters' order.
        bound_factor: headroom over the largest loss made; not used where ``sums.largest`` is known.

    Returns:
        Each end is where the gambler on that side first gets rich, going out from the estimate (to a hundredth of a
        standard error, outwards); infinite where no ratio on that side is refused.
    """
    centre = sums.ratio
    order = np.random.default_rng(seed).permutation(len(sums.numerator))
    a, b = sums.numerator[order], sums.denominator[order]
    largest, factor = ((a, bound_factor) if sums.largest is None
                       else (np.maximum(a, sums.largest[order]), 1.0))
    z = (a - centre * b) / b.mean()
    reach = max(float(np.sqrt(z @ z)) / len(a), 1e-12 * max(1.0, abs(centre)))
    # Who bets on z > 0 is ruined by low values, who bets on z < 0 by high ones.
    low = _end(lambda r: (a - r * b, a - r * b), centre, -reach, 1 - confidence, factor)
    high = _end(lambda r: (r * b - a, r * b - largest), centre, reach, 1 - confidence, factor)
    return Interval(centre, low, high, method="betting")


def _end(game: Game, centre: float, reach: float, alpha: float, factor: float) -> float:
    """The first ratio, going out from the estimate in the direction of ``reach``, that its gambler refuses."""
    def excess(r: float) -> float:
        z, lowest = game(r)
        return _peak(z, factor * max(0.0, -float(lowest.min())), alpha) - np.log(2 / alpha)

    inside, outside = centre, centre + 2 * reach
    for _ in range(DOUBLINGS):
        if excess(outside) >= 0:
            break
        inside, outside = outside, centre + 2 * (outside - centre)
    else:
        return float(np.copysign(np.inf, reach))
    step = 0.01 * abs(reach)
    # At the estimate itself an early peak can be above the line: then the end lies there.
    root = inside if excess(inside) >= 0 else float(brentq(excess, inside, outside, xtol=step / 2))
    return root + float(np.copysign(step, reach))


def _peak(z: Floats, worst: float, alpha: float) -> float:
    """Highest log wealth of a gambler who bets that the mean of z is above 0, by :func:`betting_mean`'s amounts.

    ``worst`` is the largest loss, -z, that is reckoned with.
    """
    n = len(z)
    with np.errstate(divide="ignore", invalid="ignore"):
        cap = np.float64(CAP) / worst
        # nothing is staked before a cluster is seen
        stake = np.minimum(np.sqrt(2 * np.log(2 / alpha) / n * np.arange(1, n) / np.cumsum(z[:-1] * z[:-1])), cap)
    stake[~np.isfinite(stake)] = 0.0
    return float(np.cumsum(np.log1p(stake * z[1:])).max(initial=0.0))
