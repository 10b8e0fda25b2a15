"""An experiment's lift by segment and as the data grew, in the shapes of the lift report.

Read as there (docs/decisions/0027-segments-and-peeking.md): :mod:`recsys.evaluation.segments` and
:mod:`recsys.evaluation.growth` work on arms that were evaluated on one log; here units were in one arm each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import Refused
from recsys.evaluation import health
from recsys.evaluation.ab.contrast import Contrast, aggregates, compare
from recsys.evaluation.ab.parts import Parts
from recsys.evaluation.ab.units import Metric, Units
from recsys.evaluation.comparison import ArmRows, Comparison, at_least, ends
from recsys.evaluation.decision import adjust
from recsys.evaluation.growth import bounded
from recsys.evaluation.intervals import (
    EXPLORATORY_CLICKS,
    EXPLORATORY_CLUSTERS,
    Choice,
    Floats,
    Interval,
    choose_interval,
    effective,
)
from recsys.evaluation.segments import Segments, equal_lifts
from recsys.evaluation.shrinkage import shrink

ENOUGH = min(EXPLORATORY_CLICKS, EXPLORATORY_CLUSTERS)  # of units and of events, in either arm


def contrast_of(units: Units, metric: Metric, baseline: str, arm: str, confidence: float,
                tuning: float | None) -> tuple[Contrast, Choice, bool]:
    """A comparison, the label of its evidence, and whether units and events are enough for the central limit theorem.

    Raises:
        Refused: nothing to compare, or too little evidence.
    """
    made = compare(aggregates(units, baseline, metric), aggregates(units, arm, metric), metric, confidence,
                   tuning=tuning)
    if made.relative is None:
        raise Refused(str(made.unbounded))
    events = min(effective(units.of(a, metric.numerator)) for a in (baseline, arm))
    size = min(len(units.of(a, metric.numerator)) for a in (baseline, arm))
    return made, choose_interval(size, events, size), min(events, size) >= ENOUGH


def segment_lifts(parts: Mapping[str, Parts], metric: Metric, overall: Mapping[str, float], baseline: str,
                  confidence: float, tuning: float | None) -> dict[str, Any]:
    """Every arm's lift in every segment; ``p_adjusted`` is added by :func:`adjust_segments`.

    A column whose segments hold other shares of the arms than the whole log is refused: what an arm was shown changed
    who is in a segment, and then arms are not comparable within it.

    Args:
        parts: column -> its segments.
        metric: with a covariate, lifts are CUPED-adjusted within each segment (the test that segments differ is raw).
        overall: arm -> its overall lift, towards which segments are drawn.
        baseline: name of the arm that others are compared with.
        confidence: coverage of each interval.
        tuning: None for one look, else of always-valid intervals.

    Returns:
        column -> {"values", "arms"} as :func:`recsys.evaluation.segments.segment_lifts`, or {"refused"}.
    """
    out: dict[str, Any] = {}
    for column, made in parts.items():
        arms = made.lines.arms
        count = np.bincount(made.part * len(arms) + made.lines.arm, minlength=len(made.labels) * len(arms)).reshape(
            len(made.labels), len(arms))
        if reason := _uneven(made, count):
            out[column] = {"refused": reason}
            continue
        own = [made.where(made.part == g) for g in range(len(made.labels))]
        out[column] = {
            "values": {label: {"n": int(n), "clusters": int(u)}
                       for label, n, u in zip(made.labels, made.rows, count.sum(axis=1), strict=True)},
            "arms": {a: _arm(made, own, metric, overall[a], baseline, a, confidence, tuning)
                     for a in arms if a in overall}}
    return out


def _uneven(made: Parts, count: NDArray[np.int64]) -> str:
    whole = made.per_unit().counts
    for label, row in zip(made.labels, count, strict=True):
        if row.sum() and health.srm(row, whole)[1] * len(made.labels) < health.SRM_ALPHA:
            seen = ", ".join(f"{a} {n:,}" for a, n in zip(made.lines.arms, row, strict=True))
            return (f"segment {label} has {seen} units, which is not the ratio of the whole experiment: the arms "
                    "changed who is in it; name a column that was known before the experiment")
    return ""


def _arm(made: Parts, own: list[Parts], metric: Metric, overall: float, baseline: str, arm: str, confidence: float,
         tuning: float | None) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    tested: list[int] = []
    for g, (label, part) in enumerate(zip(made.labels, own, strict=True)):
        try:
            contrast, choice, enough = contrast_of(part.lines, metric, baseline, arm, confidence, tuning)
        except Refused as refused:
            found[label] = {"refused": str(refused)}
            continue
        lift = _relative(contrast)
        found[label] = {"lift": ends(at_least(lift, -1.0)), "se": lift.se,
                        "p_value": contrast.absolute.p_value, "interval_method": lift.method,
                        "label": choice.label, "shrunk": None}
        tested += [g] if enough else []
    noisy = [label for label, line in found.items() if line.get("se")]
    shrunk = shrink([found[n]["lift"]["estimate"] for n in noisy], [found[n]["se"] for n in noisy], overall)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    for name, estimate, se in zip(noisy, shrunk.estimate, shrunk.se, strict=True):
        if shrunk.between is not None:
            sure = made.labels.index(name) in tested
            found[name]["shrunk"] = {"estimate": float(estimate),
                                     "low": max(-1.0, float(estimate - z * se)) if sure else None,
                                     "high": float(estimate + z * se) if sure else None}
    return {"heterogeneity": _same(made, tested, metric, baseline, arm, confidence), "between_sd": shrunk.between,
            "values": found}


def _same(made: Parts, told: list[int], metric: Metric, baseline: str, arm: str,
          confidence: float) -> dict[str, Any] | None:
    """:func:`recsys.evaluation.segments.equal_lifts` of arms with units of their own; None for fewer than two parts.

    A unit's line in segment g becomes a row d r_k + 1[its arm is k] (y - r_k d) D / D_k for each arm k: y and d its
    numerator and denominator, r_k the arm's ratio in g, D_k the arm's denominator there, D that of both. The rows of an
    arm sum to D r_k, and their deviations are the influence of the unit on it.
    """
    if len(told) < 2:
        return None
    pair = [made.lines.arms.index(a) for a in (baseline, arm)]
    kept = made.where(np.isin(made.lines.arm, pair) & np.isin(made.part, told))
    y = kept.lines.values[metric.numerator]
    d = kept.lines.values[metric.denominator] if metric.denominator else np.ones(len(y))
    parts, rows = len(made.labels), {}
    both = np.bincount(kept.part, d, parts)
    for name, code in zip((baseline, arm), pair, strict=True):
        mine = kept.lines.arm == code
        above, below = (np.bincount(kept.part, np.where(mine, x, 0.0), parts) for x in (y, d))
        ratio: Floats = above / np.where(below > 0, below, 1.0)
        scale = both / np.where(below > 0, below, 1.0)
        rows[name] = d * ratio[kept.part] + np.where(mine, (y - ratio[kept.part] * d) * scale[kept.part], 0.0)
    clusters = np.unique(kept.unit, return_inverse=True)[1].astype(np.int64)
    c = Comparison({n: ArmRows({metric.name: x}, float(len(x)), {}, {}) for n, x in rows.items()}, baseline,
                   metric.name, clusters, confidence, 0, 0, paired=True)
    return equal_lifts(c, Segments(made.labels, kept.part), arm, told)


def adjust_segments(found: list[Mapping[str, Any]], method: str, alpha: float) -> None:
    """Adjust p-values over all segments, arms and metrics; and, as a family of its own, tests that segments differ."""
    arms = [arm for columns in found for one in columns.values() if "arms" in one for arm in one["arms"].values()]
    lifts = [line for arm in arms for line in arm["values"].values() if "lift" in line]
    for family in (lifts, [arm["heterogeneity"] for arm in arms if arm["heterogeneity"]]):
        adjusted = adjust({str(i): line["p_value"] for i, line in enumerate(family)}, method, alpha)
        for i, line in enumerate(family):
            line["p_adjusted"] = adjusted[str(i)]


def growth_of(made: Parts, column: str, metric: Metric, baseline: str, confidence: float,
              tuning: float) -> dict[str, Any]:
    """Every arm's lift on the rows up to each look, as :func:`recsys.evaluation.growth.growth` gives it.

    Args:
        made: parts by time.
        column: that ordered them.
        metric: lifts are CUPED-adjusted where it has a covariate (the test of the two halves is raw).
        baseline: name of the arm that others are compared with.
        confidence: coverage, of all looks at once and of each.
        tuning: units at which the always-valid bounds are tightest.
    """
    fixed = frozenset(c for c in (metric.covariate, metric.covariate_denominator) if c is not None)
    others, rows = [a for a in made.lines.arms if a != baseline], np.cumsum(made.rows)
    paths: dict[str, list[dict[str, Any]]] = {a: [] for a in others}
    for look, until in enumerate(made.labels):
        units = made.where(made.part <= look).per_unit(fixed)
        for arm in others:
            n = sum(len(units.of(a, metric.numerator)) for a in (baseline, arm))
            if n < EXPLORATORY_CLUSTERS:
                continue
            try:
                once, choice, _ = contrast_of(units, metric, baseline, arm, confidence, None)
                bounds: Any = _sequence(units, metric, baseline, arm, tuning)
                if choice.label != "confirmatory":
                    bounds = at_least(_relative(contrast_of(units, metric, baseline, arm, 1 - (1 - confidence) / len(
                        made.labels), None)[0]), -1.0)
            except Refused:
                continue
            one = at_least(_relative(once), -1.0)
            paths[arm].append({"until": until, "n": int(rows[look]), "units": n, "lift": bounds, "one_look": one,
                               "method": one.method, "label": choice.label})
    paths = {a: bounded(path, len(made.labels), 1 - confidence) for a, path in paths.items()}
    first = int(np.searchsorted(rows, rows[-1] / 2)) + 1
    halves = made.merged((made.part >= first).astype(np.int64), ["first", "second"], fixed)
    return {"column": column, "looks": max((len(p) for p in paths.values()), default=0), "tuning": tuning,
            "confidence": confidence, "arms": paths,
            "halves": {a: _halves(halves, metric, baseline, a, confidence) for a in others}}


def _sequence(units: Units, metric: Metric, baseline: str, arm: str,
              tuning: float) -> Callable[[float], Interval | None]:
    first, second = (aggregates(units, a, metric) for a in (baseline, arm))
    return lambda alpha: compare(first, second, metric, 1 - alpha, tuning=tuning).relative


def _relative(made: Contrast) -> Interval:
    assert made.relative is not None  # contrast_of refuses those
    return made.relative


def _halves(made: Parts, metric: Metric, baseline: str, arm: str, confidence: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sure = []
    for g, key in enumerate(made.labels):
        try:
            contrast, _, enough = contrast_of(made.where(made.part == g).lines, metric, baseline, arm, confidence, None)
        except Refused:
            found[key] = None
            continue
        found[key] = ends(at_least(_relative(contrast), -1.0))
        sure += [g] if enough else []
    same = _same(made, sure, metric, baseline, arm, confidence)
    return {**found, "p_value": None if same is None else same["p_value"]}
