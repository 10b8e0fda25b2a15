"""Threats to validity: what could make the numbers wrong although every check passed, and what this log says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNITS = {"user_id": "user", "group_id": "story", "request_id": "request"}
DRIFT_LEVEL = 0.05

NOT_CHECKED = {
    "offpolicy": {
        "sample ratio": "nobody was assigned to an arm: all arms are evaluated on the same impressions, and the mean "
                        "weight takes its place",
        "pre-period bias": "the arms share their users, so that no earlier difference between them can exist"},
    "randomized": {
        "exposure, logging loss": "the log holds sums of viewers: single exposures are not in it, and lost ones show "
                                  "only in the sample ratio",
        "pre-period bias": "candidates are new when their test begins: there is no earlier period of theirs"},
}
"""Method -> health check that the method leaves no room for -> why."""


def threats(report: Mapping[str, Any], audit: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The threats that a report's design leaves open.

    Args:
        report: a lift report; read are its method, unit, arms, ``growth``, ``multiplicity`` and ``peeking``.
        audit: the split's ``audit.json``.

    Returns:
        {"threat", "why", "evidence": what this log says of it, or None}.
    """
    unit, offline = UNITS.get(report.get("unit", ""), report.get("unit") or "unit"), report.get("method") == "offpolicy"
    several = len([n for n in report["arms"] if n != report.get("baseline")])
    out = [
        _of("Interference", "Arms share auctions and budgets in real traffic. An offline estimate holds the other side "
                            "fixed, so advertisers' and users' reactions are not in it.", None),
        _of("Novelty and drift", "The estimate is about the period and the ads of the log. It says nothing about "
                                 "seasons, or about a policy that users have grown used to.", _drift(report)),
        _of("Selection", f"Intervals treat each {unit} as independent of the others and the log as typical of the "
                         "traffic the model would meet.", None),
        _of("Split", "A ranker that saw the test part in training would look better than it is.", _split(audit)),
    ]
    if offline:
        out.append(_of("Logged propensities", "Every estimate reweights what another policy showed. It stands on the "
                       "logged probabilities being right, and on that policy having tried what the arm would do.",
                       _weights(report)))
    if several > 1 and str(report.get("multiplicity", "none")).startswith("none"):
        out.append(_of("Several comparisons", f"{several} arms are compared with the baseline and the intervals are "
                       "not widened for that: the best of several looks better than it is.", None))
    if not report.get("peeking"):
        out.append(_of("Peeking", "The intervals hold for one look at data whose size was fixed beforehand.", None))
    out.append(_of("Prices", "Costs are measured seconds times dated list and spot prices of one machine. Your "
                   "contract, region and load will differ.", None))
    return out


def _of(threat: str, why: str, evidence: str | None) -> dict[str, Any]:
    return {"threat": threat, "why": why, "evidence": evidence}


def _drift(report: Mapping[str, Any]) -> str | None:
    halves = (report.get("growth") or {}).get("halves") or {}
    known = {n: h["p_value"] for n, h in halves.items() if h.get("p_value") is not None}
    if not known:
        return ("Not enough evidence in the two halves of the time to tell whether any lift moved." if halves else None)
    moved = [n for n, p in known.items() if p * len(known) <= DRIFT_LEVEL]
    if moved:
        return f"The lift of {', '.join(moved)} differs between the first and the second half of the time."
    return ("No arm's lift is seen to differ between the first and the second half of the time "
            f"(least p {min(known.values()):.2g} of {len(known)}); small changes would not be seen.")


def _split(audit: Mapping[str, Any] | None) -> str | None:
    if audit is None:
        return None
    counted = {n: audit[n] for n in ("requests", "groups", "texts") if isinstance(audit.get(n), Mapping)}
    if not counted:
        return None
    parts = [f"{part.get('shared', 0):,} of {part.get('test', 0):,} test {name} are in training too"
             for name, part in counted.items()]
    apart = "; stories are kept whole" if audit.get("stories") else (
        "; the same ads on both sides are what serving meets" if "texts" in counted else "")
    return "; ".join(parts) + apart + "."


def _weights(report: Mapping[str, Any]) -> str | None:
    facts = {n: a.get("diagnostics") or {} for n, a in report["arms"].items()}
    apart = [n for n, d in facts.items() if d.get("agreement") and not d["agreement"]["ok"]]
    if not any(d.get("agreement") for d in facts.values()):
        return None
    return (f"Estimators disagree by more than three standard errors for {', '.join(apart)}." if apart else
            "Estimators that tend to the same value agree within three standard errors in every arm.")
