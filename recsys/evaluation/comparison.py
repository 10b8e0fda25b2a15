"""Arms on one log: the rows that every number of the lift report is a ratio of, and the intervals of such ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import Refused
from recsys.evaluation.intervals import (
    EXPLORATORY_CLICKS,
    EXPLORATORY_CLUSTERS,
    FEW_CLICKS,
    MIN_CLICKS,
    MIN_CLUSTERS,
    Choice,
    Floats,
    Interval,
    choose_interval,
    cluster_sums,
    effective,
    interval,
)
from recsys.evaluation.offpolicy.support import Reach

COSTS = {"cost_per_click": "ctr", "cost_per_action": "conversion"}
"""Metric that is the revenue over what was bought -> what was bought; its ``rows`` are linearised."""
SMALLEST = 1e-300  # an arm without a click has no effective click, and squares that sum to 0


@dataclass(frozen=True)
class ArmRows:
    """One arm on the shared log.

    Attributes:
        rows: metric -> float64[n] rows whose mean is the arm's value of that metric.
        ess: effective sample size of its weights.
        events: metric -> effective events, (sum w |r|)^2 / sum (w r)^2 of that metric's own r: clicks, hides, revenue.
        diagnostics: for the report.
        sizes: float64[clusters] each: rows, and weight, of every unit; none: units of one size.
        weight: float64[n] importance weights; None where rows are not weighted.
        hits: float64[n] of the goal's outcome times weight; None as ``weight``.
        unadjusted: float64[n] rows of the goal without its outcome model (IPS); None where there is no model.
        headroom: metric -> float64[clusters], what a unit's rows lack to the most they could have been
            (:func:`recsys.evaluation.offpolicy.headroom`), where it is known.
        gap: share of the arm's probability on ads that the log never shows.
        reach: metric -> what the rows' mean leaves open because of that gap; a metric that is not named is refused
            where there is a gap.
        unadjusted_reach: the same of ``unadjusted``.
        click_squares: of randomised tests, float64[n], the sum of the squares of what each click counts in a row
            (:func:`recsys.evaluation.randomized.click_squares`); None where rows are not made of clicks.
    """

    rows: dict[str, Floats]
    ess: float
    events: dict[str, float]
    diagnostics: dict[str, Any]
    sizes: tuple[Floats, ...] = ()
    weight: Floats | None = None
    hits: Floats | None = None
    unadjusted: Floats | None = None
    headroom: dict[str, Floats] = field(default_factory=dict)
    gap: float = 0.0
    reach: dict[str, Reach] = field(default_factory=dict)
    unadjusted_reach: Reach = Reach()  # noqa: RUF009  # frozen
    click_squares: Floats | None = None

    def reach_of(self, metric: str) -> Reach:
        """What the rows of a metric leave open.

        Raises:
            Refused: there is a gap, and what it could hold of this metric is not known.
        """
        if self.gap and metric not in self.reach:
            raise Refused(f"{100 * self.gap:.2g} % of the probability is on ads that this log never shows, and how "
                          f"much they could change {metric} is not bounded; evaluate a policy that shows only what the "
                          "log shows")
        return self.reach.get(metric, Reach())

    def part(self, rows: NDArray[np.int64], clusters: NDArray[np.int64], goal: str) -> ArmRows:
        """The goal's rows of a part of the log, with that part's own evidence."""
        goals = {goal: self.rows[goal][rows]}
        if self.weight is None or self.hits is None:
            squares = None if self.click_squares is None else self.click_squares[rows]
            return ArmRows(goals, float(len(rows)), {}, {}, click_squares=squares)
        weight = self.weight[rows]
        sizes = np.bincount(clusters).astype(np.float64), np.bincount(clusters, weight).astype(np.float64)
        return ArmRows(goals, effective(weight), {goal: effective(self.hits[rows], clusters)}, {}, sizes,
                       weight, self.hits[rows], gap=self.gap, reach={goal: self.reach_of(goal).of(rows)})


def randomized_choice(tests: int, units: int, clicks: float = float("inf")) -> Choice:
    """The interval rule of randomised tests (docs/decisions/0005-intervals.md, 0026-certification.md).

    Args:
        tests: how many.
        units: independent ones.
        clicks: effective number of clicks that the worse arm's value rests on; infinite where rows are not made of
            clicks.

    Raises:
        Refused: too few independent units or clicks for any interval.
    """
    if units < MIN_CLUSTERS or clicks < MIN_CLICKS:
        raise Refused(f"{units:,} independent units, {clicks:,.1f} effective clicks: no interval is published below "
                      f"{MIN_CLUSTERS} and {MIN_CLICKS:g}; run more tests, or show each candidate to more viewers")
    reason = f"randomised; {tests:,} tests in {units:,} units" + (
        f", {clicks:,.0f} effective clicks" if np.isfinite(clicks) else "")
    if clicks < EXPLORATORY_CLICKS:
        return Choice("betting", "exploratory", reason)
    few = units < EXPLORATORY_CLUSTERS
    return Choice("t+bootstrap" if few else "t", "exploratory" if few else "confirmatory", reason)


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
        present = np.bincount(self.clusters[rows]) > 0
        clusters = (np.cumsum(present) - 1)[self.clusters[rows]]
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

    def lift_of(self, above: Floats, open_above: Reach, below: Floats, open_below: Reach, choice: Choice,
                null: float | None) -> Interval:
        """Relative lift of one arm's rows over another's, widened by what either leaves open."""
        made = self.ratio(above, below, choice, null)
        if not (open_above.exact and open_below.exact):
            made = widened(made, [self.ratio(open_above.least(above), open_below.most(below), choice, null),
                                  self.ratio(open_above.most(above), open_below.least(below), choice, null)], null)
        return at_least(made.shifted(-1.0), -1.0)

    def cost(self, name: str, metric: str, choice: Choice) -> Interval:
        """Revenue over what was bought, from the two themselves: r is kept where the test of paid - r bought is.

        An interval of linearised rows would take the estimated ratio and the estimated rate as known, which only
        Student's t (the delta method) may. Exploratory evidence is bet on: empirical likelihood of such a ratio
        covered 83 to 91 % at six to twelve clicks of prices that differ, betting 93 % or more from FEW_CLICKS
        effective ones on.

        Raises:
            Refused: fewer effective clicks than that.
        """
        arm, bought = self.arms[name], COSTS[metric]
        if arm.events[metric] < FEW_CLICKS:
            raise Refused(f"effective events {arm.events[metric]:.1f}: no interval of a cost is published "
                          f"below {FEW_CLICKS:g}; log more")
        choice = choice if choice.label == "confirmatory" else replace(choice, method="betting")
        paid, count = arm.rows["revenue_per_mille"] / 1000, arm.rows[bought]
        made = self.ratio(paid, count, choice, None)
        if not arm.reach_of(metric).exact:
            money, number = arm.reach_of("revenue_per_mille"), arm.reach_of(bought)
            made = widened(made, [
                self.ratio(money.least(arm.rows["revenue_per_mille"]) / 1000, number.most(count), choice, None),
                self.ratio(money.most(arm.rows["revenue_per_mille"]) / 1000, number.least(count), choice, None)], None)
        return at_least(made, 0.0)

    def _both_costs(self, name: str, against: str, metric: str, choice: Choice) -> tuple[Interval, Interval]:
        """Two arms' costs, each with half of the error, so that both hold together (Bonferroni)."""
        half = replace(self, confidence=(1 + self.confidence) / 2)
        return half.cost(name, metric, choice), half.cost(against, metric, choice)

    def choice_of(self, metric: str, *names: str) -> Choice:
        """The interval rule applied to the worst of the named arms, by the metric's own events.

        Raises:
            Refused: too little evidence of this metric, however much there is of another.
        """
        arms = [self.arms[n] for n in names]
        if not self.paired:
            clicks = [float(a.rows[metric].sum()) ** 2 / max(float(a.click_squares.sum()), SMALLEST)
                      for a in arms if a.click_squares is not None]
            return randomized_choice(len(arms[0].rows[metric]), self.units, min(clicks, default=float("inf")))
        return choose_interval(min(a.ess for a in arms), min(a.events[metric] for a in arms),
                               int(self.clusters.max()) + 1, [m for a in arms for m in a.sizes])

    def lift(self, name: str, against: str, metric: str, null: float = 0.0) -> Interval:
        """Relative lift of one arm over another; rates are not negative, so a lift is never below -1.

        ``null`` is the lift that the p-value is about. A cost's lift is a ratio of two ratios: by the delta method
        where evidence is confirmatory, elsewhere between the ends of both arms' own intervals, and without a p-value.
        """
        arm, base = self.arms[name], self.arms[against]
        choice = self.choice_of(metric, name, against)
        if metric in COSTS and choice.label != "confirmatory":
            own, other = self._both_costs(name, against, metric, choice)
            return replace(own, estimate=own.estimate / other.estimate - 1, low=own.low / other.high - 1,
                           high=own.high / other.low - 1 if other.low > 0 else float("inf"), se=None, p_value=None)
        choice = replace(choice, method="t") if metric in COSTS else choice
        return self.lift_of(arm.rows[metric], arm.reach_of(metric), base.rows[metric], base.reach_of(metric),
                            choice, 1.0 + null)

    def unadjusted_lift(self, name: str, against: str) -> Interval:
        """The goal's lift without outcome models (IPS), of arms that have ``unadjusted`` rows."""
        arm, base = self.arms[name], self.arms[against]
        assert arm.unadjusted is not None
        assert base.unadjusted is not None
        return self.lift_of(arm.unadjusted, arm.unadjusted_reach, base.unadjusted, base.unadjusted_reach,
                            self.choice_of(self.goal, name, against), None)

    def value(self, name: str, metric: str) -> Interval:
        """An arm's own value."""
        arm = self.arms[name]
        if metric in COSTS:
            return self.cost(name, metric, self.choice_of(metric, name))
        rows, reach, choice = arm.rows[metric], arm.reach_of(metric), self.choice_of(metric, name)
        headroom = arm.headroom.get(metric)
        made = self.ratio(rows, 1.0, choice, None, headroom)
        if not reach.exact:
            made = widened(made, [self.ratio(x, 1.0, choice, None, headroom) for x in (
                reach.least(rows), reach.most(rows))], None)
        return at_least(made, 0.0)

    def difference(self, name: str, against: str, metric: str, relative: bool) -> Interval:
        """Difference of two arms' values, absolute, or as a difference of lifts (divided by the baseline's value)."""
        choice = self.choice_of(metric, name, against, self.baseline)
        if metric in COSTS:
            if choice.label != "confirmatory" and not relative:
                own, other = self._both_costs(name, against, metric, choice)
                return replace(own, estimate=own.estimate - other.estimate, low=own.low - other.high,
                               high=own.high - other.low, se=None, p_value=None)
            choice = replace(choice, method="t")
        (rows, mine), (others, theirs), (base, whole) = (
            (self.arms[n].rows[metric], self.arms[n].reach_of(metric)) for n in (name, against, self.baseline))
        made = self.ratio(rows - others, base if relative else 1.0, choice, 0.0)
        if mine.exact and theirs.exact and (whole.exact or not relative):
            return made
        ends_of = [mine.least(rows) - theirs.most(others), mine.most(rows) - theirs.least(others)]
        below = [whole.least(base), whole.most(base)] if relative else [1.0]
        return widened(made, [self.ratio(x, y, choice, 0.0) for x in ends_of for y in below], 0.0)


