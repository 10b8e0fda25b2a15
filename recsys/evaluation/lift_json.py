"""The contents of ``lift.json``, from arms on one log. Lifts are fractions: 0.094 is +9.4 %."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from recsys import __version__
from recsys.config import ExperimentConfig
from recsys.errors import Refused
from recsys.evaluation import health
from recsys.evaluation.aa import aa_of_sums
from recsys.evaluation.certify.certificate import certificate
from recsys.evaluation.comparison import NO_LIFT, Comparison, ends
from recsys.evaluation.decision import GoalTest, decide, policy_words
from recsys.evaluation.growth import growth
from recsys.evaluation.intervals import cluster_sums, t_interval
from recsys.evaluation.segments import Segments, segment_lifts
from recsys.evaluation.threats import NOT_CHECKED, threats
from recsys.evaluation.withheld import refusal, withhold
from recsys.stage import sha256_json

Costs = Mapping[str, Mapping[str, Any]]
Truth = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Context:
    """What is known of the comparison's rows beside outcomes.

    Attributes:
        segments: column -> segments of the rows.
        when: n values that order the rows; None where the log has none.
        audit: the split's ``audit.json``.
    """

    segments: Mapping[str, Segments] = field(default_factory=dict)
    when: pa.ChunkedArray | None = None
    audit: Mapping[str, Any] | None = None


def _arm_entry(c: Comparison, name: str, costs: Costs, truth: Truth | None) -> dict[str, Any]:
    base, arm = name == c.baseline, c.arms[name]
    lift, absolute = (None, None) if base else (c.lift(name, c.baseline, c.goal),
                                                c.difference(name, c.baseline, c.goal, relative=False))
    value = c.value(name, c.goal)
    choice = c.choice_of(c.goal, name) if base else c.choice_of(c.goal, name, c.baseline)
    entry: dict[str, Any] = {
        "lift": NO_LIFT if lift is None else ends(lift), "p_value": None if lift is None else lift.p_value,
        "se": None if lift is None else lift.se,
        "absolute_lift": NO_LIFT if absolute is None else ends(absolute),
        "value": value.estimate, "value_interval": {"low": value.low, "high": value.high},
        "n": len(arm.rows[c.goal]), "clusters": len(np.unique(c.clusters)),
        "interval_method": (lift or value).method, "label": choice.label, "interval_reason": choice.reason,
        "secondary": {m: _secondary(c, name, m, truth) for m in arm.rows
                      if m != c.goal and m in c.arms[c.baseline].rows},
        "diagnostics": arm.diagnostics,
    }
    if c.paired:  # off-policy: clicks that the policy is estimated to have had on the log's impressions
        entry |= {"numerator": float(arm.rows[c.goal].sum()), "denominator": len(arm.rows[c.goal])}
    if not base:
        entry["unadjusted"] = _unadjusted(c, name)
    cost = dict(costs.get(name, {}))
    entry["cost_per_mille_usd"] = cost.pop("cost_per_mille_usd", None)
    entry["cost_per_mille_interval"] = cost.pop("cost_per_mille_interval", None)
    entry.update(cost)
    entry.update(_truth(name, c, truth, ends(value), entry["lift"], c.goal))
    return entry


def _unadjusted(c: Comparison, name: str) -> dict[str, Any] | None:
    """The lift without the outcome model (IPS), and the share of variance its model saves; None without one."""
    rows, base = c.arms[name].unadjusted, c.arms[c.baseline].unadjusted
    if rows is None or base is None:
        return None
    sums = [cluster_sums(a, b, c.clusters) for a, b in ((rows, base), (c.arms[name].rows[c.goal],
                                                                       c.arms[c.baseline].rows[c.goal]))]
    try:
        made = c.unadjusted_lift(name, c.baseline)
        errors = [t_interval(s, c.confidence).se for s in sums]
    except Refused:
        return None
    saved = None if not errors[0] or errors[1] is None else 1 - (errors[1] / errors[0]) ** 2
    return {"estimator": "ips", "lift": ends(made), "se": errors[0], "variance_reduction": saved}


def _aa(c: Comparison, name: str, config: ExperimentConfig) -> dict[str, Any]:
    """The standard error of an arm's lift, tried on random halves of its own units."""
    sums = cluster_sums(c.arms[name].rows[c.goal], c.arms[c.baseline].rows[c.goal], c.clusters)
    try:
        return aa_of_sums(sums.numerator, sums.denominator, config.evaluation.aa_draws, round(1 - c.confidence, 12),
                          c.seed, what=f"the lift of {name}")
    except Refused as refused:
        return {"refused": str(refused)}


