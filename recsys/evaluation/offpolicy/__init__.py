"""Off-policy evaluation: what would another policy have earned on this log?

Read the log (:func:`read_log`), look a target policy up (:func:`join_policy`), and turn it into rows whose mean is
the estimate (:func:`pseudo_outcomes`); or let :func:`recsys.evaluation.offpolicy.evaluate.evaluate` do all of it for
files of any length.
"""

from __future__ import annotations

from recsys.lazy import on_first_use

_WHERE = {
    "estimators": ("ESTIMATORS", "Estimator", "Outcomes", "Slate", "estimator"),
    "evaluate": ("evaluate",),
    "join": ("ENGAGED_MS", "Joined", "Log", "join_policy", "read_log"),
    "nuisance": ("Nuisance", "embedding_clusters"),
    "rows": ("METRICS", "Metric", "constant_reach", "diagnostics", "headroom", "outcomes_of", "pseudo_outcomes",
             "reach_of", "require_not_direct", "require_unit_weight", "reward_model"),
    "slate": ("slate_weights",),
    "support": ("MAX_GAP", "Reach", "require_support"),
    "thompson": ("thompson_marginals", "thompson_policy"),
    "totals": ("CLIPS", "Totals", "effective"),
    "tuning": ("slope",),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)
__getattr__ = on_first_use(__name__, _MODULE)
