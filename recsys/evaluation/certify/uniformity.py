"""P-values where there is no effect: they should be uniform, and 5 % of them below 0.05."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import kstest

from recsys.evaluation import intervals
from recsys.evaluation.ab.analysis import Plan, analyse
from recsys.evaluation.ab.contrast import aggregates, compare
from recsys.evaluation.ab.units import ROWS, Metric, Units
from recsys.evaluation.certify.measure import DRAWS, choice_of_pair
from recsys.evaluation.certify.worlds import EAGERNESS, REGIMES, LiftWorld

ALPHA, LEAST_KS = 0.05, 1e-3
LOOKS = 5
CLICK_RATES, UNITS = (0.004, 0.02, 0.10), 4_000


@dataclass(frozen=True)
class NullCell:
    """No effect: ``ab`` (users randomised to two arms, ``setting`` a click rate) or ``lift`` (two policies of equal
    value on one log, ``setting`` a regime)."""

    kind: str
    setting: float
    replications: int
    seed: int
    section: str = "uniformity"

    @property
    def name(self) -> str:
        """For a line of a log."""
        return f"no effect, {self.kind} {self.setting:g}"

    @property
    def work(self) -> float:
        """About how long it takes, in arbitrary units."""
        return self.replications * 20_000.0


def measure_null(cell: NullCell) -> dict[str, Any]:
    """P-values of every test of the cell: {"tests": name -> :func:`summary`}."""
    found = _ab(cell) if cell.kind == "ab" else _lift(cell)
    return {**asdict(cell), "tests": {name: summary(p) for name, p in found.items()}}


def summary(p_values: Iterable[float]) -> dict[str, Any]:
    """Share below ALPHA with its binomial standard error under the level, and the Kolmogorov-Smirnov p-value."""
    p = np.array([x for x in p_values if np.isfinite(x)])
    return {"tests": len(p), "rejected": float((p < ALPHA).mean()), "se": float(np.sqrt(ALPHA * (1 - ALPHA) / len(p))),
            "ks_p": float(kstest(p, "uniform").pvalue)}


def draw_units(click_rate: float, rng: np.random.Generator) -> tuple[Units, np.ndarray]:
    """Two arms of users that differ in nothing, with 1 to 40 rows each and a click propensity of their own.

    Returns:
        The units, with columns click, rows and ``before`` (clicks of an earlier time); clicks of every row, in the
        order of the units.
    """
    users = UNITS
    rows = np.minimum(np.ceil(5 * (1 + rng.pareto(2.0, users))), 40).astype(int)
    eager = click_rate * rng.choice(EAGERNESS, users) * rng.gamma(1.0, 1.0, users)
    arm = np.sort(rng.integers(0, 2, users))
    eager = np.minimum(eager, 0.9)
    click = rng.random(int(rows.sum())) < np.repeat(eager, rows)
    unit = np.repeat(np.arange(users), rows)
    before = rng.binomial(20, eager)
    return Units(["a", "b"], arm, len(click), {
        "click": np.bincount(unit, click, users).astype(float), ROWS: rows.astype(float),
        "before": before.astype(float)}, 0), click


def _ab(cell: NullCell) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"analysis, per user": [], "analysis, CUPED": [], "per impression": [],
                                     f"one look of {LOOKS} below 0.05": [], f"always valid, {LOOKS} looks": []}
    ratio, adjusted = Metric("click", ROWS), Metric("click", ROWS, "before")
    for replication in range(cell.replications):
        units, click = draw_units(cell.setting, np.random.default_rng([cell.seed, replication]))
        for name, metric in (("analysis, per user", ratio), ("analysis, CUPED", adjusted)):
            made = analyse(units, [metric], Plan("a", multiplicity="none"))
            if made["healthy"]:  # a sample ratio is unlikely once in a thousand
                found[name].append(made["metrics"][ratio.name]["variants"]["b"]["p_value"])
        rows = units.values[ROWS].astype(int)
        each = Units(units.arms, np.repeat(units.arm, rows), len(click), {"click": click.astype(float)}, 0)
        found["per impression"].append(_p(each, Metric("click"), None))
        looks = [_part(units, share, cell.seed + replication) for share in np.arange(1, LOOKS + 1) / LOOKS]
        found[f"one look of {LOOKS} below 0.05"].append(min(_p(u, ratio, None) for u in looks))
        found[f"always valid, {LOOKS} looks"].append(min(_p(u, ratio, float(UNITS)) for u in looks))
    return found


def _part(units: Units, share: float, seed: int) -> Units:
    order = np.random.default_rng(seed).permutation(len(units.arm))  # who comes first
    kept = np.sort(order[:round(share * len(order))])
    return Units(units.arms, units.arm[kept], units.rows, {n: v[kept] for n, v in units.values.items()}, 0)


def _p(units: Units, metric: Metric, tuning: float | None) -> float:
    made = compare(aggregates(units, "a", metric), aggregates(units, "b", metric), metric, tuning=tuning)
    return float(str(made.absolute.p_value))


def _lift(cell: NullCell) -> dict[str, list[float]]:
    world = LiftWorld(REGIMES[int(cell.setting)], cell.seed, null=True)
    found: dict[str, list[float]] = {"t": [], "t per impression": [], "published": []}
    for replication in range(cell.replications):
        log = world.draw(np.random.default_rng([cell.seed, replication]))
        sums = intervals.cluster_sums(*log.rows, log.user)
        found["t"].append(intervals.t_interval(sums, null=1.0).p_value or 0.0)
        rows = intervals.ClusterSums(*log.rows)
        found["t per impression"].append(intervals.t_interval(rows, null=1.0).p_value or 0.0)
        choice, _ = choice_of_pair(log.weights, log.click, log.user)
        if choice is not None:
            p = intervals.interval(sums, choice, draws=DRAWS, seed=replication, null=1.0).p_value
            found["published"].append(np.nan if p is None else p)
    return {name: p for name, p in found.items() if np.isfinite(p).any()}


def nulls(replications: int, seed: int) -> list[NullCell]:
    """The cells without an effect: three click rates, four regimes of lifts."""
    return [*(NullCell("ab", rate, replications, seed) for rate in CLICK_RATES),
            *(NullCell("lift", regime, replications, 100 * seed + regime) for regime in (2, 5, 8, 9))]
