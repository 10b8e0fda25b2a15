"""The lift report as data: ``report/lift.json``.

Two entries, one shape: :func:`offpolicy_lift` for logs with propensities, :func:`randomized_lift` for tests among
randomised candidates. Both turn each arm into rows whose mean is its value; everything after that is shared.
Lifts are fractions: 0.094 is +9.4 %.
"""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from recsys import __version__
from recsys.config import ExperimentConfig
from recsys.errors import InputError, Refused
from recsys.evaluation import health, offpolicy, randomized
from recsys.evaluation.decision import GoalTest, decide, policy_words
from recsys.evaluation.economics import economics_rows, offpolicy_events
from recsys.evaluation.intervals import (
    EXPLORATORY_CLUSTERS,
    MIN_CLUSTERS,
    Choice,
    Floats,
    Interval,
    bootstrap_interval,
    choose_interval,
    cluster_sums,
    interval,
    t_interval,
)
from recsys.stage import sha256_bytes, sha256_json, write_json

Costs = Mapping[str, Mapping[str, Any]]
Truth = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class ArmRows:
    """One arm on the shared log.

    Attributes:
        rows: metric -> float64[n] rows whose mean is the arm's value of that metric.
        choice: the interval rule applied to this arm's goal.
        ess: effective sample size of its weights.
        events: metric -> effective events, (sum w |r|)^2 / sum (w r)^2 of that metric's own r: clicks, hides, revenue.
        top_share: share of the weight that the largest 1 % of weights carry.
        diagnostics: for the report.
        sizes: float64[clusters] each: rows, and weight, of every unit; none: units of one size.
    """

    rows: dict[str, Floats]
    choice: Choice
    ess: float
    events: dict[str, float]
    top_share: float
    diagnostics: dict[str, Any]
    sizes: tuple[Floats, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """All arms on one log, and what is needed to interval any function of them."""

    arms: dict[str, ArmRows]
    baseline: str
    goal: str
    clusters: NDArray[np.int64]
    confidence: float
    draws: int
    seed: int
    paired: bool  # off-policy: the pair's worst arm decides the interval; randomised: one rule for all

    def ratio(self, numerator: Floats, denominator: Floats | float, choice: Choice, null: float | None) -> Interval:
        """Interval of sum(numerator) / sum(denominator), clustered."""
        sums = cluster_sums(numerator, denominator, self.clusters)
        made = interval(sums, choice, self.confidence, self.draws, self.seed, null)
        if not np.isfinite([made.low, made.high]).all():
            raise Refused(f"the interval has no finite end ({choice.reason}): the log cannot tell this ratio at all")
        return made

    def choice_of(self, metric: str, *names: str) -> Choice:
        """The interval rule applied to the worst of the named arms, by the metric's own events.

        Raises:
            Refused: too little evidence of this metric, however much there is of another.
        """
        arms = [self.arms[n] for n in names]
        if not self.paired:
            return arms[0].choice
        return choose_interval(min(a.ess for a in arms), min(a.events[metric] for a in arms),
                               int(self.clusters.max()) + 1, max(a.top_share for a in arms),
                               [m for a in arms for m in a.sizes])

    def lift(self, name: str, against: str, metric: str, null: float = 0.0) -> Interval:
        """Relative lift of one arm over another; rates are not negative, so a lift is never below -1.

        ``null`` is the lift that the p-value is about.
        """
        choice = self.choice_of(metric, name, against)
        made = self.ratio(self.arms[name].rows[metric], self.arms[against].rows[metric], choice, 1.0 + null)
        return _at_least(made.shifted(-1.0), -1.0)

    def value(self, name: str, metric: str) -> Interval:
        """An arm's own value."""
        return _at_least(self.ratio(self.arms[name].rows[metric], 1.0, self.choice_of(metric, name), None), 0.0)

    def difference(self, name: str, against: str, metric: str, relative: bool) -> Interval:
        """Difference of two arms' values, absolute, or as a difference of lifts (divided by the baseline's value)."""
        rows = self.arms[name].rows[metric] - self.arms[against].rows[metric]
        below: Floats | float = self.arms[self.baseline].rows[metric] if relative else 1.0
        return self.ratio(rows, below, self.choice_of(metric, name, against, self.baseline), 0.0)


def _at_least(made: Interval, floor: float) -> Interval:
    return Interval(made.estimate, max(floor, made.low), max(floor, made.high), made.se, made.p_value, made.method,
                    made.label)


def _ends(made: Interval) -> dict[str, float]:
    return {"estimate": made.estimate, "low": made.low, "high": made.high}


NO_LIFT = {"estimate": 0.0, "low": 0.0, "high": 0.0}


def _arm_entry(c: Comparison, name: str, costs: Costs, truth: Truth | None) -> dict[str, Any]:
    base, arm = name == c.baseline, c.arms[name]
    lift, absolute = (None, None) if base else (c.lift(name, c.baseline, c.goal),
                                                c.difference(name, c.baseline, c.goal, relative=False))
    value = c.value(name, c.goal)
    choice = c.choice_of(c.goal, name) if base else c.choice_of(c.goal, name, c.baseline)
    entry: dict[str, Any] = {
        "lift": NO_LIFT if lift is None else _ends(lift), "p_value": None if lift is None else lift.p_value,
        "se": None if lift is None else lift.se,
        "absolute_lift": NO_LIFT if absolute is None else _ends(absolute),
        "value": value.estimate, "value_interval": {"low": value.low, "high": value.high},
        "n": len(arm.rows[c.goal]), "clusters": len(np.unique(c.clusters)),
        "interval_method": (lift or value).method, "label": choice.label, "interval_reason": choice.reason,
        "secondary": {m: _secondary(c, name, m, truth) for m in arm.rows
                      if m != c.goal and m in c.arms[c.baseline].rows},
        "diagnostics": arm.diagnostics,
    }
    if c.paired:  # off-policy: clicks that the policy is estimated to have had on the log's impressions
        entry |= {"numerator": float(arm.rows[c.goal].sum()), "denominator": len(arm.rows[c.goal])}
    cost = dict(costs.get(name, {}))
    entry["cost_per_mille_usd"] = cost.pop("cost_per_mille_usd", None)
    entry["cost_per_mille_interval"] = cost.pop("cost_per_mille_interval", None)
    entry.update(cost)
    entry.update(_truth(name, c, truth, _ends(value), entry["lift"], c.goal))
    return entry


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
                **_truth(name, c, truth, _ends(value), NO_LIFT, metric)}
    try:
        made = c.lift(name, c.baseline, metric)
        absolute = c.difference(name, c.baseline, metric, relative=False)
    except Refused as refused:
        return {**entry, "lift": None, "refused": str(refused)}
    return {**entry, "interval_method": made.method, "lift": _ends(made), "se": made.se,
            "absolute_lift": _ends(absolute), **_truth(name, c, truth, _ends(value), _ends(made), metric)}


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
        pairs[f"{a} vs {b}"] = {"arm": a, "against": b, "difference": _ends(difference), "lift": _ends(lift),
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


def table_sha256(table: pa.Table) -> str:
    """SHA-256 of a table's contents (names, types, values), whatever its chunks."""
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_table(plain)
    return sha256_bytes(sink.getvalue())


def compute_lift(
    comparison: Comparison, config: ExperimentConfig, costs: Costs, truth: Truth | None, checks: list[dict[str, Any]],
    data_sha256: str,
) -> dict[str, Any]:
    """Build the contents of ``lift.json`` from arms on one log (docs/architecture.md names its readers).

    Args:
        comparison: the arms' rows.
        config: the experiment; its hash goes into the report.
        costs: arm -> ``cost_per_mille_usd``, ``cost_per_mille_interval`` and anything else to be passed through.
        truth: arm -> metric -> true value, where a simulator knows it.
        checks: health lines.
        data_sha256: of the log that was evaluated.
    """
    unit, others = config.evaluation.unit, [n for n in comparison.arms if n != comparison.baseline]
    report: dict[str, Any] = {
        "experiment": config.name, "goal": comparison.goal, "method": config.evaluation.method, "unit": unit,
        "confidence": comparison.confidence, "baseline": comparison.baseline,
        "arms": {name: _arm_entry(comparison, name, costs, truth) for name in comparison.arms},
        "pairwise": _pairwise(comparison), "health": checks, "healthy": all(line["ok"] for line in checks),
        **policy_words(config, len(others)), "minimum_effect": config.decision.minimum_effect,
        "config_sha256": sha256_json(config.resolved()), "data_sha256": data_sha256,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "versions": _versions(),
    }
    report["decision"] = decide(report, {n: _goal_test(comparison, n, config) for n in others}, config)
    for name, verdict in report["decision"]["verdict"].items():
        report["arms"][name]["verdict"] = verdict
    return report


def _goal_test(c: Comparison, name: str, config: ExperimentConfig) -> GoalTest:
    made = c.lift(name, c.baseline, c.goal, config.decision.minimum_effect)
    return GoalTest(made.estimate, made.se, made.p_value, len(np.unique(c.clusters)), made.label)


def write_lift(path: str | Path, lift: Mapping[str, Any]) -> None:
    """Write ``lift.json`` atomically; a NaN or infinity is an error."""
    write_json(path, dict(lift))


def _require_arms(config: ExperimentConfig, names: Mapping[str, Any]) -> None:
    if config.baseline_arm not in names:
        raise InputError("the baseline arm is missing", column=config.baseline_arm, got=sorted(names),
                         expected="a policy or scores for it")


def offpolicy_lift(
    log: pa.Table, policies: Mapping[str, pa.Table], config: ExperimentConfig, costs: Costs | None = None,
    truth: Truth | None = None, *, audit: dict[str, Any] | None = None, data_sha256: str | None = None,
    estimator: str = "dr",
) -> dict[str, Any]:
    """Lift report of target policies on a log with logged propensities.

    Args:
        log: IMPRESSIONS of the test part, one row per shown slot.
        policies: arm -> POLICY over every (request, slot, candidate) of the log.
        config: the experiment.
        costs: see :func:`compute_lift`.
        truth: see :func:`compute_lift`; metrics ctr, engagement, revenue_per_mille.
        audit: the split's ``audit.json``.
        data_sha256: hash of the log's file; default: of the table.
        estimator: a name of ``offpolicy.ESTIMATORS``; ``dm`` is refused.

    Raises:
        InputError: a table breaks its contract or does not cover the log; the unit is not a column.
        Refused: unknown or reconstructed propensities, weights that do not average to 1, too little evidence.
    """
    offpolicy.require_not_direct(estimator)
    _require_arms(config, policies)
    ev = config.evaluation
    seen = offpolicy.read_log(log, ev.unit)
    arms, checks = {}, [health.check("propensity logged", True, f"{len(seen):,} of {len(seen):,} rows")]
    for name, policy in policies.items():
        arm = offpolicy.join_policy(seen, policy, name)
        facts = offpolicy.diagnostics(seen, arm)
        offpolicy.require_unit_weight(facts, name)
        checks.append(health.check(f"mean weight {name}", True,
                                   f"{facts['mean_weight']:.4f} +- {facts['mean_weight_se']:.4f}, expected 1"))
        rows: dict[str, Floats | None] = {
            m: offpolicy.pseudo_outcomes(seen, arm, m, estimator) for m in offpolicy.METRICS}
        events = offpolicy_events(seen, arm)
        extra, extra_events = economics_rows(log, seen, policy, arm, rows, estimator)
        made = {m: x for m, x in rows.items() if x is not None} | extra
        top = facts["top_1_percent_weight_share"]
        counted, weighed = np.bincount(seen.clusters), np.bincount(seen.clusters, arm.weight)
        sizes = counted.astype(np.float64), weighed.astype(np.float64)
        choice = choose_interval(facts["ess"], facts["effective_clicks"], int(seen.clusters.max()) + 1, top, sizes)
        arms[name] = ArmRows(made, choice, facts["ess"], events | extra_events, top,
                             {**facts, "estimator": estimator}, sizes)
    checks += [health.duplicates(log), health.unit_of_analysis(log, ev.unit), *health.split_audit(audit)]
    comparison = Comparison(arms, config.baseline_arm, ev.goal, seen.clusters, ev.confidence, ev.bootstrap, config.seed,
                            paired=True)
    return compute_lift(comparison, config, costs or {}, truth, checks, data_sha256 or table_sha256(log))


def randomized_lift(
    test: pa.Table, scores: Mapping[str, ArrayLike | None], config: ExperimentConfig, costs: Costs | None = None, *,
    audit: dict[str, Any] | None = None, data_sha256: str | None = None,
) -> dict[str, Any]:
    """Lift report of arms that pick one candidate per randomised test.

    Args:
        test: IMPRESSIONS with trials and successes, one row per (request_id, ad_id).
        scores: arm -> one score per row of ``test`` (the highest is picked), or None for the uniform choice.
        config: the experiment; ``evaluation.unit`` is the story's column.
        costs: see :func:`compute_lift`.
        audit: the split's ``audit.json``.
        data_sha256: hash of the test file; default: of the table.

    Raises:
        InputError: the table breaks its contract, scores do not match it, the unit is not a column.
        Refused: nothing to choose between, or too few independent units.
    """
    _require_arms(config, scores)
    ev = config.evaluation
    tests = randomized.read_tests(test, ev.unit)
    units = int(tests.cluster.max()) + 1
    if units < MIN_CLUSTERS:
        raise Refused(f"{units} independent units: no interval is published below {MIN_CLUSTERS}")
    few = units < EXPLORATORY_CLUSTERS
    choice = Choice("t+bootstrap" if few else "t", "exploratory" if few else "confirmatory",
                    f"randomised; {len(tests.size):,} tests in {units:,} units")
    headroom = randomized.oracle_lift(tests, seed=config.seed)
    arms = {}
    for name, own in scores.items():
        pick = randomized.picked(tests, own, name)
        facts = {"oracle_lift": headroom, "viewers": int(tests.trials.sum()), "clicks": int(tests.successes.sum()),
                 "tests_with_ties": int((np.bincount(tests.test, pick > 0) > 1).sum()),
                 "rows_left_aside": tests.dropped}
        arms[name] = ArmRows({"ctr": randomized.value_per_test(tests, pick)}, choice, float(len(tests.size)), {}, 0.0,
                             facts)
    comparison = Comparison(arms, config.baseline_arm, ev.goal, tests.cluster, ev.confidence, ev.bootstrap, config.seed,
                            paired=False)
    for name in arms:
        if name != comparison.baseline:
            arms[name].diagnostics["bootstrap_check"] = _bootstrap_check(comparison, name)
    checks = [health.srm_of_groups(tests.trials, tests.test, pooled=True),
              health.duplicates(test, ("request_id", "ad_id")),
              health.unit_of_analysis(test, ev.unit), *health.split_audit(audit)]
    return compute_lift(comparison, config, costs or {}, None, checks, data_sha256 or table_sha256(test))


def _bootstrap_check(c: Comparison, name: str) -> dict[str, float]:
    """The clustered bootstrap beside the published t interval: a reader sees whether they agree."""
    sums = cluster_sums(c.arms[name].rows[c.goal], c.arms[c.baseline].rows[c.goal], c.clusters)
    made, plain = bootstrap_interval(sums, c.confidence, c.draws, c.seed), t_interval(sums, c.confidence)
    return {"low": made.low - 1, "high": made.high - 1, "t_low": plain.low - 1, "t_high": plain.high - 1}
