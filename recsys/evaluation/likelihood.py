"""Empirical likelihood interval of a ratio of cluster sums: as short as Student's t, but shaped like the data.

Rare clicks make sums skewed: t intervals reach too low and not high enough. Empirical likelihood asks how far the
clusters' weights must be bent until the ratio is r, so it leans to the side on which the data lean.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from recsys.evaluation.intervals import ClusterSums, Floats, Interval, t_interval

ROUNDING = 1e-12
STEPS = 60  # of Newton's method, and of doublings of the bracket


def empirical_likelihood(sums: ClusterSums, confidence: float = 0.95, null: float | None = None,
                         calibrated: bool = True) -> Interval:
    """Ratios r with -2 log R(r) below a critical value, R the empirical likelihood ratio of E[a_c - r b_c] = 0.

    The critical value is t^2 with nu degrees of freedom. With ``calibrated``, nu = (sum z^2)^2 / sum z^4 over the
    clusters' influences z (at most G - 1): the number of clusters that carry the variance, about the number of
    clicks where clicks are rare. Without it nu is infinite, Owen's chi-square, which covers too little below some
    hundred clicks. This calibration is measured (docs/certification.md), not proven.

    Args:
        sums: G clusters.
        confidence: coverage aimed at.
        null: value of the ratio under the null hypothesis, for the p-value.
        calibrated: see above.

    Returns:
        The interval around ``sums.ratio``, with the t interval's standard error; an end is infinite where no r on
        that side is refused.

    References:
        Owen (1988). Empirical likelihood ratio confidence intervals for a single functional. Biometrika 75(2).
        Karampatziakis, Langford, Mineiro (2020). Empirical likelihood for contextual bandits. NeurIPS.
    """
    plain = t_interval(sums, confidence)
    if not (plain.se or 0.0) > ROUNDING * abs(plain.estimate):  # all clusters alike, up to rounding
        return replace(t_interval(sums, confidence, null), method="el")
    squares = (sums.numerator - plain.estimate * sums.denominator) ** 2
    carrying = float(squares.sum() ** 2 / (squares @ squares))
    nu = max(1.0, min(carrying, len(squares) - 1.0)) if calibrated else np.inf
    critical = float(stdtrit(nu, 0.5 + confidence / 2)) ** 2
    made, counts = sums.distinct()  # rows without a click are all alike
    pairs = made.T
    low, high = (_end(pairs, counts, plain.estimate, sign * plain.se, critical)  # type: ignore[operator]  # t has one
                 for sign in (-1.0, 1.0))
    at_null = None if null is None else np.sqrt(log_ratio(pairs[0] - null * pairs[1], counts))
    p_value = None if at_null is None else float(2 * stdtr(nu, -at_null))
    return replace(plain, low=low, high=high, p_value=p_value, method="el")


def _end(pairs: Floats, counts: Floats, centre: float, step: float, critical: float) -> float:
    def excess(r: float) -> float:
        return log_ratio(pairs[0] - r * pairs[1], counts) - critical

    inside = outside = centre
    for _ in range(STEPS):
        outside = inside + step
        found = excess(outside)
        if np.isposinf(found):  # past the hull of the data: the end lies before it
            return _before_hull(excess, inside, outside)
        if found >= 0:
            return float(brentq(excess, inside, outside, xtol=1e-10 * abs(step), rtol=1e-12))
        inside, step = outside, 2 * step
    return float(np.copysign(np.inf, step))


def _before_hull(excess, inside: float, outside: float) -> float:  # type: ignore[no-untyped-def]
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if excess(middle) >= 0 else (middle, outside)
    return outside


def log_ratio(z: Floats, counts: Floats) -> float:
    """-2 log empirical likelihood ratio of a mean of zero.

    Args:
        z: float64[k], distinct values.
        counts: float64[k], how often each was seen.

    Returns:
        2 sum counts log(1 + l z), l the root of sum counts z / (1 + l z); infinite where all values have one sign.
    """
    top, bottom = float(z.max()), float(z.min())
    if not bottom < 0 < top:
        return 0.0 if bottom == top == 0 else np.inf
    n = float(counts.sum())
    low, high, at = (1 / n - 1) / top, (1 / n - 1) / bottom, 0.0  # every weight lies below 1
    for _ in range(STEPS):
        share = z / (1 + at * z)
        slope = float(counts @ share)
        low, high = (at, high) if slope > 0 else (low, at)
        after = at + slope / float(counts @ (share * share))
        after = after if low < after < high else (low + high) / 2
        if abs(after - at) <= 1e-12 * (high - low) + 1e-15 * abs(at):
            break
        at = after
    return float(2 * (counts @ np.log1p(at * z)))
