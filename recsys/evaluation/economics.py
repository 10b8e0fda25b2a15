"""Metrics of the auction's two sides and of the user, beside the goal: rows for the lift report.

Each is float64[n] rows whose mean is the arm's value, like :func:`recsys.evaluation.offpolicy.pseudo_outcomes`:

* ``welfare_per_mille``: value of the clicks to the advertisers, a click taken to be worth the advertiser's bid. That
  is so under truthful prices (VCG); bids under GSP and first price tend to stand below the value, so that welfare
  and surplus are then understated, for every arm alike.
* ``surplus_per_mille``: what advertisers keep, welfare minus revenue.
* ``cost_per_click``: revenue over clicks, linearised: v + (revenue - v * click) / mean click. The rows' mean is the
  ratio v, and their deviations are its influence function, so that the delta method on them is the delta method on
  the ratio.
* ``hide``: ads hidden by the user. No arm predicts hides, so the outcome model is the log's own mean: the doubly
  robust estimate with a constant model, unbiased because weights average to 1.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy import Estimator, Joined, Log, join_policy, pseudo_outcomes


def economics_rows(table: pa.Table, log: Log, policy: pa.Table, arm: Joined, made: dict[str, Floats | None],
                   estimator: Estimator = "dr") -> dict[str, Floats]:
    """Rows of the metrics of this module that the log and the policy can tell.

    Args:
        table: the log; ``hide`` is read where it is there without nulls.
        log: the log as it was read.
        policy: POLICY of the arm; ``bid`` is read where it is there.
        arm: the policy joined to the log.
        made: rows of ``ctr`` and, where the policy is priced, ``revenue_per_mille``.
        estimator: as for the other metrics.
    """
    out: dict[str, Floats] = {}
    revenue, clicks = made.get("revenue_per_mille"), made.get("ctr")
    if revenue is not None and "bid" in policy.column_names:
        # Welfare is the revenue of a policy that charges every click its bid.
        at = policy.column_names.index("price_per_click")
        worth = join_policy(log, policy.set_column(at, "price_per_click", policy.column("bid")), arm.name)
        welfare = pseudo_outcomes(log, worth, "revenue_per_mille", estimator)
        if welfare is not None:
            out |= {"welfare_per_mille": welfare, "surplus_per_mille": welfare - revenue}
    if revenue is not None and clicks is not None and float(clicks.mean()) > 0:
        rate, paid = float(clicks.mean()), revenue / 1000
        cost = float(paid.mean()) / rate
        out["cost_per_click"] = cost + (paid - cost * clicks) / rate
    if "hide" in table.column_names and not table.column("hide").null_count:
        hide = table.column("hide").to_numpy().astype(np.float64)
        usual = 0.0 if estimator == "ips" else float(hide.mean())
        out["hide"] = usual + arm.weight * (hide - usual)
    return out
