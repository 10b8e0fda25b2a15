"""Before the experiment: how many units are needed, what a size can detect, and whether the test keeps its level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from recsys.errors import InputError, Refused
from recsys.evaluation.aa import MOST_UNITS, aa_of_sums
from recsys.evaluation.ab.units import Metric, Units

_LEAST_EFFECT = 1e-6  # about 10^13 units; the solver finds nothing much below


def _rates(base: float, other: float, alpha: float, power: float) -> None:
    for name, value in (("base", base), ("base with the lift", other), ("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise InputError("setting not allowed", file="power", column=name, got=value, expected="between 0 and 1")


def units_per_arm(base: float, lift: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Units (to the nearest) that each of two equal arms needs to find a relative lift of a rate, two-sided.

    Args:
        base: the baseline's rate per unit, in (0, 1).
        lift: relative; 0.1 is +10 %.
        alpha: level.
        power: chance to find it.

    Raises:
        InputError: a setting out of its range. Refused: an effect that no experiment is large enough for.

    References:
        Cohen (1988). Statistical power analysis, chapter 6: arcsine effect size (statsmodels' NormalIndPower).
    """
    other = base * (1 + lift)
    _rates(base, other, alpha, power)
    if lift == 0:
        raise InputError("setting not allowed", file="power", column="lift", got=lift, expected="a lift other than 0")
    # Solved for a positive effect: the two-sided test is symmetric.
    effect = abs(proportion_effectsize(other, base))
    if effect < _LEAST_EFFECT:
        raise Refused(f"a lift of {lift:g} of a rate of {base:g} needs more units than any experiment has: look for a "
                      f"larger lift, or for something that happens more often")
    n = NormalIndPower().solve_power(effect, alpha=alpha, power=power)
    return round(float(np.ravel(n)[0]))


def detectable_lift(base: float, units: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest relative lift of a rate that two arms of ``units`` each find with the given power, two-sided."""
    _rates(base, base, alpha, power)
    if units < 2:
        raise InputError("setting not allowed", file="power", column="units", got=units, expected="at least 2 per arm")
    effect = float(np.ravel(NormalIndPower().solve_power(nobs1=units, alpha=alpha, power=power))[0])
    angle = math.asin(math.sqrt(base)) + effect / 2
    if angle >= math.pi / 2:
        raise Refused(f"{units:,} units per arm find no lift of a rate of {base:g}, not even to 1: take more units")
    return math.sin(angle) ** 2 / base - 1


def aa_test(units: Units, metric: Metric, draws: int = 1000, alpha: float = 0.05, seed: int = 0,
            most: int = MOST_UNITS, cap: float | None = None) -> dict[str, Any]:
    """Does the test keep its level on these very units? Arms are drawn anew, so that no difference exists.

    Units (at most ``most`` of them, drawn at random) are split in half ``draws`` times; the Welch test of the metric
    (delta method for a ratio) should reject in ``alpha`` of them, with uniform p-values. ``cap`` is the largest
    numerator of a unit (winsorising).

    Returns:
        ``rejected`` share, ``low`` and ``high`` (99 % binomial range of that share under the level), ``uniformity_p``
        (Kolmogorov-Smirnov), ``ok``.
    """
    a = units.values[metric.numerator]
    a = a if cap is None else np.minimum(a, cap)
    b = np.ones_like(a) if metric.denominator is None else units.values[metric.denominator]
    return aa_of_sums(a, b, draws, alpha, seed, most, metric.name)
