"""Arms on one log: the rows that every number of the lift report is a ratio of, and the intervals of such ratios."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import Refused
from recsys.evaluation.intervals import (
    EXPLORATORY_CLUSTERS,
    MIN_CLUSTERS,
    Choice,
    Floats,
    Interval,
    choose_interval,
    cluster_sums,
    effective,
    interval,
)


@dataclass(frozen=True)
class ArmRows:
    """One arm on the shared log.

    Attributes:
        rows: metric -> float64[n] rows whose mean is the arm's value of that metric.
        choice: the interval rule applied to this arm's goal.
        ess: effective sample size of its weights.
        events: metric -> effective events, (sum w |r|)^2 / sum (w r)^2 of that metric's own r: clicks, hides, revenue.
        diagnostics: for the report.
        sizes: float64[clusters] each: rows, and weight, of every unit; none: units of one size.
        weight: float64[n] importance weights; None where rows are not weighted.
        hits: float64[n] of the goal's outcome times weight; None as ``weight``.
        unadjusted: float64[n] rows of the goal without its outcome model (IPS); None where there is no model.
        headroom: metric -> float64[clusters], what a unit's rows lack to the most they could have been
            (:func:`recsys.evaluation.offpolicy.headroom`), where it is known.
    """

    rows: dict[str, Floats]
    choice: Choice
    ess: float
    events: dict[str, float]
    diagnostics: dict[str, Any]
    sizes: tuple[Floats, ...] = ()
    weight: Floats | None = None
    hits: Floats | None = None
    unadjusted: Floats | None = None
    headroom: dict[str, Floats] = field(default_factory=dict)

    def part(self, rows: NDArray[np.int64], clusters: NDArray[np.int64], goal: str) -> ArmRows:
        """The goal's rows of a part of the log, with that part's own evidence."""
        goals = {goal: self.rows[goal][rows]}
        if self.weight is None or self.hits is None:
            units = int(clusters.max()) + 1
            return ArmRows(goals, randomized_choice(len(rows), units), float(len(rows)), {}, {})
        weight = self.weight[rows]
        sizes = np.bincount(clusters).astype(np.float64), np.bincount(clusters, weight).astype(np.float64)
        return ArmRows(goals, self.choice, effective(weight), {goal: effective(self.hits[rows], clusters)}, {}, sizes,
                       weight, self.hits[rows])


def randomized_choice(tests: int, units: int) -> Choice:
    """The interval rule of randomised tests (docs/decisions/0005-intervals.md).

    Raises:
        Refused: too few independent units for any interval.
    """
    if units < MIN_CLUSTERS:
        raise Refused(f"{units} independent units: no interval is published below {MIN_CLUSTERS}")
    few = units < EXPLORATORY_CLUSTERS
    return Choice("t+bootstrap" if few else "t", "exploratory" if few else "confirmatory",
                  f"randomised; {tests:,} tests in {units:,} units")


@dataclass(frozen=True)
class Comparison:
    """All arms on one log, and what is needed to interval any function of them."""

    arms: dict[str, ArmRows]
    baseline: str
    goal: str
    clusters: NDArray[np.int64]
    confidence: float
    draws: int
    seed: int
    paired: bool  # off-policy: the pair's worst arm decides the interval; randomised: one rule for all

    @property
    def units(self) -> int:
        """Independent units."""
        return int((np.bincount(self.clusters) > 0).sum())

    def part(self, rows: NDArray[np.int64]) -> Comparison:
        """The goal on a part of the log (row numbers, at least one), intervalled by that part's own evidence.

        Raises:
            Refused: a randomised part with too few units.
        """
        clusters = np.unique(self.clusters[rows], return_inverse=True)[1].astype(np.int64)
        arms = {name: arm.part(rows, clusters, self.goal) for name, arm in self.arms.items()}
        return replace(self, arms=arms, clusters=clusters)

    def ratio(self, numerator: Floats, denominator: Floats | float, choice: Choice, null: float | None,
              headroom: Floats | None = None) -> Interval:
        """Interval of sum(numerator) / sum(denominator), clustered."""
        sums = cluster_sums(numerator, denominator, self.clusters)
        if headroom is not None:
            sums = replace(sums, largest=sums.numerator + headroom)
        made = interval(sums, choice, self.confidence, self.draws, self.seed, null)
        if not np.isfinite([made.low, made.high]).all():
            raise Refused(f"the interval has no finite end ({choice.reason}): the log cannot tell this ratio at all")
        return made

    def choice_of(self, metric: str, *names: str) -> Choice:
        """The interval rule applied to the worst of the named arms, by the metric's own events.

        Raises:
            Refused: too little evidence of this metric, however much there is of another.
        """
        arms = [self.arms[n] for n in names]
        if not self.paired:
            return arms[0].choice
        return choose_interval(min(a.ess for a in arms), min(a.events[metric] for a in arms),
                               int(self.clusters.max()) + 1, [m for a in arms for m in a.sizes])

    def lift(self, name: str, against: str, metric: str, null: float = 0.0) -> Interval:
        """Relative lift of one arm over another; rates are not negative, so a lift is never below -1.

        ``null`` is the lift that the p-value is about.
        """
        choice = self.choice_of(metric, name, against)
        made = self.ratio(self.arms[name].rows[metric], self.arms[against].rows[metric], choice, 1.0 + null)
        return at_least(made.shifted(-1.0), -1.0)

    def value(self, name: str, metric: str) -> Interval:
        """An arm's own value."""
        arm = self.arms[name]
        return at_least(self.ratio(arm.rows[metric], 1.0, self.choice_of(metric, name), None,
                                   arm.headroom.get(metric)), 0.0)

    def difference(self, name: str, against: str, metric: str, relative: bool) -> Interval:
        """Difference of two arms' values, absolute, or as a difference of lifts (divided by the baseline's value)."""
        rows = self.arms[name].rows[metric] - self.arms[against].rows[metric]
        below: Floats | float = self.arms[self.baseline].rows[metric] if relative else 1.0
        return self.ratio(rows, below, self.choice_of(metric, name, against, self.baseline), 0.0)


def at_least(made: Interval, floor: float) -> Interval:
    """The interval cut at the lowest value that its quantity can have."""
    return Interval(made.estimate, max(floor, made.low), max(floor, made.high), made.se, made.p_value, made.method,
                    made.label)


def ends(made: Interval) -> dict[str, float]:
    """{"estimate", "low", "high"}, as reports hold it."""
    return {"estimate": made.estimate, "low": made.low, "high": made.high}


NO_LIFT = {"estimate": 0.0, "low": 0.0, "high": 0.0}
