"""Inference that stays valid however often growing data are looked at: the normal-mixture confidence sequence.

References:
    Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024). Time-uniform central limit theory and asymptotic confidence
    sequences. Annals of Statistics 52(6), proposition 3, equation 9 of the preprint; as in GrowthBook (gbstats).
"""

from __future__ import annotations

import math


def _mixture(units: int, alpha: float, tuning: float) -> float:
    """n rho^2 of the normal mixture whose boundary is tightest after ``tuning`` units."""
    return units * (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuning


def always_valid_p(z: float, units: int, alpha: float, tuning: float) -> float:
    """P-value that stays valid at every look at growing data: 1 / the normal-mixture likelihood ratio, at most 1.

    Args:
        z: (estimate - null) / standard error.
        units: independent units seen so far.
        alpha: level that the mixture is tuned for.
        tuning: number of units at which it is tightest.
    """
    v = _mixture(units, alpha, tuning)
    return min(1.0, math.exp(0.5 * math.log1p(v) - z * z * v / (2 * (v + 1))))


def always_valid_multiplier(units: int, alpha: float, tuning: float) -> float:
    """Half-width, in standard errors, of the confidence sequence that :func:`always_valid_p` inverts."""
    v = _mixture(units, alpha, tuning)
    return math.sqrt(2 * (v + 1) / v * math.log(math.sqrt(v + 1) / alpha))
