"""A log with logged propensities, and a target policy seen from its rows.

A row of the log is one shown slot: the ad that the logging policy showed there with the (marginal) probability
``propensity``, and what happened. The target policy gives a probability to every candidate of the same
(request, slot). Both may be whole tables or one batch of a stream (:mod:`recsys.evaluation.offpolicy.stream`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.contracts import IMPRESSIONS, POLICY, validate
from recsys.errors import InputError
from recsys.evaluation.columns import encode, require_column
from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy.fitted import context, require_not_fitted
from recsys.evaluation.offpolicy.propensity import Cells, require_logged

ENGAGED_MS = 10_000.0  # a click that is followed by at least this dwell time counts as engagement
SUM_TOLERANCE = 1e-6


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
        Refused: propensities are unknown, rounded, wrong, or look reconstructed from the log.
    """
    if table.num_rows == 0:
        raise InputError("no rows", file="log", got="0 rows", expected="at least one impression")
    table = validate(table, IMPRESSIONS, "log")
    for name in dict.fromkeys(("click", unit)):
        require_column(table, name, "log")
    require_logged(table)
    cells = Cells()
    cells.add(table)
    cells.require_not_reconstructed()
    cells.require_exact()
    require_not_fitted(table, context(table.schema))
    return log_of(table, encode(table.column(unit))[1], engaged_ms)


def log_of(table: pa.Table, clusters: NDArray[np.int64], engaged_ms: float = ENGAGED_MS) -> Log:
    """The columns of a checked table (or batch); ``clusters`` are the codes of its rows' units."""
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
    return Log(decision.astype(np.int64), decisions, requests, ads, ad, slots, clusters,
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
        chosen: target probability of the shown ad.
        gap_mass: target probability, in the row's (request, slot), of ads that the log never shows (see ``known``
            of :func:`join_policy`) or whose logging probability is 0.
        gap_q: sum over those ads of probability * expected click; None where there is no such ad, or no model.
        gap_price: the same of probability * price; None where there is none, or no price.
        gap_q_price: the same of probability * expected click * price.
        cluster_weight: weight of the shown ad's cluster, where the policy lists ``cluster`` and
            ``logging_probability``.
    """

    name: str
    weight: Floats
    q: Floats | None
    q_policy: Floats | None
    price: Floats | None
    q_price_policy: Floats | None
    outside: int
    chosen: Floats
    gap_mass: Floats
    cluster_weight: Floats | None = None
    gap_q: Floats | None = None
    gap_price: Floats | None = None
    gap_q_price: Floats | None = None


def join_policy(log: Log, policy: pa.Table, name: str = "policy", known: pa.Array | None = None) -> Joined:
    """Look up every row of the log in a POLICY table.

    Requests of the policy that the log does not have are left aside. Memory: a few float64 per policy row.

    Args:
        log: n rows.
        policy: POLICY; columns ``logging_probability`` (of every candidate) and ``cluster`` (any type) are read for
            the weights of clusters.
        name: of the policy, for messages.
        known: ads that the whole log shows anywhere, where ``log`` is a batch of it; default: those of ``log``.

    Raises:
        InputError: the policy breaks its contract, lists a candidate twice, does not cover a (request, slot) of
            the log, or its probabilities there do not sum to 1.
    """
    policy = validate(policy, POLICY, f"policy {name}")
    request = _positions(policy.column("request_id"), log.requests)
    slot = policy.column("slot").to_numpy().astype(np.int64)
    code = np.where((request < 0) | (slot >= log.slots), -1, request * log.slots + slot)
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
    gap = ad < 0 if known is None else ~pc.is_in(policy.column("ad_id"), value_set=known).to_numpy()[rows]
    logging = _optional(policy, "logging_probability", rows, name)
    gap = gap if logging is None else gap | (logging <= 0)
    chosen = of_shown(probability)
    beyond = gap.astype(np.float64) if gap.any() else None

    def of_gaps(*factors: Floats | None) -> Floats | None:
        return None if beyond is None or any(f is None for f in factors) else of_policy(
            beyond * np.prod([f for f in factors if f is not None], axis=0))

    return Joined(
        name, chosen / log.propensity,
        None if q is None else of_shown(q), None if q is None else of_policy(q),
        None if price is None else of_shown(price), None if q is None or price is None else of_policy(q * price),
        int((~found).sum()), chosen, np.zeros(len(log)) if beyond is None else of_policy(beyond),
        None if logging is None else _cluster_weight(log, policy, rows, decision, (probability, logging), found,
                                                     source, name),
        of_gaps(q), of_gaps(price), of_gaps(q, price),
    )


def _positions(column: pa.ChunkedArray, values: pa.Array) -> NDArray[np.int64]:
    """Position of each value among ``values``, -1 where it is not there; equal neighbours are looked up once."""
    if len(column) > 1:
        new = np.append(True, pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy())
        heads = np.flatnonzero(new)
        if 2 * len(heads) < len(column):
            return _positions(column.take(pa.array(heads)), values)[np.cumsum(new) - 1]
    found: NDArray[np.int64] = pc.fill_null(pc.index_in(column, value_set=values), -1).to_numpy().astype(np.int64)
    return found


def _cluster_weight(
    log: Log, policy: pa.Table, rows: NDArray[np.int64], decision: NDArray[np.int64], both: tuple[Floats, Floats],
    found: NDArray[np.bool_], source: NDArray[np.int64], name: str,
) -> Floats | None:
    """Target over logging probability of the shown ad's cluster, in its (request, slot); 0 where it is not listed."""
    total = np.bincount(decision, both[1], len(log.decisions))
    if (wrong := np.abs(total - 1.0) > SUM_TOLERANCE).any():
        raise InputError("probabilities do not sum to 1", file=f"policy {name}", column="logging_probability",
                         got=float(total[np.argmax(wrong)]), expected="1 in every (request, slot) of the log")
    if "cluster" not in policy.column_names:
        return None
    require_column(policy, "cluster", f"policy {name}")
    cluster = encode(policy.column("cluster"))[1][rows]
    group = np.unique(decision * (int(cluster.max()) + 1) + cluster, return_inverse=True)[1]
    target, logged = (np.bincount(group, x)[group] for x in both)
    return np.where(found & (logged[source] > 0), target[source] / np.maximum(logged[source], 1e-300), 0.0)


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
    values: Floats = policy.column(column).cast(pa.float64()).to_numpy()[rows]
    return values
