"""Sums over batches of a log: all that estimates, intervals and diagnostics need, whatever the log's length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import Refused
from recsys.evaluation.intervals import ClusterSums, Floats, effective, t_interval
from recsys.evaluation.offpolicy.estimators import ESTIMATORS, Outcomes, clip
from recsys.evaluation.offpolicy.evidence import Evidence, summed
from recsys.evaluation.offpolicy.support import Gaps

CLIPS = (2.0, 5.0, 10.0, 20.0, 50.0)
AGREE_SE, SAME = 3.0, 1e-9
MAX_GROUPS = 2**15  # beyond it, units are put together at random: intervals stay valid and their cost bounded
Key = tuple[str, float]


@dataclass(frozen=True)
class Sums:
    """Cluster sums of one estimator's influence rows, and the rows of each cluster: float64[G] each.

    ``headroom`` is what each cluster's influence lacks to what it would be if every row had earned the largest reward
    seen: sum of w (largest r - r).
    """

    influence: Floats
    size: Floats
    headroom: Floats

    @property
    def estimate(self) -> float:
        """Mean over rows."""
        return float(self.influence.sum() / self.size.sum())

    def ratio(self) -> ClusterSums:
        """As the interval functions take it."""
        return ClusterSums(self.influence, self.size, self.influence + self.headroom)


class Totals:
    """Accumulates batches of :class:`Outcomes`.

    Args:
        names: estimators to carry; those with a hyper-parameter carry one column per value of their grid.
        rows: rows of the whole log, which fixes how many weights the top 1 % are.
        parameters: name -> the only value to carry instead of the grid.
    """

    def __init__(self, names: Iterable[str], rows: int, parameters: Mapping[str, float] | None = None) -> None:
        self.names = list(names)
        self._levels = {n: (parameters[n],) if parameters and n in parameters else ESTIMATORS[n].grid or (float("nan"),)
                        for n in self.names}
        self._sums: dict[Key, list[Floats]] = {}
        self.rows, self.outside, self.gaps, self.positives = 0, 0, Gaps(), 0
        self._model = 0.0
        self._size = np.zeros(0)
        self._evidence = {kind: Evidence() for kind in dict.fromkeys(("slot", *(ESTIMATORS[n].weighs for n in names)))}
        self._clipped = np.zeros(len(CLIPS))
        self._tail, self._top = np.zeros(0), max(1, round(0.01 * rows))
        self._largest = 0.0

    def add(self, outcomes: Outcomes, clusters: NDArray[np.int64], outside: int = 0,
            gaps: Gaps | None = None) -> None:
        """Add the rows of one batch; ``clusters`` are codes 0..G-1 of the whole log's units."""
        groups = max(len(self._size), int(clusters.max()) + 1)
        weight, reward = outcomes.weight, outcomes.reward
        self._size = summed(self._size, None, clusters, groups)
        for kind, evidence in self._evidence.items():
            if (multiplier := outcomes.multiplier(kind)) is not None:
                evidence.add(multiplier, reward, clusters, groups)
        empty = np.zeros(0)
        for name in self.names:
            for level in self._levels[name]:
                columns = ESTIMATORS[name].base(outcomes, level)
                if columns is not None:
                    before = self._sums.get((name, level), [empty] * len(columns))
                    self._sums[name, level] = [summed(t, x, clusters, groups)
                                                for t, x in zip(before, columns, strict=True)]
        residual, model = reward, 0.0
        if outcomes.q is not None and outcomes.q_policy is not None:
            residual, model = reward - outcomes.q, float(outcomes.q_policy.sum())
        self._clipped += [(clip(weight, level) * residual).sum() + model for level in CLIPS]
        tail = np.concatenate([self._tail, weight])
        self._tail = tail if len(tail) <= self._top else np.partition(tail, len(tail) - self._top)[-self._top:]
        self._largest = max(self._largest, float(np.abs(reward).max()))
        self.rows += len(weight)
        self.positives += int(np.count_nonzero(reward))
        self.outside += outside
        self.gaps += gaps or Gaps()
        self._model += model

    @property
    def model_value(self) -> float:
        """Mean value of the target by the outcome model; 0 without one."""
        return self._model / self.rows

    @property
    def units(self) -> int:
        """Clusters that have rows."""
        return int(np.count_nonzero(self._size))

    def evidence(self, weighs: str = "slot") -> tuple[float, float, int, tuple[Floats, Floats]]:
        """What :func:`recsys.evaluation.intervals.choose_interval` asks of a kind of weight.

        Returns:
            Effective sample size, effective clicks, units, and rows and weight of each unit. A whole slate's weight
            stands in each of its slots, and is one all the same: its effective sample size is that of the rows over
            the slots.
        """
        own, present = self._evidence[weighs], self._size > 0
        ess = own.ess / self.gaps.slots if weighs == "slate" else own.ess
        return ess, own.clicks, self.units, (self._size[present], own.weight[present])

    @property
    def top_share(self) -> float:
        """Share of the total weight that the largest 1 % of weights carry."""
        return float(self._tail.sum() / self._evidence["slot"].total) if self._evidence["slot"].total > 0 else 0.0

    def levels(self, name: str) -> list[float]:
        """Hyper-parameters carried for an estimator that the rows had all it needs for; empty where they had not."""
        return [level for level in self._levels[name] if (name, level) in self._sums]

    def sums(self, name: str, level: float | None = None) -> Sums | None:
        """Influence of one estimator by cluster; more than MAX_GROUPS clusters are put together at random."""
        levels = self.levels(name)
        if not levels:
            return None
        columns = self._sums[name, levels[0] if level is None else level]
        made = ESTIMATORS[name]
        return self._grouped(made.influence(tuple(columns), self._size), made.weighs)

    def _grouped(self, influence: Floats, weighs: str = "slot") -> Sums:
        present = self._size > 0
        headroom = self._evidence[weighs].headroom(self._largest)
        columns = [x[present] for x in (influence, self._size, headroom)]
        count = len(columns[0])
        if count > MAX_GROUPS:
            code = np.random.default_rng(0).permutation(count) % MAX_GROUPS
            columns = [np.bincount(code, x, MAX_GROUPS).astype(np.float64) for x in columns]
        if count < 2:
            raise Refused(f"{count} cluster(s): an interval needs at least two independent units")
        return Sums(*columns)

    def weights(self, weighs: str = "slot") -> dict[str, Any]:
        """What a kind of weight is worth; plain numbers."""
        own, (ess, clicks, _, sizes) = self._evidence[weighs], self.evidence(weighs)
        mean = t_interval(self._grouped(own.weight, weighs).ratio())
        return {"ess": ess, "ess_share": ess / self.rows, "effective_units": min(map(effective, sizes)),
                "effective_clicks": clicks, "max_weight": own.largest, "mean_weight": mean.estimate,
                "mean_weight_se": mean.se}

    def facts(self) -> dict[str, Any]:
        """Diagnostics of the weights; plain numbers. Those of slates are there where an estimator uses them."""
        slates = {kind: self.weights(kind) for kind, own in self._evidence.items() if kind != "slot" and own.total > 0}
        return {
            **self.weights(), "clicks": self.positives, "top_1_percent_weight_share": self.top_share,
            "shown_outside_policy": self.outside, "support_gaps": self.gaps.mass / self.rows,
            "clip_sensitivity": {f"{level:g}": float(x / self.rows)
                                 for level, x in zip(CLIPS, self._clipped, strict=True)},
        } | ({"slate_weights": slates} if slates else {})


def agreement(sums: dict[str, Sums]) -> dict[str, Any]:
    """Do the estimators that tend to the same value differ by more than their common sampling error allows?"""
    worst, pair = 0.0, None
    for (a, one), (b, other) in combinations(sums.items(), 2):
        gap = t_interval(replace(one, influence=one.influence - other.influence).ratio())
        same = abs(gap.estimate) <= SAME * max(abs(one.estimate), abs(other.estimate))  # up to rounding
        z = 0.0 if same or not gap.se else abs(gap.estimate) / gap.se
        if z > worst:
            worst, pair = z, f"{a} vs {b}"
    values = [s.estimate for s in sums.values()]
    return {"ok": worst <= AGREE_SE, "largest_z": worst, "pair": pair,
            "spread": max(values) - min(values) if values else 0.0}
