"""What growth, segments and power say, in words: for the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys.report.words import INTERVALS, healthy, p_value, percent, variants


def segment_mark(one: Mapping[str, Any], decision: Mapping[str, Any] | None) -> tuple[str, str]:
    """Sign and word of a segment's lift, by its adjusted p-value at the rule's level."""
    alpha = (decision or {}).get("alpha", 0.05)
    if one["p_adjusted"] >= alpha or one["lift"]["estimate"] == 0:
        return "◆", "inconclusive"
    return ("▲", "better") if one["lift"]["estimate"] > 0 else ("▼", "worse")


def weak_looks(lift: Mapping[str, Any]) -> str:
    """The interval methods of looks whose evidence is exploratory, in words; empty where there is none."""
    paths = ((lift.get("growth") or {}).get("arms") or {}).values()
    used = dict.fromkeys(p["method"] for path in paths for p in path if p.get("label") == "exploratory")
    return " and ".join(INTERVALS.get(m, m) for m in used)


def segment_finding(lift: Mapping[str, Any]) -> str:
    """Whether any arm's lift is seen to differ between the segments of a column; empty without segments."""
    alpha = (lift.get("decision") or lift).get("alpha", 0.05)
    tests = {(column, arm): one["heterogeneity"]["p_adjusted"] for column, found in (lift.get("segments") or {}).items()
             for arm, one in found.get("arms", {}).items() if one["heterogeneity"]}
    if not tests:
        return "Not enough evidence to tell whether any arm's lift differs between segments." if lift.get(
            "segments") else ""
    found = [f"{arm} by {column.replace('_', ' ')} (adjusted p {p_value(p)})" for (column, arm), p in tests.items()
             if p < alpha]
    if found:
        return f"Lifts are seen to differ between segments: {'; '.join(found)}."
    columns = ", ".join(dict.fromkeys(c.replace("_", " ") for c, _ in tests))
    return (f"No arm's lift is seen to differ between segments of {columns} (least adjusted p "
            f"{p_value(min(tests.values()))}): read the overall lift. That is not evidence that they are equal.")


def disagreements(lift: Mapping[str, Any]) -> list[str]:
    """Arms whose estimators disagree by more than three standard errors."""
    found = {n: (a.get("diagnostics") or {}).get("agreement") for n, a in lift["arms"].items()}
    return [n for n, agreement in found.items() if agreement and not agreement["ok"]]


def terminal_notes(lift: Mapping[str, Any]) -> list[str]:
    """Lines under the table: what an inconclusive log could have found, segments, drift, and errors of the errors."""
    if not healthy(lift):
        return []
    notes = []
    power = (lift.get("decision") or {}).get("power") or {}
    for name, arm in variants(lift).items():
        least = (power.get(name) or {}).get("detectable_lift")
        if least is not None and arm["lift"]["low"] <= 0 <= arm["lift"]["high"]:
            notes.append(f"{name}: inconclusive is not no effect; a log like this finds lifts of {percent(least)} in "
                         "four of five cases")
    if finding := segment_finding(lift):
        notes.append(finding)
    halves = (lift.get("growth") or {}).get("halves") or {}
    moved = [n for n, h in halves.items() if h["p_value"] is not None and h["p_value"] * len(halves) <= 0.05]
    if moved:
        notes.append(f"the lift of {', '.join(moved)} differs between the first and the second half of the time")
    if loose := [n for n, found in (lift.get("aa") or {}).items() if found.get("ok") is False]:
        notes.append(f"A/A: the standard error of {', '.join(loose)} does not keep its level")
    if apart := disagreements(lift):
        notes.append(f"estimators disagree for {', '.join(apart)}")
    return notes
