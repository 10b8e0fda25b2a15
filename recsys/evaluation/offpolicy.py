"""Slot-level off-policy evaluation of a target policy on a log with logged propensities.

A row of the log is one shown slot: the ad that the logging policy showed there with the (marginal)
probability ``propensity``, and what happened. The target policy gives a probability to every candidate of the
same (request, slot). With w = target probability of the shown ad / propensity:

* IPS   mean(w r)                                Horvitz, Thompson (1952)
* SNIPS sum(w r) / sum(w)                        Swaminathan, Joachims (2015)
* DR    mean(sum_a pi(a) q(a) + w (r - q))       Dudik, Langford, Li (2011)
* DM    mean(sum_a pi(a) q(a))                   a diagnostic only: its error is the model's, which no interval shows

What a slot earns is taken to depend on the ad in that slot alone, not on its neighbours (the item-position
assumption; Li et al. 2018, "Offline evaluation of ranking policies with click models").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.contracts import IMPRESSIONS, POLICY, validate
from recsys.errors import InputError, Refused
from recsys.evaluation.columns import encode, require_column
from recsys.evaluation.health import require_logged_propensity
from recsys.evaluation.intervals import Floats, cluster_sums, t_interval

Estimator = Literal["dr", "ips", "snips", "dm"]
Metric = Literal["ctr", "engagement", "revenue_per_mille"]
METRICS: tuple[Metric, ...] = ("ctr", "engagement", "revenue_per_mille")
ENGAGED_MS = 10_000.0  # a click that is followed by at least this dwell time counts as engagement
CLIPS = (2.0, 5.0, 10.0, 20.0, 50.0)
SUM_TOLERANCE = 1e-6
WEIGHT_SE = 3.0


@dataclass(frozen=True)
class Log:
    """The columns of the log that evaluation reads, checked once and shared by all arms; n rows.

    Attributes:
        decision: int64[n], position of the row's (request, slot) in ``decisions``.
        decisions: int64[D], sorted codes request * slots + slot.
        requests: the log's distinct request ids.
        ads: the log's distinct shown ads.
        ad: int64[n], position of the shown ad in ``ads``.
        slots: one more than the largest slot number.
        clusters: int64[n], code of the independent unit.
        propensity: float64[n] in (0, 1].
        click: float64[n], 0 or 1.
        engaged: float64[n], a click with at least the threshold of dwell time; None without ``dwell_ms``.
    """

    decision: NDArray[np.int64]
    decisions: NDArray[np.int64]
    requests: pa.Array
    ads: pa.Array
    ad: NDArray[np.int64]
    slots: int
    clusters: NDArray[np.int64]
    propensity: Floats
    click: Floats
    engaged: Floats | None

    def __len__(self) -> int:
        return len(self.click)


def read_log(table: pa.Table, unit: str = "user_id", engaged_ms: float = ENGAGED_MS) -> Log:
    """Check an IMPRESSIONS table and take from it what off-policy evaluation needs.

    Args:
        table: IMPRESSIONS with propensity, click and ``unit``; without ``slot`` all rows are slot 0.
        unit: column of the independent unit; rows of one unit may depend on each other.
        engaged_ms: dwell time from which a click counts as engagement, milliseconds.

    Raises:
        InputError: a column is missing or has nulls, or there are no rows.
        Refused: propensities are unknown, or look reconstructed from the log.
    """
    if table.num_rows == 0:
        raise InputError("no rows", file="log", got="0 rows", expected="at least one impression")
    table = validate(table, IMPRESSIONS, "log")
    for name in dict.fromkeys(("click", unit)):
        require_column(table, name, "log")
    require_logged_propensity(table)
    requests, request = encode(table.column("request_id"))
    ads, ad = encode(table.column("ad_id"))
    if "slot" in table.column_names:
        require_column(table, "slot", "log")
        slot = table.column("slot").to_numpy().astype(np.int64)
    else:
        slot = np.zeros(table.num_rows, dtype=np.int64)
    slots = int(slot.max()) + 1
    decisions, decision = np.unique(request * slots + slot, return_inverse=True)
    click = table.column("click").to_numpy().astype(np.float64)
    engaged = None
    if "dwell_ms" in table.column_names:
        engaged = click * (pc.fill_null(table.column("dwell_ms"), 0.0).to_numpy() >= engaged_ms)
    return Log(decision.astype(np.int64), decisions, requests, ads, ad, slots, encode(table.column(unit))[1],
               table.column("propensity").to_numpy(), click, engaged)


@dataclass(frozen=True)
class Joined:
    """A target policy seen from the log's rows: float64[n] arrays.

    Attributes:
        name: the arm.
        weight: target probability of the shown ad / propensity.
        q: expected click of the shown ad; None where the policy has no outcome model.
        q_policy: sum over candidates of probability * expected click; None without an outcome model.
        price: the target policy's price per click of the shown ad; None where not priced.
        q_price_policy: sum over candidates of probability * expected click * price; None without both.
        outside: rows whose shown ad the policy does not list (probability 0).
    """

    name: str
    weight: Floats
    q: Floats | None
    q_policy: Floats | None
    price: Floats | None
    q_price_policy: Floats | None
    outside: int


def join_policy(log: Log, policy: pa.Table, name: str = "policy") -> Joined:
    """Look up every row of the log in a POLICY table.

    Requests of the policy that the log does not have are left aside. Memory: a few float64 per policy row.

    Raises:
        InputError: the policy breaks its contract, lists a candidate twice, does not cover a (request, slot) of
            the log, or its probabilities there do not sum to 1.
    """
    policy = validate(policy, POLICY, f"policy {name}")
    request = pc.index_in(policy.column("request_id"), value_set=log.requests).to_numpy()
    slot = policy.column("slot").to_numpy().astype(np.int64)
    code = np.where(np.isnan(request) | (slot >= log.slots), -1, np.nan_to_num(request) * log.slots + slot)
    at = np.minimum(np.searchsorted(log.decisions, code), len(log.decisions) - 1)
    rows = np.flatnonzero(log.decisions[at] == code)
    decision = at[rows]
    probability = policy.column("probability").to_numpy()[rows]
    _require_whole(log, decision, probability, name)
    ad = pc.fill_null(pc.index_in(policy.column("ad_id"), value_set=log.ads), -1).to_numpy()[rows].astype(np.int64)
    found, source = _find(decision, ad, log, rows, policy, name)

    def of_shown(values: Floats) -> Floats:
        return np.where(found, values[source], 0.0)

    def of_policy(values: Floats) -> Floats:
        total: Floats = np.bincount(decision, probability * values, len(log.decisions)).astype(np.float64)
        return total[log.decision]

    q, price = (_optional(policy, column, rows, name) for column in ("expected_click", "price_per_click"))
    return Joined(
        name, of_shown(probability) / log.propensity,
        None if q is None else of_shown(q), None if q is None else of_policy(q),
        None if price is None else of_shown(price), None if q is None or price is None else of_policy(q * price),
        int((~found).sum()),
    )


def _require_whole(log: Log, decision: NDArray[np.int64], probability: Floats, name: str) -> None:
    total = np.bincount(decision, probability, len(log.decisions))
    wrong = np.abs(total - 1.0) > SUM_TOLERANCE
    if not wrong.any():
        return
    first = int(np.argmax(wrong))
    request, slot = divmod(int(log.decisions[first]), log.slots)
    listed = bool((decision == first).any())
    raise InputError(
        f"request {log.requests[request].as_py()!r} slot {slot}: "
        + ("probabilities do not sum to 1" if listed else "no candidate of this (request, slot)"),
        file=f"policy {name}", column="probability", got=float(total[first]) if listed else None,
        expected="every (request, slot) of the log, with probabilities that sum to 1",
    )


def _find(
    decision: NDArray[np.int64], ad: NDArray[np.int64], log: Log, rows: NDArray[np.int64], policy: pa.Table, name: str
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Per log row: is its shown ad listed, and at which of ``rows`` (any, where it is not)."""
    width = len(log.ads) + 1
    key = decision * width + ad + 1  # ad 0 of the key: never shown anywhere, so never looked for
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    twice = (ordered[1:] == ordered[:-1]) & (ordered[1:] % width != 0)
    if twice.any():
        row = int(rows[order[1:][twice][0]])
        raise InputError("candidate listed twice", file=f"policy {name}", column="ad_id", row=row,
                         got=policy.column("ad_id")[row].as_py(), expected="one row per (request, slot, ad)")
    wanted = log.decision * width + log.ad + 1
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return ordered[place] == wanted, order[place]


