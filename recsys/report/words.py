"""Numbers and findings in plain words: the one place where the report decides how something is said.

The vocabulary is that of estimation: "estimated", "consistent with". A report never claims to have shown more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from recsys.evaluation.names import name_of as name_of
from recsys.evaluation.threats import UNITS

_THIN = "\u202f"  # narrow no-break space: a number never parts from its unit
_MINUS = "\u2212"

METHODS = {"offpolicy": "off-policy estimation from logged propensities", "randomized": "randomised test",
           "experiment": "randomised experiment"}
INTERVALS = {"betting": "betting intervals", "welch": "Welch's t", "el": "empirical likelihood", "t": "Student t",
             "t+el": "hull of Student t and empirical likelihood", "t+bootstrap": "hull of Student t and bootstrap"}
DIAGNOSTICS = {"ess": "effective sample size", "effective_clicks": "effective clicks", "max_weight": "largest weight",
               "mean_weight": "mean weight", "mean_weight_se": "its standard error",
               "top_1_percent_weight_share": "weight held by the top 1 %",
               "support_gaps": "support gaps", "viewers_of_picks": "viewers of its picks",
               "clicks_of_picks": "clicks of its picks"}
DECISIONS = {"Ship": ("▲", "better"), "Roll back": ("▼", "worse"), "Review": ("◇", "inconclusive"),
             "Not enough data": ("◆", "inconclusive")}
"""Verdict of the decision rule -> sign, and the class that colours it; the words stand beside it."""
GUARDS = {"kept": "✓ kept", "harmed": "✗ harmed", "unclear": "? unclear"}
_READINGS = {"better": ("▲", "better"), "worse": ("▼", "worse"), "inconclusive": ("◆", "inconclusive")}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _digits(*values: float) -> int:
    """Decimals of a percentage: one where the largest is at least 1 %, else enough for two significant digits."""
    size = max(abs(v) for v in values) * 100
    return 1 if size >= 0.995 or size == 0 else min(7, 1 - math.floor(math.log10(size)))


def percent(value: float | None, signed: bool = False, digits: int | None = None) -> str:
    """A fraction as a percentage; a dash for nothing."""
    if not _finite(value):
        return "–"
    assert value is not None
    text = f"{abs(value) * 100:.{_digits(value) if digits is None else digits}f}"
    sign = "" if float(text) == 0 else _MINUS if value < 0 else "+" if signed else ""
    return f"{sign}{text}{_THIN}%"


def signed_percent(value: float | None, digits: int | None = None) -> str:
    """A lift, with its sign."""
    return percent(value, signed=True, digits=digits)


def plural(unit: str) -> str:
    """The plural of a unit's name: users, stories."""
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def points(value: float | None) -> str:
    """A difference of lifts in percentage points."""
    return "–" if value is None else f"{value * 100:.{_digits(value) if value else 0}f} points"


def p_value(value: float | None) -> str:
    """A p-value with two significant digits, tiny ones as a bound: the digits of 1e-29 mean nothing."""
    return "–" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def level(lift: Mapping[str, Any]) -> str:
    """The confidence level: 95 %."""
    return f"{lift.get('confidence', 0.95) * 100:g}{_THIN}%"


def money(value: float | None, signed: bool = False) -> str:
    """Dollars with two or three significant digits, never in scientific notation."""
    if not _finite(value):
        return "–"
    assert value is not None
    size = abs(value)
    exact = 2 if size >= 0.01 else 1  # three significant digits, two of a tiny amount
    digits = 2 if size >= 1 or size == 0 else min(12, exact - math.floor(math.log10(size)))
    sign = _MINUS if value < 0 else "+" if signed and value > 0 else ""
    return f"{sign}${size:,.{digits}f}"


def times(value: float) -> str:
    """A multiple with two significant digits from a hundred on: 8,500×."""
    if abs(value) < 100:
        return f"{value:.3g}×".replace("-", _MINUS)
    return f"{round(value, 1 - math.floor(math.log10(abs(value)))):,.0f}×".replace("-", _MINUS)


def months(value: float | None) -> str:
    """Months until an arm pays for itself: now, after so many, or never by falling prices alone."""
    if value is None:
        return "never"
    return "pays today" if value == 0 else f"in {value:,.0f} months"


