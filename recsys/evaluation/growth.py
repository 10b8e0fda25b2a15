"""The lift as the data grew: what somebody who looked every day would have seen, with bounds that hold at every look.

An interval made for one look, looked at again and again, leaves zero far more often than its level says. The bounds
here are a confidence sequence (:mod:`recsys.evaluation.sequential`): all of them at once hold the truth with the stated
confidence. The two halves of the time beside it show novelty and drift.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import ExperimentConfig
from recsys.errors import Refused
from recsys.evaluation.comparison import Comparison, at_least, ends
from recsys.evaluation.intervals import EXPLORATORY_CLUSTERS, ClusterSums, Floats, Interval, t_interval
from recsys.evaluation.segments import Segments, equal_lifts
from recsys.evaluation.sequential import always_valid_multiplier

HALVES = ("first half", "second half")


def growth(c: Comparison, when: pa.ChunkedArray | None, config: ExperimentConfig) -> dict[str, Any]:
    """Every arm's lift on the first rows of the log, at evenly spaced looks.

    A look takes all rows up to its last time, so a unit that comes again adds to the sums it already has. From
    EXPLORATORY_CLUSTERS units on, because the sequence is asymptotic.

    Args:
        c: arms on one log, n rows.
        when: n values that order the rows (times, weeks), or None.
        config: ``evaluation.growth_looks``; ``decision.tuning``, the units at which the bounds are tightest.

    Returns:
        {"column", "looks", "tuning", "confidence", "arms": {arm: [{"until", "n", "units", "lift": always-valid
        interval, "one_look": the interval of a single look}]}, "halves": {arm: {"first", "second": interval or None,
        "p_value": of their difference}}}, or {"refused": why}.
    """
    ev = config.evaluation
    if when is None:
        return {"refused": f"the log has no column {ev.time_column} (evaluation.time_column) to order it by"}
    if when.null_count:
        return {"refused": f"{when.null_count:,} of {len(when):,} rows have no {ev.time_column}"}
    order = np.asarray(pc.sort_indices(when))
    ranks = np.asarray(pc.rank(when, tiebreaker="max")).astype(np.int64)  # rows up to and including each row's time
    wanted = np.ceil(len(ranks) * np.arange(1, ev.growth_looks + 1) / ev.growth_looks).astype(np.int64)
    looks = np.unique(ranks[order][wanted - 1])
    out: dict[str, Any] = {"column": ev.time_column, "looks": 0, "tuning": config.decision.tuning,
                           "confidence": c.confidence, "arms": {}, "halves": {}}
    base = c.arms[c.baseline].rows[c.goal]
    halves = Segments(list(HALVES), (ranks > ranks[order][len(ranks) // 2 - 1]).astype(np.int64))
    for name, arm in c.arms.items():
        if name != c.baseline:
            rows = arm.rows[c.goal]
            out["arms"][name] = _path(rows[order], base[order], c, order, looks, config.decision.tuning, when)
            out["halves"][name] = _halves(c, halves, name)
    out["looks"] = max((len(path) for path in out["arms"].values()), default=0)
    return out


def _path(rows: Floats, base: Floats, c: Comparison, order: Any, looks: Any, tuning: float,
          when: pa.ChunkedArray) -> list[dict[str, Any]]:
    clusters, count = c.clusters[order], int(c.clusters.max()) + 1
    above, below, seen, start, points = np.zeros(count), np.zeros(count), np.zeros(count), 0, []
    for end in looks.tolist():
        code = clusters[start:end]
        above += np.bincount(code, rows[start:end], count)
        below += np.bincount(code, base[start:end], count)
        seen += np.bincount(code, minlength=count)
        start, present = end, seen > 0
        units = int(present.sum())
        if units < EXPLORATORY_CLUSTERS:
            continue
        try:
            made = t_interval(ClusterSums(above[present], below[present]), c.confidence).shifted(-1.0)
        except Refused:  # no click of the baseline yet
            continue
        assert made.se is not None
        half = made.se * always_valid_multiplier(units, 1 - c.confidence, tuning)
        wide = Interval(made.estimate, made.estimate - half, made.estimate + half)
        points.append({"until": _text(when[int(order[end - 1])]), "n": end, "units": units,
                       "lift": ends(at_least(wide, -1.0)), "one_look": ends(at_least(made, -1.0))})
    return points


def _text(value: pa.Scalar) -> str:
    plain = value.as_py()
    return plain.isoformat(timespec="minutes") if hasattr(plain, "isoformat") else str(plain)


def _halves(c: Comparison, halves: Segments, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for g, key in enumerate(("first", "second")):
        rows = np.flatnonzero(halves.codes == g)
        try:
            found[key] = ends(c.part(rows).lift(name, c.baseline, c.goal)) if len(rows) else None
        except Refused:
            found[key] = None
    same = equal_lifts(c, halves, name, (0, 1)) if None not in found.values() else None
    return {**found, "p_value": None if same is None else same["p_value"]}
