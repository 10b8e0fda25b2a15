"""From sums to the published answer: hyper-parameters, intervals, agreement, refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from recsys.errors import Refused
from recsys.evaluation.intervals import Choice, choose_interval, t_interval
from recsys.evaluation.intervals import interval as make_interval
from recsys.evaluation.offpolicy.estimators import ESTIMATORS
from recsys.evaluation.offpolicy.rows import require_unit_weight
from recsys.evaluation.offpolicy.totals import Sums, Totals
from recsys.evaluation.offpolicy.tuning import slope

AGREE_SE, SAME = 3.0, 1e-9
MAX_GAP = 0.01  # of the target's probability on ads that were never shown


def answer(totals: Totals, method: str = "auto", confidence: float = 0.95, draws: int = 1000,
           seed: int = 0) -> dict[str, Any]:
    """Estimates with intervals and diagnostics, plain values for JSON.

    Args:
        totals: sums over the whole log.
        method: ``auto`` or ``betting``.
        confidence: coverage aimed at.
        draws: bootstrap draws.
        seed: of orders and draws.

    Raises:
        Refused: weights do not average to 1, or too little evidence for any interval.
    """
    facts = totals.facts()
    choice = choose_interval(totals.ess, totals.effective_clicks, totals.units, totals.top_share,
                             totals.sizes)
    require_unit_weight(facts, "target")
    if method == "betting":
        choice = replace(choice, method="betting")
    gap = facts["support_gaps"]
    if gap > MAX_GAP:
        raise Refused(f"the target puts {100 * gap:.2f} % of its probability on ads that this log never shows: nothing "
                      f"is known of them, and no value is published beyond {100 * MAX_GAP:g} %; log more, or evaluate "
                      "a policy nearer the logging one")
    chosen = {name: _tuned(totals, name, confidence) for name in totals.names if totals.levels(name)}
    found = {name: _entry(name, sums, level, choice, confidence, draws, seed) for name, (sums, level) in chosen.items()}
    straight = [e for name, e in found.items() if ESTIMATORS[name].consistent]
    if straight and not any(e["low"] is not None for e in straight):
        raise Refused(f"no interval has two finite ends ({choice.reason}): the log cannot tell this value at all; "
                      "log more, or evaluate a policy nearer the logging one")
    agreement = _agreement({n: s for n, (s, _) in chosen.items() if ESTIMATORS[n].consistent})
    return {"label": choice.label, "interval": choice.method, "interval_reason": choice.reason, "units": totals.units,
            "estimators": found,
            "diagnostics": {**facts, "agreement": agreement}}


def _tuned(totals: Totals, name: str, confidence: float) -> tuple[Sums, float | None]:
    """Sums at the hyper-parameter that SLOPE picks among those carried."""
    levels = totals.levels(name)
    carried = [totals.sums(name, level) for level in levels]
    made = [s for s in carried if s is not None]
    if len(levels) == 1:
        return made[0], None if np.isnan(levels[0]) else levels[0]
    ends = [t_interval(s.ratio(), confidence) for s in made]
    at = slope([e.estimate for e in ends], [(e.high - e.low) / 2 for e in ends])
    return made[at], levels[at]


def _entry(name: str, sums: Sums, level: float | None, choice: Choice, confidence: float, draws: int,
           seed: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"estimate": sums.estimate, "low": None, "high": None, "se": None, "method": None}
    if ESTIMATORS[name].grid:
        entry["level"] = None if level is None or np.isinf(level) else level
    if not ESTIMATORS[name].consistent:
        return {**entry, "note": "no interval: it would leave out " + (
            "the model's own error" if name == "dm" else "the bias, which the log cannot tell")}
    made = make_interval(sums.ratio(), choice, confidence, draws, seed)
    if not np.isfinite([made.low, made.high]).all():
        return {**entry, "note": "no interval: it has no finite end"}
    # Rewards are not negative, so neither is a value.
    return entry | {"low": max(0.0, made.low), "high": max(0.0, made.high), "method": made.method,
                    "se": t_interval(sums.ratio(), confidence).se}


def _agreement(sums: dict[str, Sums]) -> dict[str, Any]:
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
