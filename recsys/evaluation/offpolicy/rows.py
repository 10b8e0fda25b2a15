"""Rewards, outcome models and pseudo-outcomes of an arm on a log held in memory: what the lift report is made of."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from recsys.errors import Refused
from recsys.evaluation.intervals import Floats, t_interval
from recsys.evaluation.offpolicy.estimators import ESTIMATORS, Outcomes
from recsys.evaluation.offpolicy.join import Joined, Log
from recsys.evaluation.offpolicy.support import MAX_GAP, Gaps, Reach, reach
from recsys.evaluation.offpolicy.totals import Totals, agreement

Metric = Literal["ctr", "engagement", "revenue_per_mille"]
METRICS: tuple[Metric, ...] = ("ctr", "engagement", "revenue_per_mille")
WEIGHT_SE = 3.0


def reward_model(
    log: Log, arm: Joined, metric: Metric, engaged_share: float | None = None
) -> tuple[Floats, Floats | None, Floats | None] | None:
    """Reward r, its model for the shown ad q, and the model's value of the policy: float64[n] each.

    Engagement has no model of its own: the click model times the log's share of engaged clicks stands in
    (``engaged_share``, where ``log`` is a batch of a longer log).
    Returns None where the log or the policy cannot tell the metric.
    """
    if metric == "ctr":
        return log.click, arm.q, arm.q_policy
    if metric == "engagement":
        if log.engaged is None:
            return None
        share = engaged_share if engaged_share is not None else log.engaged.sum() / max(1.0, log.click.sum())
        if arm.q is None or arm.q_policy is None:
            return log.engaged, None, None
        return log.engaged, arm.q * float(share), arm.q_policy * float(share)
    if arm.price is None:
        return None
    if arm.q is None or arm.q_price_policy is None:
        return 1000 * log.click * arm.price, None, None
    return 1000 * log.click * arm.price, 1000 * arm.q * arm.price, 1000 * arm.q_price_policy


def outcomes_of(log: Log, arm: Joined, metric: Metric = "ctr", engaged_share: float | None = None) -> Outcomes | None:
    """What the estimators read; None where the log or the policy cannot tell the metric."""
    made = reward_model(log, arm, metric, engaged_share)
    if made is None:
        return None
    return Outcomes(arm.weight, *made, chosen=arm.chosen, cluster_weight=arm.cluster_weight)


def gaps_of(log: Log, arm: Joined, metric: Metric = "ctr", engaged_share: float | None = None) -> Gaps:
    """What the policy does beyond the log's support, in the metric's own unit; at most 1 is earned by a click or an
    engagement, and the ad's price (if it is clicked) by revenue."""
    worst, model = _gap_rows(log, arm, metric, engaged_share)
    return Gaps(float(arm.gap_mass.sum()), float(worst.sum()), float(model.sum()), log.slots)


def _gap_rows(log: Log, arm: Joined, metric: Metric, engaged_share: float | None = None) -> tuple[Floats, Floats]:
    """Per row: the most that ads beyond the support can earn, and what the outcome model gives them."""
    none = np.zeros(len(log))
    if metric == "revenue_per_mille":
        return (none if arm.gap_price is None else 1000 * arm.gap_price,
                none if arm.gap_q_price is None else 1000 * arm.gap_q_price)
    if arm.gap_q is None:
        return arm.gap_mass, none
    scale = 1.0
    if metric == "engagement" and log.engaged is not None:
        scale = engaged_share if engaged_share is not None else float(log.engaged.sum() / max(1.0, log.click.sum()))
    return arm.gap_mass, scale * arm.gap_q


def reach_of(log: Log, arm: Joined, metric: Metric = "ctr", estimator: str = "dr") -> Reach:
    """What :func:`pseudo_outcomes` of the same arguments leave open beyond the log's support, by row."""
    mass = float(arm.gap_mass.mean())
    made = reward_model(log, arm, metric) if mass > 0 else None
    if made is None:
        return Reach()
    worst, model = _gap_rows(log, arm, metric)
    return reach(estimator, mass, worst, model, 0.0 if made[2] is None else float(made[2].mean()), log.slots)


