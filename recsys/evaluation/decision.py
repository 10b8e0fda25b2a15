"""The decision rule: fixed in the experiment file before results exist, hashed, and applied by nobody's eye.

An arm is judged on the goal and on every guardrail.

* Goal: the relative lift is tested, two-sided, against the minimum effect m. ``met``: above m; ``missed``: below m;
  ``open``: neither. P-values are adjusted over the arms (Holm or Benjamini-Hochberg, statsmodels).
* Guardrail: ``harmed``: the whole interval lies beyond the tolerated harm; ``kept``: none of it does; ``unclear``:
  neither, or its own evidence is exploratory (60 hides are few, whatever the number of clicks). An arm has to keep all
  of them, so they are not adjusted: asking for every one only makes Ship rarer.

=========== ============== ============ =================
goal        any guardrail  evidence     verdict
=========== ============== ============ =================
any         any            unhealthy    Review
any         harmed         confirmatory Roll back
missed      not harmed     confirmatory Roll back
met         all kept       confirmatory Ship
met         one unclear    confirmatory Review
open        not harmed     confirmatory Not enough data
any         harmed         exploratory  Review
met, missed not harmed     exploratory  Review
open        not harmed     exploratory  Not enough data
=========== ============== ============ =================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from recsys.evaluation.names import name_of
from recsys.evaluation.sequential import always_valid_multiplier, always_valid_p
from recsys.stage import sha256_json

if TYPE_CHECKING:
    from recsys.config import ExperimentConfig

Goal = Literal["met", "missed", "open"]
Guard = Literal["kept", "harmed", "unclear"]
Verdict = Literal["Ship", "Roll back", "Review", "Not enough data"]
VERDICTS: tuple[Verdict, ...] = ("Ship", "Roll back", "Review", "Not enough data")
POWER = 0.8


@dataclass(frozen=True)
class GoalTest:
    """What the log says of one arm's goal.

    Attributes:
        estimate: relative lift.
        se: its standard error; None where the interval has none (betting).
        p_value: two-sided, of lift = minimum effect; None without a standard error.
        units: independent units.
        label: ``confirmatory`` or ``exploratory``.
    """

    estimate: float
    se: float | None
    p_value: float | None
    units: int
    label: str


def decision_rule(config: ExperimentConfig) -> dict[str, Any]:
    """The whole rule as plain values: what is hashed, and printed on the report."""
    ev, d = config.evaluation, config.decision
    return {"goal": ev.goal, "baseline": config.baseline_arm, "method": ev.method, "unit": ev.unit,
            "confidence": ev.confidence, **d.model_dump(mode="json", exclude={"goal", "confidence"})}


def rule_sha256(rule: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a rule's canonical JSON."""
    return sha256_json(dict(rule))


def adjust(p_values: Mapping[str, float], method: str, alpha: float) -> dict[str, float]:
    """P-values adjusted over the arms: ``none``, ``holm`` (family-wise) or ``bh`` (false discovery rate)."""
    if method == "none" or len(p_values) < 2:  # one arm is a family of its own
        return dict(p_values)
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests(list(p_values.values()), alpha, {"holm": "holm", "bh": "fdr_bh"}[method])[1]
    return {name: float(p) for name, p in zip(p_values, adjusted, strict=True)}


def read_goal(estimate: float, minimum: float, p_adjusted: float, alpha: float) -> Goal:
    """Is the lift above the minimum effect, below it, or can the log not tell?"""
    if p_adjusted >= alpha or estimate == minimum:
        return "open"
    return "met" if estimate > minimum else "missed"


def read_guardrail(low: float, high: float, better: str, tolerated: float) -> Guard:
    """Place a relative change's interval against the tolerated harm (a share of the baseline's value)."""
    if better == "lower":
        low, high = -high, -low
    if high < -tolerated:
        return "harmed"
    return "kept" if low >= -tolerated else "unclear"


def give_verdict(goal: Goal, guards: Mapping[str, Guard], healthy: bool = True,
                 confirmatory: bool = True) -> Verdict:
    """The table of this module's docstring."""
    if not healthy:
        return "Review"
    harmed = "harmed" in guards.values()
    if not confirmatory:
        return "Not enough data" if goal == "open" and not harmed else "Review"
    if harmed or goal == "missed":
        return "Roll back"
    if goal == "open":
        return "Not enough data"
    return "Review" if "unclear" in guards.values() else "Ship"


