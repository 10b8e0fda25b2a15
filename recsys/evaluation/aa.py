"""A/A: does an interval's standard error keep its level on these very units, where no difference can be?"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import bdtr, bdtrc, stdtr

from recsys.errors import Refused
from recsys.evaluation.intervals import Floats

BLOCK, LEAST_UNITS, MOST_UNITS = 64, 20, 50_000


def aa_of_sums(a: Floats, b: Floats, draws: int = 1000, alpha: float = 0.05, seed: int = 0, most: int = MOST_UNITS,
               what: str = "the metric") -> dict[str, Any]:
    """Split the units at random into halves and compare the ratio sum a / sum b of the two, again and again.

    Welch's test (delta method) should reject in ``alpha`` of the splits, with uniform p-values.

    Args:
        a: float64[U], numerator summed within each unit.
        b: float64[U], denominator.
        draws: splits.
        alpha: level.
        seed: of the splits.
        most: units used, drawn at random from more.
        what: is tried, for the refusal.

    Returns:
        ``draws``, ``units``, ``alpha``, ``rejected`` share, ``low`` and ``high`` (99 % binomial range of that share
        under the level), ``excess_p`` (binomial probability of so many rejections), ``uniformity_p``
        (Kolmogorov-Smirnov), ``ok``.

    Raises:
        Refused: too few units or events.
    """
    from scipy.stats import kstest  # a third of a second

    rng = np.random.default_rng(seed)
    if len(a) < LEAST_UNITS:
        raise Refused(f"{len(a)} units: an A/A test needs at least {LEAST_UNITS}")
    if len(a) > most:
        kept = rng.choice(len(a), most, replace=False)
        a, b = a[kept], b[kept]
    columns = np.stack([a, b, a * a, a * b, b * b], axis=1)
    total, n = columns.sum(axis=0), len(a)
    p_values: list[np.ndarray] = []
    for at in range(0, draws, BLOCK):
        mask = rng.random((min(BLOCK, draws - at), n)) < 0.5
        first = mask.astype(np.float64) @ columns
        size = mask.sum(axis=1)
        p_values.append(_p_values((first, size), (total - first, n - size)))
    p = np.concatenate(p_values)
    p = p[np.isfinite(p)]
    if len(p) < draws / 2:
        raise Refused(f"{what} has too few events for an A/A test")
    rejected = int((p <= alpha).sum())
    grid = np.arange(len(p) + 1)
    inside = grid[(bdtr(grid, len(p), alpha) > 0.005) & (bdtrc(grid - 1, len(p), alpha) > 0.005)]
    uniform = float(kstest(p, "uniform").pvalue)
    return {"draws": len(p), "units": n, "alpha": alpha, "rejected": rejected / len(p),
            "low": float(inside[0]) / len(p), "high": float(inside[-1]) / len(p), "uniformity_p": uniform,
            "excess_p": 1.0 if rejected == 0 else float(bdtrc(rejected - 1, len(p), alpha)),
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