def constant_reach(arm: Joined, usual: float) -> Reach:
    """The same of the doubly robust estimate of a rate that every ad is taken to have (hides, conversions)."""
    mass = float(arm.gap_mass.mean())
    return reach("dr", mass, arm.gap_mass, usual * arm.gap_mass)


def pseudo_outcomes(
    log: Log, arm: Joined, metric: Metric = "ctr", estimator: str = "dr", level: float | None = None
) -> Floats | None:
    """Rows whose mean is the estimate, and whose deviations from it are the estimator's influence function.

    Any smooth function of means of such rows (a difference, a ratio of two arms) is intervalled from the rows
    alone. DR without an outcome model uses q = 0, which is IPS.

    Args:
        log: n rows.
        arm: the target policy on them.
        metric: what is estimated, per shown slot; ``revenue_per_mille`` in the policy's currency.
        estimator: a name of :data:`ESTIMATORS`; ``dm`` rows carry no sampling error of the outcome.
        level: the hyper-parameter of an estimator that has one; default: its least biased value.

    Returns:
        float64[n], or None where the metric (or the estimator's model) is not there.
    """
    outcomes = outcomes_of(log, arm, metric)
    if outcomes is None:
        return None
    return ESTIMATORS[estimator].rows(outcomes, level)


def headroom(log: Log, arm: Joined) -> dict[str, Floats]:
    """Metric -> float64[G]: what each unit's rows lack to what they would be, had every row earned the most seen.

    Sum over the unit's rows of w (largest r - r), of the metrics that the log and the policy can tell.
    """
    found = {metric: outcomes_of(log, arm, metric) for metric in METRICS}
    return {metric: np.bincount(log.clusters, o.weight * (o.reward.max() - o.reward)).astype(np.float64)
            for metric, o in found.items() if o is not None}


def diagnostics(log: Log, arm: Joined) -> dict[str, Any]:
    """What a reader needs to trust or distrust the arm's estimate; plain numbers."""
    outcomes = outcomes_of(log, arm)
    assert outcomes is not None  # every log has clicks
    names = ("dr", "ips", "snips", "dm")
    totals = Totals(names, len(log))
    totals.add(outcomes, log.clusters, arm.outside, gaps_of(log, arm))
    found = {name: totals.sums(name) for name in names}
    straight = {n: s for n, s in found.items() if s is not None and ESTIMATORS[n].consistent}
    return {**totals.facts(), "estimators": {n: None if s is None else s.estimate for n, s in found.items()},
            "estimator_se": {n: t_interval(s.ratio()).se for n, s in straight.items()},
            "agreement": agreement(straight)}


def unit_weight(facts: dict[str, Any], short: float = 0.0) -> bool:
    """Is the mean weight 1 within three clustered standard errors, or at most ``short`` less?"""
    mean = facts["mean_weight"]
    return bool(max(mean - 1.0, 1.0 - mean - short) <= WEIGHT_SE * facts["mean_weight_se"] + 1e-9)


def require_unit_weight(facts: dict[str, Any], name: str) -> None:
    """The mean weight must be 1 within three clustered standard errors.

    Under the true propensities E[w] = 1; it is less where the target puts mass on ads that the log could not
    show, and anything else where propensities are wrong. Less by as much as that mass is let pass up to MAX_GAP.

    Raises:
        Refused: it is not.
    """
    gap = facts["support_gaps"]
    if not unit_weight(facts, gap if gap <= MAX_GAP else 0.0):
        raise Refused(
            f"arm {name}: mean importance weight {facts['mean_weight']:.4f} +- {facts['mean_weight_se']:.4f} is more "
            f"than {WEIGHT_SE:.0f} standard errors from 1: propensities are wrong, or the policy shows ads that the "
            "log never could; check that each propensity is the probability of the ad that was shown, in its own slot, "
            "or evaluate a policy that shows only what the log could show"
        )


def require_not_direct(estimator: str) -> None:
    """Raise :class:`Refused` for the direct method: its interval would not contain the model's own error."""
    if estimator == "dm":
        raise Refused("an interval around the direct method alone is never published: it leaves out the model's error; "
                      "ask for dr, which corrects the model with the log")
