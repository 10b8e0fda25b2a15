"""The lift as the data grew: what somebody who looked every day would have seen, with bounds that hold at every look.

An interval made for one look, looked at again and again, leaves zero far more often than its level says. Beside it
stand bounds that hold at all looks at once. The two halves of the time show novelty and drift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import Refused
from recsys.evaluation.comparison import Comparison, at_least, ends
from recsys.evaluation.intervals import Interval
from recsys.evaluation.segments import Segments, equal_lifts
from recsys.evaluation.sequential import always_valid_multiplier

if TYPE_CHECKING:
    from recsys.config import ExperimentConfig

HALVES = ("first half", "second half")


def growth(c: Comparison, when: pa.ChunkedArray | None, config: ExperimentConfig) -> dict[str, Any]:
    """Every arm's lift on the first rows of the log, at evenly spaced looks.

    A look takes all rows up to its last time, so a unit that comes again adds to the sums it already has. Each look is
    intervalled by its own evidence, by the rule of the report (``one_look``; that of the last look is the report's
    interval); looks that the rule refuses are left out, and those of randomised tests that it bootstraps. The bounds
    for all looks at once (``lift``) are

    * where the evidence is not confirmatory: the rule's interval at the error of one look in all (Bonferroni), which
      asks for nothing but that each interval is valid;
    * where it is: the normal-mixture confidence sequence (:mod:`recsys.evaluation.sequential`), which is asymptotic, at
      the error that those looks leave, and never less than ``one_look``.

    Args:
        c: arms on one log, n rows.
        when: n values that order the rows (times, weeks), or None.
        config: ``evaluation.growth_looks``; ``decision.tuning``, the units at which the bounds are tightest.

    Returns:
        {"column", "looks", "tuning", "confidence", "arms": {arm: [{"until", "n", "units", "lift": bounds,
        "one_look": the interval of a single look, "method", "label"}]}, "halves": {arm: {"first", "second": interval
        or None, "p_value": of their difference, None where a half's evidence is not confirmatory}}}, or {"refused":
        why}.
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
    halves = Segments(list(HALVES), (ranks > ranks[order][len(ranks) // 2 - 1]).astype(np.int64))
    names = [name for name in c.arms if name != c.baseline]
    out["arms"] = {name: [] for name in names}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for end in looks.tolist():
        try:
            part = c.part(np.sort(order[:end]))
        except Refused:
            continue
        for name in names:
            if look := _look(part, name, len(looks), config.decision.tuning):
                found[name].append({"until": _text(when[int(order[end - 1])]), "n": end} | look)
    out["arms"] = {name: bounded(path, len(looks), 1 - c.confidence) for name, path in found.items()}
    out["halves"] = {name: _halves(c, halves, name) for name in names}
    out["looks"] = max((len(path) for path in out["arms"].values()), default=0)
    return out


def _look(part: Comparison, name: str, looks: int, tuning: float) -> dict[str, Any] | None:
    """One arm at one look, as :func:`bounded` takes it; None where the rule publishes nothing."""
    try:
        choice = part.choice_of(part.goal, name, part.baseline)
        if choice.method == "t+bootstrap":  # a bootstrap's draws do not reach the error of one look in all
            return None
        made = part.lift(name, part.baseline, part.goal)
        bounds = _sequence(made, part.units, tuning) if choice.label == "confirmatory" else replace(
            part, confidence=1 - (1 - part.confidence) / looks).lift(name, part.baseline, part.goal)
    except Refused:  # too little evidence, or an interval without an end
        return None
    return {"units": part.units, "lift": bounds, "one_look": made, "method": made.method, "label": choice.label}


def _sequence(one: Interval, units: int, tuning: float) -> Callable[[float], Interval]:
    assert one.se is not None
    spread = one.se

    def at(alpha: float) -> Interval:
        half = spread * always_valid_multiplier(units, alpha, tuning)
        return Interval(one.estimate, one.estimate - half, one.estimate + half)

    return at


def bounded(path: list[dict[str, Any]], looks: int, alpha: float) -> list[dict[str, Any]]:
    """A path with bounds that hold at all looks at once, as plain values.

    Args:
        path: looks; ``one_look`` their interval; ``lift`` the interval at the error of one look in all, or the sequence
            that is to bound it: a function of the error of all looks together, None where it has no end.
        looks: how many were planned; those that are not in the path spend nothing.
        alpha: error of all looks together.
    """
    left = alpha * (1 - sum(not callable(p["lift"]) for p in path) / looks)
    made = []
    for point in path:
        one, bounds = point["one_look"], point["lift"]
        if callable(bounds):
            bounds = bounds(left)
            if bounds is None:
                continue
            bounds = at_least(Interval(one.estimate, min(one.low, bounds.low), max(one.high, bounds.high)), -1.0)
        made.append({**point, "lift": ends(bounds), "one_look": ends(one)})
    return made


def _text(value: pa.Scalar) -> str:
    plain = value.as_py()
    return plain.isoformat(timespec="minutes") if hasattr(plain, "isoformat") else str(plain)


def _halves(c: Comparison, halves: Segments, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    enough = True
    for g, key in enumerate(("first", "second")):
        rows = np.flatnonzero(halves.codes == g)
        try:
            part = c.part(rows)
            found[key] = ends(part.lift(name, c.baseline, c.goal))
            enough &= part.choice_of(c.goal, name, c.baseline).label == "confirmatory"
        except Refused:
            found[key], enough = None, False
    same = equal_lifts(c, halves, name, (0, 1)) if enough else None
    return {**found, "p_value": None if same is None else same["p_value"]}
