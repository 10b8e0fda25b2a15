"""The lift report as data: ``report/lift.json``.

Two entries, one shape: :func:`offpolicy_lift` for logs with propensities, :func:`randomized_lift` for tests among
randomised candidates. Both turn each arm into rows whose mean is its value
(:class:`recsys.evaluation.comparison.Comparison`); everything after that is shared
(:func:`recsys.evaluation.lift_json.compute_lift`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from recsys.config import ExperimentConfig
from recsys.errors import InputError
from recsys.evaluation import health, offpolicy, randomized
from recsys.evaluation.beyond import reaches
from recsys.evaluation.comparison import ArmRows, Comparison, randomized_choice
from recsys.evaluation.economics import economics_rows, offpolicy_events
from recsys.evaluation.exposure import exposure_rows
from recsys.evaluation.intervals import Floats, bootstrap_interval, choose_interval, cluster_sums, t_interval
from recsys.evaluation.lift_json import Context, Costs, Truth, compute_lift
from recsys.evaluation.segments import read_segments
from recsys.stage import sha256_bytes, write_json


def table_sha256(table: pa.Table) -> str:
    """SHA-256 of a table's contents (names, types, values), whatever its chunks."""
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_table(plain)
    return sha256_bytes(sink.getvalue())


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
        Refused: unknown or reconstructed propensities, weights that do not average to 1, an arm with more than MAX_GAP
            of its probability on ads that the log never shows, too little evidence.
    """
    offpolicy.require_not_direct(estimator)
    _require_arms(config, policies)
    ev = config.evaluation
    seen = offpolicy.read_log(log, ev.unit)
    gaps: dict[str, float] = {}
    arms, checks = {}, [health.check("propensity logged", True, f"{len(seen):,} of {len(seen):,} rows")]
    for name, policy in policies.items():
        arm = offpolicy.join_policy(seen, policy, name)
        facts = offpolicy.diagnostics(seen, arm)
        offpolicy.require_unit_weight(facts, name)
        checks.append(health.check(f"mean weight {name}", True,
                                   f"{facts['mean_weight']:.4f} +- {facts['mean_weight_se']:.4f}, expected 1"))
        gaps[name] = facts["support_gaps"]
        offpolicy.require_support(gaps[name], f"policy of arm {name}")
        rows: dict[str, Floats | None] = {
            m: offpolicy.pseudo_outcomes(seen, arm, m, estimator) for m in offpolicy.METRICS}
        events = offpolicy_events(seen, arm)
        extra, extra_events = economics_rows(log, seen, policy, arm, rows, estimator)
        shelf, shelf_events = exposure_rows(seen, policy, ev.policy.reserve)
        made = {m: x for m, x in rows.items() if x is not None} | extra | shelf
        modelled = estimator != "ips" and arm.q is not None
        unadjusted = offpolicy.pseudo_outcomes(seen, arm, ev.goal, "ips") if modelled else None
        counted, weighed = np.bincount(seen.clusters), np.bincount(seen.clusters, arm.weight)
        sizes = counted.astype(np.float64), weighed.astype(np.float64)
        choose_interval(facts["ess"], facts["effective_clicks"], int(seen.clusters.max()) + 1, sizes)
        arms[name] = ArmRows(made, facts["ess"], events | extra_events | shelf_events,
                             {**facts, "estimator": estimator}, sizes, arm.weight, arm.weight * seen.click, unadjusted,
                             offpolicy.headroom(seen, arm), gaps[name],
                             reaches(log, seen, policy, arm, made, estimator, shelf),
                             offpolicy.reach_of(seen, arm, ev.goal, "ips"))
    checks += [health.support(gaps, offpolicy.MAX_GAP), *health.exposure(log), *health.logging_loss(log),
               health.duplicates(log), health.unit_of_analysis(log, ev.unit), *health.split_audit(audit)]
    comparison = Comparison(arms, config.baseline_arm, ev.goal, seen.clusters, ev.confidence, ev.bootstrap, config.seed,
                            paired=True)
    context = Context(read_segments(log, config.decision.segments, config.decision.segment_values),
                      log.column(ev.time_column) if ev.time_column in log.column_names else None, audit)
    return compute_lift(comparison, config, costs or {}, truth, checks, data_sha256 or table_sha256(log), context)


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
    randomized_choice(len(tests.size), int(tests.cluster.max()) + 1)  # too few are refused before anything is drawn
    headroom = randomized.oracle_lift(tests, seed=config.seed)
    arms = {}
    for name, own in scores.items():
        pick = randomized.picked(tests, own, name)
        facts = {"oracle_lift": headroom, "viewers": int(tests.trials.sum()), "clicks": int(tests.successes.sum()),
                 "viewers_of_picks": float(pick @ tests.trials), "clicks_of_picks": float(pick @ tests.successes),
                 "tests_with_ties": int((np.bincount(tests.test, pick > 0) > 1).sum()),
                 "rows_left_aside": tests.dropped}
        arms[name] = ArmRows({"ctr": randomized.value_per_test(tests, pick)}, float(len(tests.size)), {},
                             facts, click_squares=randomized.click_squares(tests, pick))
    comparison = Comparison(arms, config.baseline_arm, ev.goal, tests.cluster, ev.confidence, ev.bootstrap, config.seed,
                            paired=False)
    for name in arms:
        if name != comparison.baseline:
            arms[name].diagnostics["bootstrap_check"] = _bootstrap_check(comparison, name)
    checks = [health.srm_of_groups(tests.trials, tests.test, pooled=True),
              health.duplicates(test, ("request_id", "ad_id")),
              health.unit_of_analysis(test, ev.unit), *health.split_audit(audit)]
    first = np.zeros(len(tests.size), dtype=np.int64)  # a test's segment and time are those of its first row
    first[tests.test[::-1]] = tests.rows[::-1]
    segments = read_segments(test, config.decision.segments, config.decision.segment_values)
    context = Context({n: s.of(first) for n, s in segments.items()},
                      test.column(ev.time_column).take(pa.array(first)) if ev.time_column in test.column_names
                      else None, audit)
    return compute_lift(comparison, config, costs or {}, None, checks, data_sha256 or table_sha256(test), context)


def _bootstrap_check(c: Comparison, name: str) -> dict[str, float]:
    """The clustered bootstrap beside the published t interval: a reader sees whether they agree."""
    sums = cluster_sums(c.arms[name].rows[c.goal], c.arms[c.baseline].rows[c.goal], c.clusters)
    made, plain = bootstrap_interval(sums, c.confidence, c.draws, c.seed), t_interval(sums, c.confidence)
    return {"low": made.low - 1, "high": made.high - 1, "t_low": plain.low - 1, "t_high": plain.high - 1}
