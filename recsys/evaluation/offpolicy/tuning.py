"""SLOPE: pick a hyper-parameter that trades bias for variance without knowing the bias."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SQRT6 = float(np.sqrt(6.0))


def slope(estimates: Sequence[float], half_widths: Sequence[float]) -> int:
    """Position of the most biased estimate that no less biased one contradicts.

    Candidates are ordered from least biased (widest) to most; the i-th is kept while |e_i - e_j| <= c_i +
    (sqrt(6) - 1) c_j for every j < i. The error is then within a constant factor of the best candidate's.

    Args:
        estimates: one per candidate.
        half_widths: half widths c of their confidence intervals; made non-increasing here, as the theory asks.

    References:
        Su, Srinath, Krishnamurthy (2020). Adaptive estimator selection for off-policy evaluation. ICML.
        Tucker, Lee (2021). Improved estimator selection for off-policy evaluation.
    """
    widths = np.minimum.accumulate(np.asarray(half_widths, dtype=np.float64))
    values = np.asarray(estimates, dtype=np.float64)
    chosen = 0
    for i in range(1, len(values)):
        if (np.abs(values[i] - values[:i]) > widths[i] + (SQRT6 - 1) * widths[:i] + 1e-15).any():
            break
        chosen = i
    return chosen
