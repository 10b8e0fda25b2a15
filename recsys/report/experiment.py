"""A randomised experiment's result (``recsys ab``) on the report's page, its first metric as the goal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys.report.page import render_html

NO_LIFT = {"estimate": 0.0, "low": 0.0, "high": 0.0}


def render_experiment(result: Mapping[str, Any], out: str | Path, name: str) -> None:
    """Write the page.

    Args:
        result: :func:`recsys.evaluation.ab.analyse`'s, refused ones as well.
        out: the file; appears whole or not at all.
        name: of the experiment.
    """
    render_html(as_lift(result, name), None, out)


def as_lift(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The result in the shape of ``lift.json``, as far as it goes: what the page reads."""
    plan, metrics = result["plan"], result.get("metrics") or {}
    goal = next(iter(metrics), "")
    lift: dict[str, Any] = {
        "experiment": name, "method": "experiment", "unit": result["unit"], "confidence": 1 - plan["alpha"],
        "alpha": plan["alpha"], "baseline": plan["baseline"], "health": result["health"], "healthy": result["healthy"],
        "arms": {arm: {"n": units, "clusters": units} for arm, units in result["arms"].items()},
        "multiplicity": f"{plan['multiplicity']}: p-values over all variants and metrics, and apart from them over all "
                        "segments; the intervals shown are not widened",
        "peeking": "always valid: intervals hold at every look" if plan["method"] == "sequential" else
                   "fixed: one look; a second one makes these intervals too narrow",
        "certificate": result.get("certificate"), "refused": result.get("refused"),
    }
    if found := result.get("aa"):
        lift["aa"] = found
    if not goal:
        return lift
    lift["goal"] = goal
    for arm in lift["arms"]:
        lift["arms"][arm] |= _arm(metrics[goal], arm, plan["baseline"])
        lift["arms"][arm]["secondary"] = {m: _arm(found, arm, plan["baseline"]) for m, found in metrics.items()
                                          if m != goal}
    lift |= {key: metrics[goal][key] for key in ("growth", "segments") if key in metrics[goal]}
    return lift


def _arm(metric: Mapping[str, Any], arm: str, baseline: str) -> dict[str, Any]:
    lines = metric["variants"]
    if arm == baseline:
        first = next((line for line in lines.values() if "refused" not in line), None)
        value = None if first is None else first[first["decided_on"]]["baseline"]
        counted = next(iter(lines.values()))
        return {"value": value, "lift": NO_LIFT, **_counts(counted, arm)}
    line = lines[arm]
    if "refused" in line:
        return {"value": None, "lift": None, "refused": line["refused"], **_counts(line, arm)}
    decided = line[line["decided_on"]]
    made = {"value": decided["variant"], "lift": decided["relative"], "absolute_lift": decided["absolute"],
            "label": line["label"], "p_adjusted": line["p_adjusted"], "interval_method": decided["absolute"]["method"],
            "lift_refused": decided["relative_refused"], **_counts(line, arm)}
    if "cuped" in line and decided["relative"] is not None and line["raw"]["relative"] is not None:
        made["unadjusted"] = {"estimator": "raw", "lift": line["raw"]["relative"],
                              "variance_reduction": line["cuped"]["variance_reduction"]}
    return made


def _counts(line: Mapping[str, Any], arm: str) -> dict[str, Any]:
    return {"numerator": line["numerators"][arm], "denominator": line["denominators"][arm]}
