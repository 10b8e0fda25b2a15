"""Intervals that do not lean on the central limit theorem: betting, and empirical Bernstein.

At ad click rates a normal or bootstrap interval covers far less than it says when there are few effective
clicks. A betting interval is the set of values that a gambler who bets against them could not get rich on:
it holds at any sample size for bounded data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import InputError
from recsys.evaluation.intervals import ClusterSums, Floats, Interval

CAP = 0.5  # share of the wealth that a single outcome can lose (WSR's c)
BOUND_FACTOR = 2.0  # headroom over the largest cluster seen, where the true bound is not known


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
    are found by halving. Values are taken in a random order fixed by ``seed``, as the bets depend on it.

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
    refused, kept = 0.0, mean
    while kept - refused > 2.0**-36 * mean:
        m = (refused + kept) / 2
        wealth = np.cumsum(np.log1p(np.minimum(stake, CAP / m) * (u - m))).max()
        refused, kept = (m, kept) if wealth >= np.log(2 / alpha) else (refused, m)
    return refused


def _peak(log_returns: Floats) -> Floats:
    peak: Floats = np.cumsum(log_returns, axis=-1).max(axis=-1)
    return peak


def betting_interval(sums: ClusterSums, confidence: float = 0.95, seed: int = 0, bound_factor: float = BOUND_FACTOR,
                     grid: int = 160) -> Interval:
    """Betting interval of a ratio of cluster sums, by inverting the test of E[a_c - r b_c] = 0.

    Each candidate ratio r makes clusters z_c = a_c - r b_c; the two gamblers of :func:`betting_mean` bet on the
    sign of their mean. The true bounds of z_c are not known for off-policy data (weights of ads that were not
    shown are not logged), so ``bound_factor`` times the largest loss seen stands in for each: coverage is then
    no theorem, but measured (benchmarks/interval_coverage.py). That is why its label is ``exploratory``.

    Args:
        sums: G clusters.
        confidence: coverage aimed at.
        seed: of the clusters' order.
        bound_factor: headroom over the largest cluster seen.
        grid: candidate ratios per search.

    Returns:
        The hull of the kept ratios; an end is infinite where no ratio on that side is refused.
    """
    centre = sums.ratio
    order = np.random.default_rng(seed).permutation(len(sums.numerator))
    a, b = sums.numerator[order], sums.denominator[order]
    z = (a - centre * b) / b.mean()
    reach = max(float(np.sqrt(z @ z)) / len(a), 1e-12 * max(1.0, abs(centre)))
    ends = [_search(a, b, centre, sign * reach, 1 - confidence, bound_factor, grid) for sign in (-1.0, 1.0)]
    return Interval(centre, min(ends), max(ends), method="betting")


def _search(a: Floats, b: Floats, centre: float, reach: float, alpha: float, factor: float, grid: int) -> float:
    """The kept ratio farthest from the estimate on one side, looked for on ever wider grids."""
    for _ in range(8):
        ratios = centre + reach * np.linspace(0, 12, grid + 1)
        kept = np.flatnonzero(_survives(a, b, ratios, alpha, factor))
        last = int(kept[-1]) if len(kept) else 0
        if last < grid:
            return float(ratios[last + 1])  # outward by one step: the end lies between the two
        reach *= 6
    return float("-inf") if reach < 0 else float("inf")


def _survives(a: Floats, b: Floats, ratios: Floats, alpha: float, factor: float) -> NDArray[np.bool_]:
    n = len(a)
    out = np.empty(len(ratios), dtype=bool)
    block = max(1, 2_000_000 // n)
    for at in range(0, len(ratios), block):
        r = ratios[at:at + block, None]
        z = a - r * b
        seen = np.cumsum(z * z, axis=1)[:, :-1] / np.arange(1, n)
        with np.errstate(divide="ignore"):
            stake = np.sqrt(2 * np.log(2 / alpha) / (n * seen))
        stake = np.concatenate([np.zeros((len(r), 1)), stake], axis=1)  # nothing is staked before a cluster is seen
        wealth = np.maximum(_peak(_log_returns(stake, z, factor)), _peak(_log_returns(stake, -z, factor)))
        out[at:at + block] = wealth + np.log(0.5) < np.log(1 / alpha)
    return out


def _log_returns(stake: Floats, z: Floats, factor: float) -> Floats:
    # Only the losing side needs a bound: who bets on z > 0 is ruined by low values alone.
    worst = np.maximum(-z.min(axis=1, keepdims=True), 0.0)
    with np.errstate(divide="ignore"):
        capped = np.minimum(stake, CAP / (factor * worst))
    finite = np.where(np.isfinite(capped), capped, 0.0)
    returns: Floats = np.log1p(finite * z)
    return returns
