"""What a kind of weight is worth, summed over batches: effective sample size, effective clicks, headroom."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.intervals import Floats, effective


def summed(total: Floats, x: Floats | None, clusters: NDArray[np.int64], groups: int) -> Floats:
    """Float64[groups]: earlier sums by cluster plus those of one batch's rows (None: their number)."""
    part: Floats = np.bincount(clusters, x, groups).astype(np.float64)
    part[:len(total)] += total
    return part


class Evidence:
    """Sums of one kind of weight, by row and by unit."""

    def __init__(self) -> None:
        self.weight = self.earned = np.zeros(0)
        self._moments = np.zeros(4)  # sum w, sum w^2, sum |w r|, sum (w r)^2
        self.largest = 0.0

    def add(self, weight: Floats, reward: Floats, clusters: NDArray[np.int64], groups: int) -> None:
        """Add n rows; ``clusters`` are codes of units below ``groups``."""
        earned = weight * np.abs(reward)
        self.weight, self.earned = (summed(t, x, clusters, groups) for t, x in ((self.weight, weight),
                                                                               (self.earned, earned)))
        self._moments += (weight.sum(), (weight * weight).sum(), earned.sum(), (earned * earned).sum())
        self.largest = max(self.largest, float(weight.max()))

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(self._moments[0])

    @property
    def ess(self) -> float:
        """(sum w)^2 / sum w^2."""
        return float(self._moments[0] ** 2 / self._moments[1]) if self._moments[1] > 0 else 0.0

    @property
    def clicks(self) -> float:
        """(sum w |r|)^2 / sum (w r)^2, over rows or over units, whichever is less: a unit's clicks hang together."""
        rows = float(self._moments[2] ** 2 / self._moments[3]) if self._moments[3] > 0 else 0.0
        return min(rows, effective(self.earned))

    def headroom(self, most: float) -> Floats:
        """What each unit's weighted rewards lack to what they would be if every row had earned ``most``."""
        made: Floats = most * self.weight - self.earned
        return made