def _optional(policy: pa.Table, column: str, rows: NDArray[np.int64], name: str) -> Floats | None:
    if column not in policy.column_names or policy.column(column).null_count == policy.num_rows:
        return None
    require_column(policy, column, f"policy {name}")
    values: Floats = policy.column(column).to_numpy()[rows]
    return values


def reward_model(log: Log, arm: Joined, metric: Metric) -> tuple[Floats, Floats | None, Floats | None] | None:
    """Reward r, its model for the shown ad q, and the model's value of the policy: float64[n] each.

    Engagement has no model of its own: the click model times the log's share of engaged clicks stands in.
    Returns None where the log or the policy cannot tell the metric.
    """
    if metric == "ctr":
        return log.click, arm.q, arm.q_policy
    if metric == "engagement":
        if log.engaged is None:
            return None
        share = float(log.engaged.sum() / max(1.0, log.click.sum()))
        if arm.q is None or arm.q_policy is None:
            return log.engaged, None, None
        return log.engaged, arm.q * share, arm.q_policy * share
    if arm.price is None:
        return None
    if arm.q is None or arm.q_price_policy is None:
        return 1000 * log.click * arm.price, None, None
    return 1000 * log.click * arm.price, 1000 * arm.q * arm.price, 1000 * arm.q_price_policy


