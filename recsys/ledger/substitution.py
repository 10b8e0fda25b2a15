"""The substitution curve: lift against cost, and the cheapest arm that is not significantly worse than the best.

If an open model is an input like any other, then whatever gives the same lift for less replaces it. This module draws
that line: which arms are efficient (nothing is at least as good and cheaper), and which one a buyer would take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Interval = dict[str, float]


def frontier(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the efficient points, cheapest first: no other point costs at most as much and lifts more.

    Args:
        points: each {"name", "lift": {"estimate"}, "cost_per_mille": {"estimate"}}.
    """
    best, names = -math.inf, []
    for point in sorted(points, key=lambda p: (p["cost_per_mille"]["estimate"], -p["lift"]["estimate"], p["name"])):
        if point["lift"]["estimate"] > best:
            best = point["lift"]["estimate"]
            names.append(point["name"])
    return names


def pair_difference(pairwise: Mapping[str, Any], a: str, b: str) -> Interval | None:
    """The interval of lift(a) - lift(b) from a report's ``pairwise``, whichever way round it stands there.

    ``pairwise`` maps "A vs B" to {"difference": interval of lift(A) - lift(B), ...}; None where the pair is missing.
    """
    for first, second, sign in ((a, b, 1.0), (b, a, -1.0)):
        found = (pairwise.get(f"{first} vs {second}") or {}).get("difference")
        if found:
            ends = sorted((sign * found["low"], sign * found["high"]))
            return {"estimate": sign * found["estimate"], "low": ends[0], "high": ends[1]}
    return None


def _independent(a: Interval, b: Interval) -> Interval:
    # Root sum of squares of the arms' half-widths: wider than a paired comparison, so it errs towards "not different".
    estimate = a["estimate"] - b["estimate"]
    low = math.hypot(a["estimate"] - a["low"], b["high"] - b["estimate"])
    high = math.hypot(a["high"] - a["estimate"], b["estimate"] - b["low"])
    return {"estimate": estimate, "low": estimate - low, "high": estimate + high}


def substitution(points: Sequence[Mapping[str, Any]], pairwise: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    """Place every arm on the curve and choose the cheapest that is not significantly below the best.

    Args:
        points: each {"name", "lift": interval, "cost_per_mille": interval}; the baseline with lift 0.
        pairwise: intervals of differences between arms (see :func:`pair_difference`); a pair that is missing is
            compared as if the two arms were independent, and the rule says so.
        baseline: its own difference to the best is the best arm's lift itself.

    Returns:
        {"points": [{"name", "lift", "cost_per_mille", "efficient", "below_best": interval or None,
        "significantly_below_best"}], "frontier": [names], "best": name, "chosen": name, "rule": words}.
    """
    if not points:
        return {"points": [], "frontier": [], "best": None, "chosen": None, "rule": "no arms"}
    best = max(points, key=lambda p: (p["lift"]["estimate"], -p["cost_per_mille"]["estimate"]))
    efficient, assumed, placed = frontier(points), False, []
    for point in points:
        gap: Interval | None = None
        if point is not best:
            gap = pair_difference(pairwise, point["name"], best["name"])
            if gap is None:
                assumed = assumed or baseline not in (point["name"], best["name"])
                gap = _independent(point["lift"], best["lift"])
        placed.append({"name": point["name"], "lift": dict(point["lift"]),
                       "cost_per_mille": dict(point["cost_per_mille"]), "efficient": point["name"] in efficient,
                       "below_best": gap, "significantly_below_best": gap is not None and gap["high"] < 0})
    open_ = [p for p in placed if not p["significantly_below_best"]]
    chosen = min(open_, key=lambda p: (p["cost_per_mille"]["estimate"], -p["lift"]["estimate"], p["name"]))
    rule = "the cheapest arm whose lift is not significantly below that of the best arm"
    if assumed:
        rule += " (no paired interval for some pairs: compared as independent, which errs towards 'not different')"
    return {"points": placed, "frontier": efficient, "best": best["name"], "chosen": chosen["name"], "rule": rule}
