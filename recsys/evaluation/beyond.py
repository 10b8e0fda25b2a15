"""What every metric of the lift report leaves open where an arm shows ads that the log never did.

Formulas of one estimator: :mod:`recsys.evaluation.offpolicy.support`. Here they are put together for the metrics of
:mod:`recsys.evaluation.economics` and :mod:`recsys.evaluation.exposure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy import METRICS, Joined, Log, Reach, constant_reach, join_policy, reach_of


def reaches(table: pa.Table, log: Log, policy: pa.Table, arm: Joined, rows: Mapping[str, Floats], estimator: str,
            exact: Iterable[str]) -> dict[str, Reach]:
    """Metric -> what its rows' mean leaves open; metrics that are not in it cannot be bounded.

    Args:
        table: the log; ``hide`` and ``conversion`` are read.
        log: the log as it was read; n rows.
        policy: POLICY of the arm; ``bid`` is read.
        arm: the policy joined to the log.
        rows: metric -> float64[n].
        estimator: as for the rows.
        exact: metrics that are functions of the policy alone.
    """
    if not arm.gap_mass.any():
        return dict.fromkeys(rows, Reach())
    found = {m: reach_of(log, arm, m, estimator) for m in METRICS if m in rows}
    for name in ("hide", "conversion"):
        if name in rows:
            usual = 0.0 if estimator == "ips" else float(table.column(name).to_numpy().mean())
            found[name] = constant_reach(arm, usual)
    if "welfare_per_mille" in rows:
        at = policy.column_names.index("price_per_click")
        worth = join_policy(log, policy.set_column(at, "price_per_click", policy.column("bid")), arm.name)
        welfare, revenue = reach_of(log, worth, "revenue_per_mille", estimator), found["revenue_per_mille"]
        found |= {"welfare_per_mille": welfare, "surplus_per_mille": Reach(
            welfare.scale, welfare.below - revenue.above, welfare.above - revenue.below)}
    for name, of in (("cost_per_click", "ctr"), ("cost_per_action", "conversion")):
        if name in rows:
            made = _cost_per(rows["revenue_per_mille"], found["revenue_per_mille"], rows[of], found[of])
            found |= {} if made is None else {name: made}
    return found | dict.fromkeys(exact, Reach())


def _cost_per(revenue: Floats, paid: Reach, bought: Floats, count: Reach) -> Reach | None:
    """Of revenue over what was bought; None where nothing may have been bought."""
    least, most = (float(np.mean(x)) / 1000 for x in (paid.least(revenue), paid.most(revenue)))
    fewest, many = (float(np.mean(x)) for x in (count.least(bought), count.most(bought)))
    if not fewest > 0:
        return None
    now = float(revenue.mean()) / 1000 / float(bought.mean())
    return Reach(1.0, min(0.0, max(0.0, least) / many - now), max(0.0, most / fewest - now))
