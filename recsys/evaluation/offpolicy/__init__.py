"""Off-policy evaluation: what would another policy have earned on this log?

Read the log (:func:`read_log`), look a target policy up (:func:`join_policy`), and turn it into rows whose mean is
the estimate (:func:`pseudo_outcomes`); or let :func:`recsys.evaluation.offpolicy.evaluate.evaluate` do all of it for
files of any length.
"""

from __future__ import annotations

from recsys.evaluation.offpolicy.estimators import ESTIMATORS, Estimator, Outcomes, estimator
from recsys.evaluation.offpolicy.join import ENGAGED_MS, Joined, Log, join_policy, read_log
from recsys.evaluation.offpolicy.rows import (
    METRICS,
    Metric,
    diagnostics,
    outcomes_of,
    pseudo_outcomes,
    require_not_direct,
    require_unit_weight,
    reward_model,
)
from recsys.evaluation.offpolicy.totals import CLIPS, Totals, effective

__all__ = [
    "CLIPS", "ENGAGED_MS", "ESTIMATORS", "METRICS", "Estimator", "Joined", "Log", "Metric", "Outcomes", "Totals",
    "diagnostics", "effective", "estimator", "join_policy", "outcomes_of", "pseudo_outcomes", "read_log",
    "require_not_direct", "require_unit_weight", "reward_model",
]