def widened(made: Interval, extremes: Sequence[Interval], null: float | None) -> Interval:
    """The interval of an estimate whose limit may differ from the truth: the hull over the truths that there could be.

    Each of ``extremes`` covers the truth if it is the extreme one, and an end of the hull lies beyond that of any truth
    between them (Horowitz, Manski (2000). Nonparametric analysis of randomized experiments with missing covariate and
    outcome data. JASA 95(449)). The p-value is the largest over those truths. The standard error is stretched as the
    interval was, so that whoever takes a multiple of it takes the gap in as well.
    """
    every = [made, *extremes]
    low, high = min(e.low for e in every), max(e.high for e in every)
    p_value = None
    if null is not None and all(e.p_value is not None for e in every):
        inside = min(e.estimate for e in every) <= null <= max(e.estimate for e in every)
        p_value = 1.0 if inside else max(float(e.p_value or 0.0) for e in every)
    se = None
    if all(e.se is not None for e in every):
        reached = ((made.estimate - low, made.estimate - made.low), (high - made.estimate, made.high - made.estimate))
        se = max(float(e.se or 0.0) for e in every)
        se *= max([1.0, *(new / old for new, old in reached if old > 0)])
    return replace(made, low=low, high=high, p_value=p_value, se=se)


def at_least(made: Interval, floor: float) -> Interval:
    """The interval cut at the lowest value that its quantity can have."""
    return Interval(made.estimate, max(floor, made.low), max(floor, made.high), made.se, made.p_value, made.method,
                    made.label)


def ends(made: Interval) -> dict[str, float]:
    """{"estimate", "low", "high"}, as reports hold it."""
    return {"estimate": made.estimate, "low": made.low, "high": made.high}


NO_LIFT = {"estimate": 0.0, "low": 0.0, "high": 0.0}
