"""Coverage and width of every interval method on independent logs of one world."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recsys.errors import Refused
from recsys.evaluation import intervals
from recsys.evaluation.betting import betting_interval, betting_mean, empirical_bernstein
from recsys.evaluation.certify.worlds import REGIMES, Kind, LiftWorld, Overlap, Sample, ValueWorld
from recsys.evaluation.intervals import ClusterSums, Interval, effective
from recsys.evaluation.likelihood import empirical_likelihood
from recsys.evaluation.offpolicy.answer import answer
from recsys.evaluation.offpolicy.estimators import Outcomes
from recsys.evaluation.offpolicy.totals import Totals

NOMINAL = 0.95
DRAWS = 200  # of the bootstrap


@dataclass(frozen=True)
class ValueCell:
    """A cell of the grid: the value of one policy, by importance weighting."""

    ctr: float
    overlap: Overlap
    n: int
    kind: Kind
    replications: int
    seed: int
    section: str = "values"

    @property
    def name(self) -> str:
        """For a line of a log."""
        return f"{self.kind}, {self.overlap} overlap, CTR {100 * self.ctr:g} %, n {self.n:,}"

    @property
    def work(self) -> float:
        """About how long it takes, in arbitrary units."""
        return self.replications * (self.n + 5_000)


@dataclass(frozen=True)
class LiftCell:
    """A setting of the lifts: the relative lift of two policies, by doubly robust estimation."""

    regime: int
    replications: int
    seed: int
    section: str = "lifts"

    @property
    def name(self) -> str:
        """For a line of a log."""
        return f"lift, regime {self.regime}: {REGIMES[self.regime].users:,} users"

    @property
    def work(self) -> float:
        """About how long it takes, in arbitrary units."""
        r = REGIMES[self.regime]
        return self.replications * (3 * r.users * r.rows_per_user + 5_000)


class Tally:
    """What every method did over the logs of one cell."""

    def __init__(self, truth: float, scale: float) -> None:
        self.truth, self.scale = truth, scale
        self.made: dict[str, list[Interval]] = {}
        self.facts: list[dict[str, float]] = []
        self.chosen: Counter[str] = Counter()
        self.saved: list[float] = []

    def add(self, made: dict[str, Interval], method: str, facts: dict[str, float]) -> None:
        """One log: its intervals, the method that the default policy chose (or ``refused: ...``), facts of it."""
        for name, one in made.items():
            self.made.setdefault(name, []).append(one)
        self.chosen[method] += 1
        self.facts.append(facts)

    def result(self) -> dict[str, Any]:
        """Plain values; widths are medians, in units of ``scale``; null where infinite."""
        methods = {}
        for name, found in self.made.items():
            low, high = np.array([i.low for i in found]), np.array([i.high for i in found])
            width = float(np.median(high - low)) / self.scale
            methods[name] = {"logs": len(found), "coverage": float(((low <= self.truth) & (self.truth <= high)).mean()),
                             "truth_below": float((self.truth < low).mean()),
                             "truth_above": float((self.truth > high).mean()),
                             "width": width if np.isfinite(width) else None}
        facts = {k: float(np.median([f[k] for f in self.facts])) for k in self.facts[0]}
        return {"truth": self.truth, "facts": facts, "chosen": dict(sorted(self.chosen.items())), "methods": methods}


def value_intervals(sample: Sample, bound: float, draws: int, seed: int) -> dict[str, Interval]:
    """Every method's interval of a value; ``bound`` is the largest weight there can be."""
    rows = sample.weight * sample.click
    sums = intervals.cluster_sums(rows, 1.0, sample.unit)
    mean = sums.numerator / sums.denominator
    t = intervals.t_interval(sums)
    boot = intervals.bootstrap_interval(sums, draws=draws, seed=seed)
    made = {"t": t, "bootstrap": boot, "t+bootstrap": intervals.wider_of(t, boot), "el": empirical_likelihood(sums),
            "betting": betting_mean(mean, 0, bound, seed=seed),
            "empirical_bernstein": empirical_bernstein(mean, 0, bound)}
    if len(sums.numerator) < len(rows):
        made["t per impression"] = intervals.t_interval(ClusterSums(rows, np.ones(len(rows))))
    return made


