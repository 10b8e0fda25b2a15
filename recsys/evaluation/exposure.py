"""What a policy does to the shelf, beside the goal: how many ads it shows, and whether slots are filled.

Rows as in :mod:`recsys.evaluation.economics`. Both are functions of the policy alone, known for every request of the
log, so no importance weight enters them; what varies is which requests and users the log happens to hold.

* ``diversity``: effective number of ads shown, D = 1 / sum_a s_a^2 with s_a the share of slots that ad a gets (Hill's
  number of order 2, the inverse of Simpson's and Herfindahl's index; Hill (1973), Diversity and evenness. Ecology
  54(2)), linearised: D - 2 D^2 (m(x) - 1 / D), m(x) the mean of s_a over the ads that the row's policy shows.
* ``fill``: share of slots whose ad bids at least the reserve; a seller with that reserve leaves the others empty.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy import Log, join_policy


def exposure_rows(log: Log, policy: pa.Table, reserve: float) -> tuple[dict[str, Floats], dict[str, float]]:
    """Rows of ``diversity`` and, where the policy has bids, ``fill``; and each one's events: the log's rows.

    Args:
        log: n rows.
        policy: POLICY of an arm over every (request, slot) of the log.
        reserve: lowest price per click, in the currency of the bids.
    """
    ads = pc.unique(policy.column("ad_id"))
    code = pc.index_in(policy.column("ad_id"), value_set=ads).to_numpy()
    shares = _shares(log, policy, code, len(ads))
    met = _mean_of(log, policy, shares[code])
    many = 1.0 / float(met.mean())
    out = {"diversity": many - many**2 * (met - 1 / many) * 2}
    if "bid" in policy.column_names and not policy.column("bid").null_count:
        out["fill"] = _mean_of(log, policy, (policy.column("bid").to_numpy() >= reserve).astype(np.float64))
    return out, dict.fromkeys(out, float(len(log)))


def _mean_of(log: Log, policy: pa.Table, values: Floats) -> Floats:
    """Per row of the log, the policy's mean of a value in [0, 1] of its candidates: joined as if an expected click."""
    plain = policy.select(["request_id", "slot", "ad_id", "probability"])
    q = join_policy(log, plain.append_column("expected_click", pa.array(values))).q_policy
    assert q is not None
    return q


def _shares(log: Log, policy: pa.Table, code: np.ndarray, ads: int) -> Floats:
    """Share of the log's slots that each ad gets."""
    request = pc.fill_null(pc.index_in(policy.column("request_id"), value_set=log.requests), -1).to_numpy()
    slot = policy.column("slot").to_numpy().astype(np.int64)
    key = np.where((request < 0) | (slot >= log.slots), -1, request.astype(np.int64) * log.slots + slot)
    at = np.minimum(np.searchsorted(log.decisions, key), len(log.decisions) - 1)
    times = np.where(log.decisions[at] == key, np.bincount(log.decision, minlength=len(log.decisions))[at], 0)
    shares: Floats = np.bincount(code, times * policy.column("probability").to_numpy(), ads) / len(log)
    return shares