def pseudo_outcomes(
    log: Log, arm: Joined, metric: Metric = "ctr", estimator: Estimator = "dr", clip: float | None = None
) -> Floats | None:
    """Rows whose mean is the estimate, and whose deviations from it are the estimator's influence function.

    Any smooth function of means of such rows (a difference, a ratio of two arms) is intervalled from the rows
    alone. DR without an outcome model uses q = 0, which is IPS.

    Args:
        log: n rows.
        arm: the target policy on them.
        metric: what is estimated, per shown slot; ``revenue_per_mille`` in the policy's currency.
        estimator: ``dm`` rows carry no sampling error of the outcome: point diagnostics only.
        clip: weights above it are cut to it (a diagnostic: biased downward).

    Returns:
        float64[n], or None where the metric (or the direct method's model) is not there.
    """
    made = reward_model(log, arm, metric)
    if made is None:
        return None
    reward, q, q_policy = made
    weight = arm.weight if clip is None else np.minimum(arm.weight, clip)
    if estimator == "dm":
        return q_policy
    if estimator == "ips":
        return weight * reward
    if estimator == "snips":
        mean = float(weight.mean())
        value = float((weight * reward).mean()) / mean if mean > 0 else 0.0
        return value + weight * (reward - value) / mean if mean > 0 else np.zeros(len(log))
    return weight * reward if q is None or q_policy is None else q_policy + weight * (reward - q)


def effective(x: Floats) -> float:
    """Kish's effective count of non-negative numbers: (sum x)^2 / sum x^2."""
    squares = float(x @ x)
    return float(x.sum()) ** 2 / squares if squares > 0 else 0.0


def diagnostics(log: Log, arm: Joined) -> dict[str, Any]:
    """What a reader needs to trust or distrust the arm's estimate; plain numbers."""
    weight = arm.weight
    mean = t_interval(cluster_sums(weight, 1.0, log.clusters))
    top = np.sort(weight)[-max(1, round(0.01 * len(weight))):]
    names: tuple[Estimator, ...] = ("dr", "ips", "snips", "dm")
    agreement = {name: pseudo_outcomes(log, arm, "ctr", name) for name in names}
    clipped = {clip: pseudo_outcomes(log, arm, "ctr", "dr", clip) for clip in CLIPS}
    return {
        "ess": effective(weight), "ess_share": effective(weight) / len(log),
        "effective_clicks": effective(weight * log.click), "clicks": int(log.click.sum()),
        "max_weight": float(weight.max()), "mean_weight": mean.estimate, "mean_weight_se": mean.se,
        "top_1_percent_weight_share": float(top.sum() / weight.sum()) if weight.sum() > 0 else 0.0,
        "shown_outside_policy": arm.outside,
        "clip_sensitivity": {f"{clip:g}": float(x.mean()) for clip, x in clipped.items() if x is not None},
        "estimators": {name: None if x is None else float(x.mean()) for name, x in agreement.items()},
    }


def require_unit_weight(facts: dict[str, Any], name: str) -> None:
    """The mean weight must be 1 within three clustered standard errors.

    Under the true propensities E[w] = 1; it is less where the target puts mass on ads that the log could not
    show, and anything else where propensities are wrong.

    Raises:
        Refused: it is not.
    """
    off, se = abs(facts["mean_weight"] - 1.0), facts["mean_weight_se"]
    if off > WEIGHT_SE * se + 1e-9:
        raise Refused(
            f"arm {name}: mean importance weight {facts['mean_weight']:.4f} +- {se:.4f} is more than {WEIGHT_SE:.0f} "
            "standard errors from 1: propensities are wrong, or the policy shows ads that the log never could"
        )


def require_not_direct(estimator: Estimator) -> None:
    """Raise :class:`Refused` for the direct method: its interval would not contain the model's own error."""
    if estimator == "dm":
        raise Refused("an interval around the direct method alone is never published: it leaves out the model's error")
