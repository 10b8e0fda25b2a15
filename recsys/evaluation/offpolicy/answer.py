"""From sums to the published answer: hyper-parameters, intervals, agreement, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np

from recsys.errors import Refused
from recsys.evaluation.intervals import Choice, asked_for, choose_interval, t_interval
from recsys.evaluation.intervals import interval as make_interval
from recsys.evaluation.offpolicy.estimators import ESTIMATORS
from recsys.evaluation.offpolicy.rows import require_unit_weight, unit_weight
from recsys.evaluation.offpolicy.support import reach, require_support
from recsys.evaluation.offpolicy.totals import Sums, Totals, agreement
from recsys.evaluation.offpolicy.tuning import slope


def answer(totals: Totals, method: str = "auto", confidence: float = 0.95, draws: int = 1000,
           seed: int = 0) -> dict[str, Any]:
    """Estimates with intervals and diagnostics, plain values for JSON.

    Args:
        totals: sums over the whole log.
        method: ``auto``, or a method of :func:`recsys.evaluation.intervals.asked_for`.
        confidence: coverage aimed at.
        draws: of a bootstrap, where that is the method.
        seed: of orders and draws.

    Raises:
        Refused: weights do not average to 1, or too little evidence for any interval.
    """
    facts = totals.facts()
    choice = choose_interval(*totals.evidence())
    require_unit_weight(facts, "target")
    choice = asked_for(choice, method)
    require_support(facts["support_gaps"], "target")
    chosen = {name: _tuned(totals, name, confidence) for name in totals.names if totals.levels(name)}
    choices = {"slot": choice} | {kind: _slate_choice(totals, kind, own, facts["support_gaps"], method)
                                  for kind, own in facts.get("slate_weights", {}).items()}
    found = {name: _entry(name, sums, level, choices[ESTIMATORS[name].weighs], confidence, draws, seed)
             for name, (sums, level) in chosen.items()}
    for name, entry in found.items():
        _beyond_support(name, entry, totals)
    straight = [e for name, e in found.items() if ESTIMATORS[name].consistent]
    if straight and not any(e["low"] is not None for e in straight):
        raise Refused("; ".join(dict.fromkeys(str(e["note"]) for e in straight))
                      + f" ({choice.reason}): the log cannot tell this value at all; log more, or evaluate a policy "
                        "nearer the logging one")
    agreeing = agreement({n: s for n, (s, _) in chosen.items() if ESTIMATORS[n].consistent})
    return {"label": choice.label, "interval": choice.method, "interval_reason": choice.reason, "units": totals.units,
            "estimators": found,
            "diagnostics": {**facts, "agreement": agreeing}}


def _slate_choice(totals: Totals, weighs: str, facts: dict[str, Any], gap: float, method: str) -> Choice | Refused:
    """The interval rule by the evidence of a slate's weights, whose products are far more uneven than a slot's."""
    if not unit_weight(facts, gap * totals.gaps.slots):
        return Refused(f"weights of a {weighs} average {facts['mean_weight']:.4f} +- {facts['mean_weight_se']:.4f} "
                       "instead of 1")
    try:
        return asked_for(choose_interval(*totals.evidence(weighs)), method)
    except Refused as refused:
        return refused


def _beyond_support(name: str, entry: dict[str, Any], totals: Totals) -> None:
    """Widen an interval by what the ads that the log never shows could earn at the least and at the most."""
    gaps = totals.gaps.per_row(totals.rows)
    open_to = reach(name, gaps.mass, gaps.worst, gaps.model, totals.model_value, gaps.slots)
    if open_to.exact or entry["low"] is None:
        return
    low, high = entry["low"], entry["high"]
    entry["low"], entry["high"] = max(0.0, float(open_to.least(low))), float(open_to.most(high))
    entry["widened"] = {"below": low - entry["low"], "above": entry["high"] - high}


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


def _entry(name: str, sums: Sums, level: float | None, choice: Choice | Refused, confidence: float, draws: int,
           seed: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"estimate": sums.estimate, "low": None, "high": None, "se": None, "method": None}
    if ESTIMATORS[name].grid:
        entry["level"] = None if level is None or np.isinf(level) else level
    if not ESTIMATORS[name].consistent:
        return {**entry, "note": "no interval: it would leave out " + (
            "the model's own error" if name == "dm" else "the bias, which the log cannot tell")}
    if isinstance(choice, Refused):
        return {**entry, "note": f"no interval: {choice}"}
    if ESTIMATORS[name].weighs != "slot":
        entry |= {"label": choice.label, "evidence": choice.reason}
    made = make_interval(sums.ratio(), choice, confidence, draws, seed)
    if not np.isfinite([made.low, made.high]).all():
        return {**entry, "note": "no interval: it has no finite end"}
    # Rewards are not negative, so neither is a value.
    return entry | {"low": max(0.0, made.low), "high": max(0.0, made.high), "method": made.method,
                    "se": t_interval(sums.ratio(), confidence).se}