def decide(report: Mapping[str, Any], goals: Mapping[str, GoalTest], config: ExperimentConfig) -> dict[str, Any]:
    """Apply the experiment's rule to a lift report.

    Args:
        report: a lift report; read are the arms' ``secondary`` metrics and ``latency_ms``, and ``healthy``.
        goals: arm -> its test against the minimum effect, without the baseline.
        config: the experiment.

    Returns:
        {"rule", "sha256", "alpha", "verdict": {arm: one of VERDICTS}, "why": {arm: words}, "goal": {arm: met | missed
        | open}, "p_value": {arm: unadjusted}, "p_adjusted": {arm: ...}, "guardrails": {arm: {metric: {"status",
        "change", ...}}}, "detectable_lift": {arm: distance from the
        minimum effect that such a log finds with power 0.8, before adjustment}, "power": {arm: what was asked and what
        was reached}}.
    """
    rule = config.decision
    spent = level_of(config)
    p_values = {name: look_p(test.estimate - rule.minimum_effect, test.se, test.p_value, test.units, config)
                for name, test in goals.items()}
    adjusted = adjust(p_values, rule.multiplicity, spent)
    out: dict[str, Any] = {"rule": decision_rule(config), "sha256": rule_sha256(decision_rule(config)), "alpha": spent,
                           "verdict": {}, "why": {}, "goal": {}, "p_value": p_values, "p_adjusted": adjusted,
                           "guardrails": {}, "detectable_lift": {}, "power": {}}
    for name, test in goals.items():
        goal = read_goal(test.estimate, rule.minimum_effect, adjusted[name], spent)
        guards: dict[str, dict[str, Any]] = {
            g.metric: _guardrail(report, name, g, config, test.units, spent) for g in rule.guardrails}
        verdict = give_verdict(goal, {m: g["status"] for m, g in guards.items()}, report["healthy"],
                               test.label == "confirmatory")
        factor = _multiplier(test.units, config, spent) + NormalDist().inv_cdf(POWER)
        out["goal"][name], out["guardrails"][name], out["verdict"][name] = goal, guards, verdict
        out["detectable_lift"][name] = None if test.se is None else factor * test.se
        out["power"][name] = _power(out["detectable_lift"][name], rule.minimum_effect, test.units)
        out["why"][name] = _why(goal, guards, report["healthy"], test, rule.minimum_effect,
                                out["detectable_lift"][name])
    return out


def level_of(config: ExperimentConfig) -> float:
    """The level of one look: 1 - confidence, shared evenly among the planned looks of a fixed plan."""
    alpha = 1 - config.evaluation.confidence
    return alpha / config.decision.looks if config.decision.peeking == "fixed" else alpha


def look_p(difference: float, se: float | None, p_value: float | None, units: int, config: ExperimentConfig) -> float:
    """A p-value as the rule's peeking policy takes it: as it is for planned looks, else the always-valid one.

    Args:
        difference: estimate minus null.
        se: its standard error; None (a betting interval) gives 1: counted in the family, and never significant.
        p_value: for one look; None as ``se``.
        units: independent units.
        config: the experiment.
    """
    if p_value is None or se is None:
        return 1.0
    if config.decision.peeking == "fixed" or se == 0:
        return p_value
    return max(p_value, always_valid_p(difference / se, units, level_of(config), config.decision.tuning))


def _power(detectable: float | None, asked: float, units: int) -> dict[str, Any]:
    """Was the log large enough for what was asked? Asked is to tell a lift of the minimum effect from none.

    Returns:
        {"power", "detectable_lift", "asked": minimum effect or None, "reached", "units", "units_needed": units at
        which standard errors, falling as one over the root of the units, would reach it}; None where nothing was asked
        or no standard error is known.
    """
    known = detectable is not None and asked > 0
    return {"power": POWER, "detectable_lift": detectable, "asked": asked or None, "units": units,
            "reached": detectable <= asked if known and detectable is not None else None,
            "units_needed": math.ceil(units * (detectable / asked) ** 2) if known and detectable is not None else None}


def _multiplier(units: int, config: ExperimentConfig, alpha: float) -> float:
    if config.decision.peeking == "always_valid":
        return always_valid_multiplier(units, alpha, config.decision.tuning)
    return NormalDist().inv_cdf(1 - alpha / 2)


