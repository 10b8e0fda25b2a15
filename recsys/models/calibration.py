"""Calibration of log odds on held-out rows: Platt's line or an isotonic curve, one a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Kind = Literal["none", "platt", "isotonic"]
_KNOTS = 256


@dataclass(frozen=True)
class Calibration:
    """What becomes of a model's log odds.

    Attributes:
        kind: none; platt: a z + b (Platt 1999), a > 0; isotonic: a line through knots, constant beyond the outermost.
        arrays: ``platt`` float64 [H, 2], or ``x.HEAD`` and ``y.HEAD`` float64 [knots] of head number HEAD.
    """

    kind: Kind = "none"
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated log odds float64 [n, H]; the order of two rows never turns around."""
        if self.kind == "none":
            return logits
        if self.kind == "platt":
            return logits * self.arrays["platt"][:, 0] + self.arrays["platt"][:, 1]
        columns = [np.interp(z, self.arrays[f"x.{h}"], self.arrays[f"y.{h}"]) for h, z in enumerate(logits.T)]
        return np.stack(columns, axis=1)

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"kind": self.kind, "arrays": {n: a.tolist() for n, a in self.arrays.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """What :meth:`to_json` wrote."""
        return cls(value["kind"], {n: np.asarray(a, np.float64) for n, a in value["arrays"].items()})

    @classmethod
    def fit(cls, kind: Kind, logits: np.ndarray, trials: np.ndarray, successes: np.ndarray) -> Calibration:
        """Fit on held-out rows.

        Args:
            logits, trials, successes: [n, H].
        """
        if kind == "none":
            return cls()
        columns = list(zip(logits.T, trials.T, successes.T, strict=True))
        if kind == "platt":
            return cls(kind, {"platt": np.array([_platt(*c) for c in columns])})
        arrays: dict[str, np.ndarray] = {}
        for head, column in enumerate(columns):
            arrays[f"x.{head}"], arrays[f"y.{head}"] = _isotonic(*column)
        return cls(kind, arrays)


def _platt(z: np.ndarray, trials: np.ndarray, successes: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of least log loss. Targets are Platt's: (s + 1) / (s + 2) and 1 / (f + 2) of s and f."""
    from scipy.optimize import minimize  # imported here, as scoring fits nothing
    from scipy.special import expit

    s, f = successes.sum(), (trials - successes).sum()
    high, low = (s + 1) / (s + 2), 1 / (f + 2)
    won = successes * high + (trials - successes) * low

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        slope = np.exp(theta[0])  # positive, so that no order turns around
        odds = slope * z + theta[1]
        error = trials * expit(odds) - won
        value = (trials * np.logaddexp(0, odds) - won * odds).sum()
        return value / trials.sum(), np.array([(error * z).sum() * slope, error.sum()]) / trials.sum()

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    return float(np.exp(found[0])), float(found[1])


def _isotonic(z: np.ndarray, trials: np.ndarray, successes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots of the isotonic regression of rates on log odds, over at most 256 bins of equal mass.

    Rates have one success and one failure spread over the bins added, so that none is 0 or 1.
    """
    from scipy.special import logit
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(z, kind="stable")
    z, trials, successes = z[order], trials[order], successes[order]
    mass = np.cumsum(trials)
    bins = np.minimum((mass - trials / 2) * _KNOTS / mass[-1], _KNOTS - 1).astype(np.int64)
    n = np.bincount(bins, trials, _KNOTS)
    there = n > 0
    x = np.bincount(bins, trials * z, _KNOTS)[there] / n[there]
    share = 1 / there.sum()
    rate = (np.bincount(bins, successes, _KNOTS)[there] + share) / (n[there] + 2 * share)
    curve = IsotonicRegression().fit(x, rate, n[there])
    return x, logit(np.asarray(curve.predict(x), np.float64))
