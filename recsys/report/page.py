"""``lift.json`` (and the statement) -> one HTML file that needs nothing else: no script, no request, no font."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import InputError
from recsys.report import findings, words
from recsys.stage import write_atomic

if TYPE_CHECKING:
    from jinja2 import Template


def render_html(lift: Mapping[str, Any], statement: Mapping[str, Any] | None, out: str | Path) -> None:
    """Write the report page.

    Args:
        lift: the contents of ``lift.json``; what it does not carry is left out of the page.
        statement: :func:`recsys.ledger.statement`'s answer, or None: the money panel then says that it is missing.
        out: the file to write; appears whole or not at all, the same bytes for the same input.

    Raises:
        InputError: ``lift`` lacks the arms or the baseline that everything else hangs on.
    """
    check(lift)
    write_atomic(out, html(lift, statement))


def check(lift: Mapping[str, Any]) -> None:
    """Refuse a report without experiment, arms, or a baseline among them.

    Raises:
        InputError: names the missing key.
    """
    for key in ("experiment", "arms", "baseline"):
        if not lift.get(key):
            raise InputError("missing key", file="lift.json", column=key, got=sorted(lift), expected="a lift report")
    if lift["baseline"] not in lift["arms"]:
        raise InputError("the baseline is not an arm", file="lift.json", column="baseline", got=lift["baseline"],
                         expected=f"one of {sorted(lift['arms'])}")


def html(lift: Mapping[str, Any], statement: Mapping[str, Any] | None) -> str:
    """The page as text."""
    from recsys.report import evidence, plots

    arms = words.variants(lift)
    pictures: dict[str, str] = {}
    if arms:
        pictures |= {"lift_wide": plots.lift_svg(lift), "lift_narrow": plots.lift_svg(lift, narrow=True)}
    if statement and statement["substitution"]["points"]:
        pictures |= {"cost_wide": plots.cost_svg(statement), "cost_narrow": plots.cost_svg(statement, narrow=True)}
    pictures |= evidence.pictures(lift)
    return _template().render(
        lift=lift, statement=statement, arms=arms, pictures=pictures, style=_text("style.css"),
        healthy=words.healthy(lift), headline=words.headline(lift, statement),
        segment_finding=findings.segment_finding(lift), segment_mark=findings.segment_mark,
        weak_looks=findings.weak_looks(lift),
        disagreements=findings.disagreements(lift),
        goal=words.name_of(lift.get("goal", "goal metric")), level=words.level(lift),
        metrics=_metrics(lift), guards=words.guarded(lift.get("decision")), rule_words=words.rule_words,
        DECISIONS=words.DECISIONS, GUARDS=words.GUARDS, clouds=_clouds(statement), diagnostics=_diagnostics(lift),
        estimators=_estimators(lift), pairs=_pairs(lift),
        truth=_truth(arms), verdict=words.verdict, UNITS=words.UNITS, METHODS=words.METHODS,
    )


def _text(name: str) -> str:
    return (resources.files("recsys.report") / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    # Arm names and health details come from files: everything is escaped unless marked safe in the template.
    environment = Environment(loader=FunctionLoader(_text), autoescape=True, trim_blocks=True, lstrip_blocks=True,
                              undefined=StrictUndefined)
    environment.filters |= {
        "pct": words.percent, "spct": words.signed_percent, "usd": words.money, "num": words.number,
        "span": words.interval_text, "usd_span": lambda i: words.interval_text(i, words.money),
        "pct_span": lambda i: words.interval_text(i, words.percent),
        "metric": words.name_of, "times": words.times, "months": words.months,
        "plural": words.plural, "points": words.points, "p": words.p_value,
        "first_word": lambda text: text.split(":")[0],
        "capitalize_first": lambda text: text[:1].upper() + text[1:], "when": words.when,
        "diagnostic": lambda k: words.name_of(k, words.DIAGNOSTICS),
        "value": lambda v, metric: words.value_of(metric, v),
        "value_span": lambda i, metric: words.interval_text(i, lambda v: words.value_of(metric, v)),
    }
    return environment.get_template("page.html")


def _metrics(lift: Mapping[str, Any]) -> list[str]:
    """Metrics beside the goal that are no guardrail."""
    seen: dict[str, None] = {}
    for arm in lift["arms"].values():
        seen |= dict.fromkeys(arm.get("secondary") or {})
    guards = {g["metric"] for g in words.guarded(lift.get("decision"))}
    return [m for m in seen if m not in guards]


def _clouds(statement: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The clouds' prices of the same work, laid out for two tables: arms by cloud, and stages of arms."""
    found = (statement or {}).get("clouds")
    if not found or not found["rows"]:
        return None
    totals: dict[str, dict[str, Any]] = {}
    for row in found["totals"]:
        totals.setdefault(row["arm"], {})[row["provider"]] = row
    return {**found, "providers": list(dict.fromkeys(r["provider"] for r in found["totals"])), "by_arm": totals}


def _diagnostics(lift: Mapping[str, Any]) -> list[str]:
    """Keys of diagnostics that are one number or word per arm: the well-known ones, or all where none of them is there.

    A page is too narrow for all; the rest stands in lift.json.
    """
    seen: dict[str, None] = {}
    for arm in lift["arms"].values():
        for key, value in (arm.get("diagnostics") or {}).items():
            if not isinstance(value, Mapping | list):
                seen[key] = None
    return [k for k in words.DIAGNOSTICS if k in seen] or sorted(seen)


def _estimators(lift: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Arm -> estimator (and clip of its weights) -> estimated value, where the report compares several."""
    out: dict[str, dict[str, float]] = {}
    for name, arm in lift["arms"].items():
        facts = arm.get("diagnostics") or {}
        clipped = {f"DR, weights clipped at {k}": v for k, v in (facts.get("clip_sensitivity") or {}).items()}
        if found := {k.upper(): v for k, v in (facts.get("estimators") or {}).items()} | clipped:
            out[name] = found
    return out


def _pairs(lift: Mapping[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    """Every pair of variants with a reported difference: (a, b, interval of lift(a) - lift(b))."""
    from recsys.ledger.substitution import pair_difference

    names, out = list(words.variants(lift)), []
    for at, a in enumerate(names):
        for b in names[:at]:
            found = pair_difference(lift.get("pairwise") or {}, a, b)
            if found is not None:
                out.append((a, b, found))
    return out


def _truth(arms: Mapping[str, Mapping[str, Any]]) -> tuple[int, int] | None:
    """(intervals that cover the simulator's truth, arms whose truth is known), or None where no truth is known."""
    known = [a for a in arms.values() if a.get("true_lift") is not None]
    if not known:
        return None
    covered = sum(bool(a["covers_truth"]) if "covers_truth" in a
                  else a["lift"]["low"] <= a["true_lift"] <= a["lift"]["high"] for a in known)
    return covered, len(known)
