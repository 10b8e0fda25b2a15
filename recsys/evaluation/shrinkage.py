"""Several estimates of similar quantities, each drawn towards a common value by as much as its own noise warrants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from recsys.evaluation.intervals import Floats

LEAST = 3  # estimates; with fewer, shrinking promises nothing (Stein)


@dataclass(frozen=True)
class Shrunk:
    """Empirical-Bayes estimates; k of them.

    Attributes:
        estimate: float64[k], posterior means.
        se: float64[k], posterior standard deviations, with the cost of having estimated the spread.
        factor: float64[k] in [0, 1], share of the way to the target.
        between: estimated standard deviation of the true values about the target; None where nothing was shrunk.
    """

    estimate: Floats
    se: Floats
    factor: Floats
    between: float | None


def shrink(estimates: ArrayLike, errors: ArrayLike, target: float) -> Shrunk:
    """Parametric empirical Bayes towards the mean of the same estimates, for unequal standard errors.

    With x_i ~ N(theta_i, V_i) and theta_i ~ N(target, A): A solves sum (x_i - target)^2 / (V_i + A) = k (0 where the
    estimates differ by less than their errors do); B_i = (k - 2) / k * V_i / (V_i + A); the estimate is
    x_i - B_i (x_i - target), its variance V_i (1 - (k - l_i) / k * B_i) + 2 / (k - 2) * B_i^2 (V + A) / (V_i + A)
    (x_i - target)^2, V the mean of V_i weighted by W_i = 1 / (V_i + A). l_i = k W_i / sum W is what estimate i weighs
    in the target: one that is most of the mean is drawn to little else than itself and gains no precision by that.
    It is the unequal-error form of James and Stein's estimator.

    Args:
        estimates: float[k]; fewer than three are left as they are.
        errors: float[k], standard errors > 0.
        target: what they are drawn to: their mean, weighted by precision or nearly so.

    References:
        Morris (1983). Parametric empirical Bayes inference: theory and applications. JASA 78(381), section 5.
        James, Stein (1961). Estimation with quadratic loss. Fourth Berkeley Symposium.
    """
    x, v = np.asarray(estimates, dtype=np.float64), np.asarray(errors, dtype=np.float64) ** 2
    k, off = len(x), x - target
    if k < LEAST:
        return Shrunk(x, np.sqrt(v), np.zeros(k), None)
    a = _between(off**2, v)
    factor = (k - 2) / k * v / (v + a)
    weight = 1 / (v + a)
    usual = float((weight * v).sum() / weight.sum())
    share = weight / weight.sum()
    doubt = 2 / (k - 2) * factor**2 * (usual + a) / (v + a)
    return Shrunk(x - factor * off, np.sqrt(v * (1 - (1 - share) * factor) + doubt * off**2), factor, float(np.sqrt(a)))


def _between(squares: Floats, v: Floats) -> float:
    """The root A >= 0 of sum squares / (v + A) = k, by bisection: the sum falls in A."""
    if (squares / v).sum() <= len(v):
        return 0.0
    low, high = 0.0, float(squares.sum())  # there the sum is at most 1
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (squares / (v + middle)).sum() > len(v) else (low, middle)
    return (low + high) / 2