def when(stamp: Any) -> str:
    """An ISO time without its seconds: 2026-11-23 22:00 UTC; anything else as it is."""
    text = str(stamp)
    return f"{text[:10]} {text[11:16]} UTC" if text.endswith(("+00:00", "Z")) and len(text) >= 17 else text


def number(value: Any) -> str:
    """A count or a plain number with four significant digits; text and truth values as they are."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not _finite(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("-", _MINUS)


def value_of(metric: str, value: float | None) -> str:
    """A metric's own value: rates as percentages, revenue as dollars, the rest as numbers."""
    if metric.endswith("_per_mille") or metric in ("cost_per_click", "cost_per_action"):
        return money(value)
    if metric == "latency_ms":
        return "–" if not _finite(value) else f"{number(value)}{_THIN}ms"
    rate = metric in ("ctr", "conversion", "hide", "engagement", "fill") or metric.endswith("_rate")
    if not rate or not _finite(value) or not value:
        return percent(value) if rate else number(value)
    # Three significant digits: arms differ by a few per cent of a rate, which is itself a per cent or so.
    return percent(value, digits=max(1, 2 - math.floor(math.log10(abs(value) * 100))))


def interval_text(interval: Mapping[str, Any] | None, style: Any = signed_percent) -> str:
    """An interval as "low to high"; a dash where there is none."""
    if not interval or interval.get("low") is None or interval.get("high") is None:
        return "–"
    low, high = interval["low"], interval["high"]
    if style in (percent, signed_percent) and _finite(low) and _finite(high):
        digits = _digits(low, high)
        return f"{style(low, digits=digits)} to {style(high, digits=digits)}"
    return f"{style(low)} to {style(high)}"


def healthy(lift: Mapping[str, Any]) -> bool:
    """True where no health check failed."""
    return all(check.get("ok", True) for check in lift.get("health") or [])


def verdict(arm: Mapping[str, Any]) -> tuple[str, str]:
    """Sign and word for an arm's interval: all above zero, all below, or neither. Never by colour alone."""
    interval = arm.get("lift") or arm.get("absolute_lift") or {}
    low, high = interval.get("low"), interval.get("high")
    key = "inconclusive"
    if low is not None and low > 0:
        key = "better"
    elif high is not None and high < 0:
        key = "worse"
    return _READINGS[key]


def variants(lift: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The arms besides the baseline that have a lift, in the report's order."""
    return {n: a for n, a in lift["arms"].items() if n != lift.get("baseline") and a.get("lift")}


def headline(lift: Mapping[str, Any], statement: Mapping[str, Any] | None = None) -> str:
    """The finding in one or two sentences that somebody outside the field can read."""
    if lift.get("refused"):
        return "A health check failed, so no lift is shown: mend what it names, and evaluate again."
    if not healthy(lift):
        return "A health check failed. The lifts below are shown for repair only: do not act on them."
    arms, baseline, goal = variants(lift), lift.get("baseline"), name_of(lift.get("goal", "goal metric"))
    if not arms:
        return _without_lifts(lift, str(baseline), goal)
    best = max(arms, key=lambda n: arms[n]["lift"]["estimate"])
    interval = arms[best]["lift"]
    if (interval.get("low") or 0) > 0:
        text = (f"{best} is estimated to lift {goal} by {signed_percent(interval['estimate'])} over {baseline} "
                f"({level(lift)} interval {interval_text(interval)}).")
    else:
        text = (f"No arm stands out from {baseline}. The highest estimate is {best}'s, "
                f"{signed_percent(interval['estimate'])} in {goal}, and the data are consistent with anything from "
                f"{interval_text(interval)} ({level(lift)} interval).")
    text += _against_the_rule(lift, best, clear=(interval.get("low") or 0) > 0)
    if arms[best].get("label") == "exploratory":
        text = "Exploratory, on little evidence: " + text
    return _decided(lift) + text + _llama(arms, best) + _substitute(statement, best, str(baseline))


def _without_lifts(lift: Mapping[str, Any], baseline: str, goal: str) -> str:
    told = {n: a for n, a in lift["arms"].items() if a.get("lift_refused")}
    if not told:
        return "This experiment has no arm to compare with its baseline."
    best = max(told, key=lambda n: told[n]["absolute_lift"]["estimate"])
    values = " against ".join(value_of(lift["goal"], lift["arms"][n]["value"]) for n in (best, baseline))
    text = (f"{best} is above {baseline} in {goal} ({values})" if told[best]["absolute_lift"]["low"] > 0 else
            f"No arm stands out from {baseline}. The highest {goal} is {best}'s ({values})")
    return text + f"; {baseline} is too near zero for a relative lift."


def _against_the_rule(lift: Mapping[str, Any], best: str, clear: bool) -> str:
    """Why the verdict on the best arm is what it is, where its interval beside zero does not say so."""
    decision = lift.get("decision") or {}
    harmed = [name_of(m) for m, found in ((decision.get("guardrails") or {}).get(best) or {}).items()
              if found.get("status") == "harmed"]
    text = ""
    if (decision.get("goal") or {}).get(best) == "missed":
        least = lift.get("minimum_effect")
        text = f" That is below {f'the minimum effect of {percent(least)} that was asked for' if least else 'zero'}."
    elif not clear:
        text = " That is not evidence of no effect."
    return text + (f" Harmed beyond what is tolerated: {', '.join(harmed)}." if harmed else "")


def _decided(lift: Mapping[str, Any]) -> str:
    """What the rule says, before what was measured: "Ship minilm; Review smollm2." """
    verdicts = (lift.get("decision") or {}).get("verdict") or {}
    by_word = {word: [name for name, found in verdicts.items() if found == word] for word in DECISIONS}
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in by_word.items() if names) + (
        ". " if verdicts else "")


