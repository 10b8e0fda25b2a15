"""Before the experiment: how many units are needed, what a size can detect, and whether the test keeps its level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import bdtr, bdtrc, stdtr
from scipy.stats import kstest
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from recsys.errors import InputError, Refused
from recsys.evaluation.ab.units import Metric, Units

AA_BLOCK = 64


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

    References:
        Cohen (1988). Statistical power analysis, chapter 6: arcsine effect size (statsmodels' NormalIndPower).
    """
    other = base * (1 + lift)
    _rates(base, other, alpha, power)
    if lift == 0:
        raise InputError("setting not allowed", file="power", column="lift", got=lift, expected="a lift other than 0")
    # Solved for a positive effect: the two-sided test is symmetric.
    effect = abs(proportion_effectsize(other, base))
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
            most: int = 50_000) -> dict[str, Any]:
    """Does the test keep its level on these very units? Arms are drawn anew, so that no difference exists.

    Units (at most ``most`` of them, drawn at random) are split in half ``draws`` times; the Welch test of the metric
    (delta method for a ratio) should reject in ``alpha`` of them, with uniform p-values.

    Returns:
        ``rejected`` share, ``low`` and ``high`` (99 % binomial range of that share under the level), ``uniformity_p``
        (Kolmogorov-Smirnov), ``ok``.
    """
    rng = np.random.default_rng(seed)
    a = units.values[metric.numerator]
    b = np.ones_like(a) if metric.denominator is None else units.values[metric.denominator]
    if len(a) < 20:
        raise Refused(f"{len(a)} units: an A/A test needs at least 20")
    if len(a) > most:
        kept = rng.choice(len(a), most, replace=False)
        a, b = a[kept], b[kept]
    columns = np.stack([a, b, a * a, a * b, b * b], axis=1)
    total, n = columns.sum(axis=0), len(a)
    p_values: list[np.ndarray] = []
    for at in range(0, draws, AA_BLOCK):
        mask = rng.random((min(AA_BLOCK, draws - at), n)) < 0.5
        first = mask.astype(np.float64) @ columns
        size = mask.sum(axis=1)
        p_values.append(_p_values((first, size), (total - first, n - size)))
    p = np.concatenate(p_values)
    p = p[np.isfinite(p)]
    if len(p) < draws / 2:
        raise Refused(f"{metric.name} has too few events for an A/A test")
    rejected = int((p <= alpha).sum())
    grid = np.arange(len(p) + 1)
    inside = grid[(bdtr(grid, len(p), alpha) > 0.005) & (bdtrc(grid - 1, len(p), alpha) > 0.005)]
    uniform = float(kstest(p, "uniform").pvalue)
    return {"draws": len(p), "units": n, "alpha": alpha, "rejected": rejected / len(p),
            "low": float(inside[0]) / len(p), "high": float(inside[-1]) / len(p), "uniformity_p": uniform,
            "ok": bool(inside[0] <= rejected <= inside[-1])}


def _p_values(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    value, error, size = [], [], []
    for sums, n in (first, second):
        a, b, aa, ab, bb = sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = a / b
            # sum of (a - R b)^2 over units: their mean is 0, so this is (n - 1) times the linearised variance
            spread = (aa - 2 * ratio * ab + ratio**2 * bb) / (n - 1)
            value.append(ratio)
            error.append(spread / (b / n) ** 2 / n)
        size.append(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        both = error[0] + error[1]
        df = both**2 / (error[0] ** 2 / (size[0] - 1) + error[1] ** 2 / (size[1] - 1))
        p: np.ndarray = 2 * stdtr(df, -np.abs(value[0] - value[1]) / np.sqrt(both))
    return p
