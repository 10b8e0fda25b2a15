"""Metrics of the auction's two sides and of the user, beside the goal: rows for the lift report.

Each is float64[n] rows whose mean is the arm's value, like :func:`recsys.evaluation.offpolicy.pseudo_outcomes`:

* ``welfare_per_mille``: value of the clicks to the advertisers, a click taken to be worth the advertiser's bid. That
  is so under truthful prices (VCG); bids under GSP and first price tend to stand below the value, so that welfare
  and surplus are then understated, for every arm alike.
* ``surplus_per_mille``: what advertisers keep, welfare minus revenue.
* ``cost_per_click``: revenue over clicks, linearised: v + (revenue - v * click) / mean click. The rows' mean is the
  ratio v, and their deviations are its influence function, so that the delta method on them is the delta method on
  the ratio. Other intervals than Student's t are made of revenue and clicks themselves
  (:meth:`recsys.evaluation.comparison.Comparison.cost`).
* ``hide``: ads hidden by the user. No arm predicts hides, so the outcome model is the log's own mean: the doubly
  robust estimate with a constant model, unbiased because weights average to 1. ``conversion`` alike.
* ``cost_per_action``: revenue over conversions, as ``cost_per_click``.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy import (
    METRICS,
    Estimator,
    Joined,
    Log,
    effective,
    join_policy,
    outcomes_of,
    pseudo_outcomes,
)


def offpolicy_events(log: Log, arm: Joined) -> dict[str, float]:
    """Metric -> effective events (sum w |r|)^2 / sum (w r)^2, over rows or units, whichever are fewer."""
    found = {metric: outcomes_of(log, arm, metric) for metric in METRICS}
    return {metric: effective(arm.weight * np.abs(o.reward), log.clusters)
            for metric, o in found.items() if o is not None}


def economics_rows(table: pa.Table, log: Log, policy: pa.Table, arm: Joined, made: dict[str, Floats | None],
                   estimator: Estimator = "dr") -> tuple[dict[str, Floats], dict[str, float]]:
    """Rows of the metrics of this module that the log and the policy can tell, and each one's effective events.

    Args:
        table: the log; ``hide`` is read where it is there without nulls.
        log: the log as it was read.
        policy: POLICY of the arm; ``bid`` is read where it is there.
        arm: the policy joined to the log.
        made: rows of ``ctr`` and, where the policy is priced, ``revenue_per_mille``.
        estimator: as for the other metrics.
    """
    out: dict[str, Floats] = {}
    events: dict[str, float] = {}
    known = offpolicy_events(log, arm)
    revenue, clicks = made.get("revenue_per_mille"), made.get("ctr")
    if revenue is not None and "bid" in policy.column_names:
        # Welfare is the revenue of a policy that charges every click its bid.
        at = policy.column_names.index("price_per_click")
        worth = join_policy(log, policy.set_column(at, "price_per_click", policy.column("bid")), arm.name)
        welfare = pseudo_outcomes(log, worth, "revenue_per_mille", estimator)
        if welfare is not None:
            out |= {"welfare_per_mille": welfare, "surplus_per_mille": welfare - revenue}
            assert worth.price is not None
            assert arm.price is not None
            events["welfare_per_mille"] = effective(arm.weight * log.click * worth.price, log.clusters)
            kept = arm.weight * log.click * np.abs(worth.price - arm.price)
            # under first prices nothing is kept
            events["surplus_per_mille"] = effective(kept, log.clusters) or events["welfare_per_mille"]
    for name in ("hide", "conversion"):
        if name in table.column_names and not table.column(name).null_count:
            seen = table.column(name).to_numpy().astype(np.float64)
            usual = 0.0 if estimator == "ips" else float(seen.mean())
            out[name] = usual + arm.weight * (seen - usual)
            events[name] = effective(arm.weight * seen, log.clusters)
    for name, bought, of in (("cost_per_click", clicks, "ctr"), ("cost_per_action", out.get("conversion"),
                                                               "conversion")):
        if revenue is not None and bought is not None and float(bought.mean()) > 0:
            out[name] = _cost_per(revenue, bought)
            events[name] = min(known["revenue_per_mille"], (known | events)[of])
    return out, events


def _cost_per(revenue_per_mille: Floats, bought: Floats) -> Floats:
    """Rows of revenue over what was bought, linearised."""
    rate, paid = float(bought.mean()), revenue_per_mille / 1000
    cost = float(paid.mean()) / rate
    made: Floats = cost + (paid - cost * bought) / rate
    return made
