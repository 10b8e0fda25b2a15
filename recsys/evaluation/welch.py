"""Two independent samples' means, one line per unit of randomisation: their difference, and one's lift over the other.

The relative lift is Fieller's: the ratios r that a test of mean_b - r mean_a = 0 does not refuse. It holds 0 exactly
where the interval of the difference does, and has no upper end where mean_a itself could be 0.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit

from recsys.errors import InputError, Refused
from recsys.evaluation.intervals import Interval, two_sided


def welch_interval(
    sum_a: float, squares_a: float, n_a: int, sum_b: float, squares_b: float, n_b: int,
    confidence: float = 0.95, relative: bool = True,
) -> Interval:
    """Difference of two independent samples' means from their sums: absolute, or relative to sample a's mean.

    The relative form is the delta method for mean_b / mean_a - 1, as GrowthBook has it, and covers too little where
    sample a has few events (docs/decisions/0044-relative-lift.md): what is published is :func:`relative_lift`. Degrees
    of freedom after Welch and Satterthwaite.

    Args:
        sum_a: sum of the baseline sample; ``squares_a`` its sum of squares; ``n_a`` its size.
        squares_a: see ``sum_a``.
        n_a: see ``sum_a``.
        sum_b: the same of the variant.
        squares_b: see ``sum_b``.
        n_b: see ``sum_b``.
        confidence: coverage aimed at.
        relative: divide by sample a's mean.

    References:
        Deng, Knoblich, Lu (2018). Applying the delta method in metric analytics. KDD.
    """
    if min(n_a, n_b) < 2:
        raise InputError("too few units", got=(n_a, n_b), expected="at least two in each sample")
    mean_a, mean_b = sum_a / n_a, sum_b / n_b
    variance_a = (squares_a - n_a * mean_a**2) / (n_a - 1)
    variance_b = (squares_b - n_b * mean_b**2) / (n_b - 1)
    return welch_means(mean_a, variance_a, n_a, mean_b, variance_b, n_b, confidence, relative)


def welch_means(
    mean_a: float, variance_a: float, n_a: int, mean_b: float, variance_b: float, n_b: int,
    confidence: float = 0.95, relative: bool = True,
) -> Interval:
    """:func:`welch_interval` from each sample's mean and variance per unit (of a ratio: by the delta method)."""
    if relative and mean_a <= 0:
        raise Refused(f"the baseline's mean is {mean_a:.4g}: a relative difference from it means nothing")
    error_a, error_b = variance_a / n_a, variance_b / n_b
    spread = error_a + error_b
    df = spread**2 / (error_a**2 / (n_a - 1) + error_b**2 / (n_b - 1)) if spread > 0 else n_a + n_b - 2.0
    if relative:
        estimate = mean_b / mean_a - 1
        se = float(np.sqrt(error_b / mean_a**2 + error_a * mean_b**2 / mean_a**4))
    else:
        estimate, se = mean_b - mean_a, float(np.sqrt(spread))
    half = float(stdtrit(df, 0.5 + confidence / 2)) * se
    return Interval(estimate, estimate - half, estimate + half, se, two_sided(estimate, se, df), "welch")


def fieller(base: float, base_error: float, other: float, other_error: float, multiplier: float) -> tuple[float, float]:
    """Ends of the ratio of two independent means: r with (other - r base)^2 <= m^2 (other_error + r^2 base_error).

    Args:
        base: mean of the denominator; ``base_error`` its squared standard error.
        base_error: see ``base``.
        other: mean of the numerator; ``other_error`` its squared standard error.
        other_error: see ``other``.
        multiplier: m, half-width of the difference's interval in standard errors: a quantile of Student's t, or of a
            confidence sequence (which holds at every r, and so the ends hold at every look).

    Raises:
        Refused: the base is within m standard errors of zero, so that ratios without end are allowed.

    References:
        Fieller (1954). Some problems in interval estimation. JRSS B 16(2).
    """
    square = base * base - multiplier**2 * base_error
    product, constant = base * other, other * other - multiplier**2 * other_error
    root = math.sqrt(max(0.0, product * product - square * constant))
    if not square > 0:
        half = multiplier * math.sqrt(base_error)
        least = f"; the variant has at least {constant / (product + root):.3g} times as much" if (
            product > 0 and constant > 0) else ""
        raise Refused(f"the baseline's {base:.4g} is not clearly above zero (interval {base - half:.4g} to "
                      f"{base + half:.4g}), so a lift over it has no upper end{least}")
    # of the two forms of each root, the one that does not subtract nearly equal numbers
    if product >= 0:
        return constant / (product + root) if product + root > 0 else 0.0, (product + root) / square
    return (product - root) / square, constant / (product - root)


def relative_lift(base: float, base_error: float, other: float, other_error: float, difference: Interval) -> Interval:
    """The lift other / base - 1 with Fieller's ends, of one test with the absolute difference.

    Args:
        base: the baseline's mean, above 0; ``base_error`` its squared standard error.
        base_error: see ``base``.
        other: the variant's mean; ``other_error`` its squared standard error.
        other_error: see ``other``.
        difference: interval of other - base, symmetric, with its standard error: it gives the multiplier, the p-value
            and the method's name.

    Returns:
        An interval above 0 where ``difference`` is; ``se`` is the delta method's.

    Raises:
        Refused: the baseline's mean is not above zero, or not clearly.
    """
    if not base > 0:
        raise Refused(f"the baseline's {base:.4g} is not above zero: a relative difference from it means nothing")
    if not difference.se:
        raise Refused("a relative lift needs a standard error of the difference")
    low, high = fieller(base, base_error, other, other_error, (difference.high - difference.estimate) / difference.se)
    se = math.sqrt(other_error + base_error * (other / base) ** 2) / base
    method = "fieller" if difference.method == "welch" else difference.method
    return replace(difference, estimate=other / base - 1, low=low - 1, high=high - 1, se=se, method=method)
