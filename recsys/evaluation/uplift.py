"""Uplift: does a score order units by how much the treatment changes them?

Curves start at 0 and step through the units from the highest score down; tied scores are one step, so that their
order does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from recsys.errors import InputError, Refused
from recsys.evaluation.intervals import Floats


@dataclass(frozen=True)
class Curve:
    """Cumulative incremental outcomes by the share of units targeted; k + 1 points from (0, 0) to (1, total).

    Attributes:
        share: float64[k + 1], units targeted over all units.
        gain: float64[k + 1], incremental outcomes per unit of the whole sample.
    """

    share: Floats
    gain: Floats

    @property
    def area(self) -> float:
        """Area under the curve (trapezoids)."""
        return float(np.trapezoid(self.gain, self.share))

    @property
    def area_over_random(self) -> float:
        """Area between the curve and the straight line to its end: what ordering adds over a random order."""
        return self.area - float(self.gain[-1]) / 2


def _steps(outcome: ArrayLike, treated: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats, Floats, Floats, int]:
    y, t, s = (np.asarray(v, dtype=np.float64) for v in (outcome, treated, score))
    if not (y.shape == t.shape == s.shape and y.ndim == 1 and len(y)):
        raise InputError("columns do not match", file="uplift", got=[y.shape, t.shape, s.shape],
                         expected="three vectors of one length")
    for name, values, ok in (("outcome", y, np.isfinite(y)), ("treated", t, (t == 0) | (t == 1)),
                             ("score", s, np.isfinite(s))):
        if not ok.all():
            row = int(np.argmax(~ok))
            raise InputError("value not allowed", file="uplift", column=name, row=row, got=float(values[row]),
                             expected="0 or 1" if name == "treated" else "a finite number")
    if not 0 < t.sum() < len(t):
        raise Refused("uplift needs treated and untreated units: only one kind is there")
    order = np.argsort(-s, kind="stable")
    y, t, s = y[order], t[order], s[order]
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)
    sums = [np.append(0.0, np.cumsum(v)[last]) for v in (y * t, y * (1 - t), t, 1 - t)]
    return sums[0], sums[1], sums[2], sums[3], len(y)


def qini_curve(outcome: ArrayLike, treated: ArrayLike, score: ArrayLike) -> Curve:
    """Qini curve: Y_t(k) - Y_c(k) N_t(k) / N_c(k), per unit of the sample.

    Args:
        outcome: float[n].
        treated: 0 or 1 [n], randomised.
        score: float[n], predicted uplift, made without these units' outcomes.

    References:
        Radcliffe (2007). Using control groups to target on predicted lift. Direct Marketing Analytics Journal.
    """
    gained, lost, n_t, n_c, n = _steps(outcome, treated, score)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = gained - np.where(n_c > 0, lost * n_t / n_c, 0.0)
    return Curve((n_t + n_c) / n, gain / n)


def uplift_curve(outcome: ArrayLike, treated: ArrayLike, score: ArrayLike) -> Curve:
    """Cumulative uplift: (mean of treated - mean of controls among the first k) k, per unit; its area is the AUUC.

    References:
        Devriendt, Van Belle, Guns, Verbeke (2022). Learning to rank for uplift modeling. IEEE TKDE 34(10).
    """
    gained, lost, n_t, n_c, n = _steps(outcome, treated, score)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_t, mean_c = (np.where(size > 0, total / size, 0.0) for total, size in ((gained, n_t), (lost, n_c)))
    return Curve((n_t + n_c) / n, (mean_t - mean_c) * (n_t + n_c) / n)


def uplift_at(outcome: ArrayLike, treated: ArrayLike, score: ArrayLike, share: float) -> float:
    """Difference of means among the ``share`` of units with the highest scores (the smallest step that reaches it)."""
    if not 0 < share <= 1:
        raise InputError("setting not allowed", file="uplift", column="share", got=share, expected="in (0, 1]")
    gained, lost, n_t, n_c, n = _steps(outcome, treated, score)
    at = int(np.argmax((n_t + n_c) / n >= share - 1e-12))
    if not (n_t[at] and n_c[at]):
        raise Refused(f"the top {share:.0%} hold no treated or no untreated unit: take a larger share")
    return float(gained[at] / n_t[at] - lost[at] / n_c[at])


def uplift_report(outcome: ArrayLike, treated: ArrayLike, score: ArrayLike, draws: int = 200,
                  seed: int = 0) -> dict[str, Any]:
    """Qini and AUUC over a random order with percentile intervals (units drawn anew), and uplift at 10 and 30 %."""
    y, t, s = (np.asarray(v, dtype=np.float64) for v in (outcome, treated, score))
    qini, auuc = qini_curve(y, t, s), uplift_curve(y, t, s)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        at = rng.integers(0, len(y), len(y))
        drawn.append((qini_curve(y[at], t[at], s[at]).area_over_random,
                      uplift_curve(y[at], t[at], s[at]).area_over_random))
    ends = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    made = {n: {"estimate": c.area_over_random, "low": float(ends[0, i]), "high": float(ends[1, i])}
            for i, (n, c) in enumerate((("qini", qini), ("auuc", auuc)))}
    return {**made, "uplift": float(auuc.gain[-1]), **{f"uplift_at_{p}": uplift_at(y, t, s, p / 100) for p in (10, 30)}}
