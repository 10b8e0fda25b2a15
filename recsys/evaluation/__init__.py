"""Off-policy and randomised evaluation: policies, estimators, intervals and the lift report."""

from __future__ import annotations

from recsys.lazy import on_first_use

_WHERE = {
    "lift_json": ("compute_lift",),
    "lift": ("offpolicy_lift", "randomized_lift", "write_lift"),
    "policy": ("ranker_policy", "uniform_policy"),
    "offpolicy": ("diagnostics", "join_policy", "pseudo_outcomes", "read_log"),
    "randomized": ("oracle_lift", "picked", "read_tests", "value_per_test"),
    "intervals": ("Interval", "bootstrap_interval", "choose_interval", "cluster_sums", "t_interval"),
    "welch": ("fieller", "relative_lift", "welch_interval"),
    "betting": ("betting_interval", "betting_mean", "empirical_bernstein"),
    "likelihood": ("empirical_likelihood",),
    "uplift": ("qini_curve", "uplift_at", "uplift_curve", "uplift_report"),
    "health": ("srm", "srm_of_groups"),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)
__getattr__ = on_first_use(__name__, _MODULE)