def _guardrail(report: Mapping[str, Any], name: str, guard: Any, config: ExperimentConfig, units: int,
               alpha: float) -> dict[str, Any]:
    """One guardrail's reading: {"status", "better", "tolerated", "change": interval or None, "note"}."""
    arm = report["arms"][name]
    out: dict[str, Any] = {"status": "unclear", "better": guard.better, "tolerated": guard.tolerated, "change": None}
    if guard.limit is not None:
        value = arm.get(guard.metric)
        if value is None:
            return {**out, "limit": guard.limit, "note": "not measured"}
        inside = value <= guard.limit if guard.better == "lower" else value >= guard.limit
        return {**out, "status": "kept" if inside else "harmed", "limit": guard.limit, "value": value}
    found = (arm.get("secondary") or {}).get(guard.metric) or {}
    lift = found.get("lift")
    if not lift:
        return {**out, "note": found.get("refused") or "not measured"}
    if config.decision.peeking == "always_valid" or config.decision.looks > 1:
        if found.get("se") is None:
            return {**out, "note": "no standard error to widen for several looks"}
        half = _multiplier(units, config, alpha) * found["se"]
        lift = {"estimate": lift["estimate"], "low": lift["estimate"] - half, "high": lift["estimate"] + half}
    if found.get("label") == "exploratory":  # its own events are few, however many clicks there are
        return {**out, "change": lift, "note": "exploratory evidence"}
    return {**out, "status": read_guardrail(lift["low"], lift["high"], guard.better, guard.tolerated), "change": lift}


def _why(goal: Goal, guards: Mapping[str, Mapping[str, Any]], healthy: bool, test: GoalTest, minimum: float,
         detectable: float | None) -> str:
    if not healthy:
        return "a health check failed, so the estimates are not to be acted on"
    line = "zero" if minimum == 0 else f"the minimum effect of {100 * minimum:g} %"
    words = {"met": f"the estimated lift is above {line} after adjustment",
             "missed": f"the estimated lift is below {line} after adjustment",
             "open": f"the log is consistent with lifts on both sides of {line}: that is not evidence of no effect"}
    parts = [words[goal]]
    if goal == "open" and detectable is not None:
        parts.append(f"a lift {100 * detectable:.1f} points away from it would be found in {POWER:.0%} of such logs")
    for status, text in (("harmed", "beyond its tolerated harm"), ("unclear", "not shown to be within its tolerated "
                                                                              "harm")):
        hit = [name_of(m) + (f" ({g['note']})" if g.get("note") else "") for m, g in guards.items()
               if g["status"] == status]
        if hit:
            parts.append(f"{', '.join(hit)}: {text}")
    if guards and all(g["status"] == "kept" for g in guards.values()):
        parts.append("every guardrail is consistent with at most its tolerated harm")
    if test.label != "confirmatory":
        parts.append("the evidence is exploratory")
    return "; ".join(parts)


def policy_words(config: ExperimentConfig, arms: int) -> dict[str, str]:
    """How several arms and several looks are treated, in words: the report's ``multiplicity`` and ``peeking``."""
    rule, several = config.decision, "every arm is compared with the baseline"
    multiplicity = {
        "none": f"none: {several} at the stated confidence, not corrected for the number of arms",
        "holm": f"holm: {several}; verdicts use p-values adjusted by Holm over {arms} arms (family-wise error rate), "
                "the intervals shown are not widened",
        "bh": f"bh: {several}; verdicts use p-values adjusted by Benjamini and Hochberg over {arms} arms (false "
              "discovery rate), the intervals shown are not widened"}[rule.multiplicity]
    if rule.peeking == "always_valid":
        peeking = ("always_valid: verdicts use p-values and guardrail intervals that hold at every look at growing "
                   f"data (tightest at {rule.tuning:g} units); the intervals shown hold for one look")
    elif rule.looks == 1:
        peeking = "fixed: one look at data whose size was fixed beforehand; a second look is refused"
    else:
        peeking = (f"fixed: {rule.looks} planned looks share the error evenly (Bonferroni); one more is refused, and "
                   "the intervals shown hold for one look")
    return {"multiplicity": multiplicity, "peeking": peeking}