def _llama(arms: Mapping[str, Mapping[str, Any]], best: str) -> str:
    """The question the engine is for, answered even where another arm is ahead: what did a Llama-family model bring?"""
    found = [n for n, a in arms.items() if (a.get("encoder") or {}).get("kind") == "llama" and n != best]
    if not found:
        return ""
    name = max(found, key=lambda n: arms[n]["lift"]["estimate"])
    interval = arms[name]["lift"]
    return (f" The Llama-family arm {name}: {signed_percent(interval['estimate'])} "
            f"({interval_text(interval)}).")


def _substitute(statement: Mapping[str, Any] | None, best: str, baseline: str) -> str:
    curve = (statement or {}).get("substitution") or {}
    chosen = curve.get("chosen")
    if chosen in (None, best, baseline):
        return ""
    costs = {p["name"]: p["cost_per_mille"]["estimate"] for p in curve["points"]}
    if best not in costs or chosen not in costs or costs[best] <= costs[chosen]:
        return ""
    share = f"{percent(costs[chosen] / costs[best])} of" if costs[best] else "none of"
    return f" {chosen} is not significantly below it, at {share} its cost: on this evidence it could take its place."


def guarded(decision: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The rule's guardrails, in its order."""
    return list(((decision or {}).get("rule") or {}).get("guardrails") or [])


def rule_words(rule: Mapping[str, Any], alpha: float | None = None) -> list[tuple[str, str]]:
    """The decision rule as (term, words)."""
    least = rule["minimum_effect"]
    out = [("Goal", f"{name_of(rule['goal'])} of each arm over {rule['baseline']}, analysed by "
                    f"{UNITS.get(rule['unit'], rule['unit'])}"),
           ("Minimum effect", f"a lift of {percent(least)}" if least else "any lift above zero"),
           ("Level", f"{percent(1 - rule['confidence'])} two-sided" + (
               f", {percent(alpha)} a look" if alpha and rule["looks"] > 1 and rule["peeking"] == "fixed" else ""))]
    for guard in rule["guardrails"]:
        name, high = name_of(guard["metric"]), guard["better"] == "higher"
        if guard.get("limit") is None:
            line = f"{name} may not {'fall' if high else 'rise'} by more than {percent(guard['tolerated'])}"
        else:
            line = f"{name} must stay {'above' if high else 'below'} {value_of(guard['metric'], guard['limit'])}"
        out.append(("Guardrail", line))
    return out