def _secondary(c: Comparison, name: str, metric: str, truth: Truth | None) -> dict[str, Any]:
    try:
        value, choice = c.value(name, metric), c.choice_of(metric, name, c.baseline)
    except Refused as refused:  # this metric's events are too few: the goal's may carry an interval all the same
        return {"value": float(c.arms[name].rows[metric].mean()), "value_interval": None, "lift": None,
                "refused": str(refused)}
    entry: dict[str, Any] = {"value": value.estimate, "value_interval": {"low": value.low, "high": value.high},
                             "label": choice.label, "interval_method": value.method, "interval_reason": choice.reason}
    if name == c.baseline:
        return {**entry, "lift": NO_LIFT, "absolute_lift": NO_LIFT,
                **_truth(name, c, truth, ends(value), NO_LIFT, metric)}
    try:
        made = c.lift(name, c.baseline, metric)
        absolute = c.difference(name, c.baseline, metric, relative=False)
    except Refused as refused:
        return {**entry, "lift": None, "refused": str(refused)}
    return {**entry, "interval_method": made.method, "lift": ends(made), "se": made.se,
            "absolute_lift": ends(absolute), **_truth(name, c, truth, ends(value), ends(made), metric)}


def _truth(name: str, c: Comparison, truth: Truth | None, value: dict[str, float], lift: dict[str, float],
           metric: str) -> dict[str, Any]:
    if truth is None or metric not in truth.get(name, {}) or metric not in truth.get(c.baseline, {}):
        return {}
    own, base = float(truth[name][metric]), float(truth[c.baseline][metric])
    true_lift = own / base - 1 if name != c.baseline else 0.0
    return {"true_value": own, "true_lift": true_lift, "covers_truth": lift["low"] <= true_lift <= lift["high"],
            "value_covers_truth": value["low"] <= own <= value["high"]}


def _pairwise(c: Comparison) -> dict[str, Any]:
    pairs = {}
    for a, b in combinations([n for n in c.arms if n != c.baseline], 2):
        difference, lift = c.difference(a, b, c.goal, relative=True), c.lift(a, b, c.goal)
        pairs[f"{a} vs {b}"] = {"arm": a, "against": b, "difference": ends(difference), "lift": ends(lift),
                                "p_value": difference.p_value, "interval_method": difference.method}
    return pairs


def _versions() -> dict[str, str]:
    found = {"recsys": __version__, "python": platform.python_version()}
    for name in ("numpy", "scipy", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a vendored build without metadata
            continue
    return found


def compute_lift(
    comparison: Comparison, config: ExperimentConfig, costs: Costs, truth: Truth | None, checks: list[dict[str, Any]],
    data_sha256: str, context: Context | None = None,
) -> dict[str, Any]:
    """Build the contents of ``lift.json`` from arms on one log (docs/architecture.md names its readers).

    Args:
        comparison: the arms' rows.
        config: the experiment; its hash goes into the report.
        costs: arm -> ``cost_per_mille_usd``, ``cost_per_mille_interval`` and anything else to be passed through.
        truth: arm -> metric -> true value, where a simulator knows it.
        checks: health lines; that of the A/A tests is added. Where one fails, no estimate is in the report: ``refused``
            says why, and what would mend it.
        data_sha256: of the log that was evaluated.
        context: times, segments and split of the rows.
    """
    context = context or Context()
    unit, others = config.evaluation.unit, [n for n in comparison.arms if n != comparison.baseline]
    aa = {name: _aa(comparison, name, config) for name in others}
    checks = [*checks, *health.aa(aa)]
    refused = refusal(checks)
    report: dict[str, Any] = {
        "experiment": config.name, "goal": comparison.goal, "method": config.evaluation.method, "unit": unit,
        "confidence": comparison.confidence, "baseline": comparison.baseline,
        "arms": {name: _arm_entry(comparison, name, costs, truth) for name in comparison.arms},
        "pairwise": _pairwise(comparison), "health": checks, "healthy": refused is None, "refused": refused,
        "not_checked": [{"check": n, "why": w} for n, w in NOT_CHECKED[config.evaluation.method].items()],
        "aa": aa,
        "growth": growth(comparison, context.when, config) if refused is None else {},
        "segments": segment_lifts(comparison, context.segments, config) if refused is None else {},
        **policy_words(config, len(others)), "minimum_effect": config.decision.minimum_effect,
        "config_sha256": sha256_json(config.resolved()), "data_sha256": data_sha256,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "versions": _versions(),
        "certificate": certificate(config.evaluation.method),
    }
    goals = {n: _goal_test(comparison, n, config) for n in others} if refused is None else {}
    report["decision"] = decide(report, goals, config)
    if refused is not None:
        withhold(report, refused)
        report["decision"] |= {"verdict": dict.fromkeys(others, "Review"), "why": dict.fromkeys(others, refused)}
    for name, verdict in report["decision"]["verdict"].items():
        report["arms"][name]["verdict"] = verdict
    report["threats"] = threats(report, context.audit)
    return report


def _goal_test(c: Comparison, name: str, config: ExperimentConfig) -> GoalTest:
    made = c.lift(name, c.baseline, c.goal, config.decision.minimum_effect)
    return GoalTest(made.estimate, made.se, made.p_value, len(np.unique(c.clusters)), made.label)