def published(sample: Sample, draws: int, seed: int) -> tuple[dict[str, Interval], str, dict[str, float]]:
    """What ``recsys ope`` publishes of the log, by its rule (``default``) and when asked for betting always.

    Returns:
        Intervals (none where refused), the method or ``refused: first words of the reason``, facts of the log.
    """
    totals = Totals(("ips",), len(sample.click))
    totals.add(Outcomes(sample.weight, sample.click), sample.unit)
    ess, clicks, _, _ = totals.evidence()
    facts = {"ess": ess, "effective_clicks": clicks, "top_1_percent_weight_share": totals.top_share}
    try:
        found = answer(totals, draws=draws, seed=seed)
        made = {"default": _entry(found)}
        always = made["default"] if found["interval"] == "betting" else _entry(
            answer(totals, "betting", draws=draws, seed=seed))
    except Refused as refused:
        return {}, f"refused: {' '.join(str(refused).split()[:3])}".rstrip(":,0123456789. "), facts
    return {**made, "always betting": always}, str(found["interval"]), facts


def _entry(found: dict[str, Any]) -> Interval:
    ips = found["estimators"]["ips"]
    if ips["low"] is None:
        raise Refused(ips["note"])
    return Interval(ips["estimate"], ips["low"], ips["high"], method=ips["method"])


def measure_value(cell: ValueCell) -> dict[str, Any]:
    """Run a cell of the grid; widths are over the truth."""
    world = ValueWorld(cell.ctr, cell.overlap, cell.kind, cell.seed)
    tally = Tally(world.value, world.value)
    for replication in range(cell.replications):
        sample = world.draw(cell.n, np.random.default_rng([cell.seed, cell.n, replication]))
        own, method, facts = published(sample, DRAWS, replication)
        tally.add({**value_intervals(sample, world.bound, DRAWS, replication), **own}, method, facts)
    return {**asdict(cell), "largest_weight": world.bound, **tally.result()}


def measure_lift(cell: LiftCell) -> dict[str, Any]:
    """Run a setting of the lifts; widths are those of the lift."""
    world = LiftWorld(REGIMES[cell.regime], cell.seed)
    tally = Tally(1 + world.true_lift, 1.0)
    for replication in range(cell.replications):
        log = world.draw(np.random.default_rng([cell.seed, replication]))
        sums = intervals.cluster_sums(*log.rows, log.user)
        choice, facts = choice_of_pair(log.weights, log.click, log.user)
        t = intervals.t_interval(sums)
        try:
            boot = intervals.bootstrap_interval(sums, draws=DRAWS, seed=replication)
        except Refused:  # too few clicks to compare with: the method gives no answer
            boot = Interval(sums.ratio, -np.inf, np.inf)
        made = {"t": t, "bootstrap": boot, "t+bootstrap": intervals.wider_of(t, boot),
                "el": empirical_likelihood(sums), "always betting": betting_interval(sums, seed=replication)}
        method = "refused: too little evidence"
        if choice is not None:
            own = intervals.interval(sums, choice, draws=DRAWS, seed=replication)
            method = choice.method
            if np.isfinite([own.low, own.high]).all():
                made["default"] = own
            else:
                method = "refused: no finite end"
        tally.add(made, method, facts)
    return {**asdict(cell), **{"users": world.regime.users, **asdict(world.regime)}, **tally.result()}


def choice_of_pair(weights: tuple[intervals.Floats, ...], click: intervals.Floats, user: np.ndarray,
                   ) -> tuple[intervals.Choice | None, dict[str, float]]:
    """The interval rule applied to the worse of two arms, as the lift report does; None where it refuses."""
    ess = min(effective(w) for w in weights)
    clicks = min(effective(w * click, user) for w in weights)
    top = max(float(np.sort(w)[-max(1, round(len(w) / 100)):].sum() / w.sum()) for w in weights)
    sizes = [np.bincount(user), *(np.bincount(user, w) for w in weights)]
    facts = {"ess": ess, "effective_clicks": clicks, "top_1_percent_weight_share": top,
             "effective_units": min(map(effective, sizes))}
    try:
        return intervals.choose_interval(ess, clicks, len(sizes[0]), sizes), facts
    except Refused:
        return None, facts
