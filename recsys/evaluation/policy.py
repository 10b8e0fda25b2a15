"""From a ranker's scores to a POLICY table: who would be shown in which slot with which probability, at what price."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from recsys.auction import slot_marginals, slot_prices
from recsys.config import PolicyConfig
from recsys.contracts import POLICY
from recsys.errors import InputError
from recsys.evaluation.columns import encode, require_column

Floats = NDArray[np.float64]
SMALLEST = 1e-12  # a click rate or bid of zero still has a logarithm


@dataclass(frozen=True)
class _Layout:
    """Where the rows of an expanded table stand in blocks of requests with equally many slots.

    Attributes:
        request: int64[n] codes of the row's request, 0..R-1.
        rank: int64[n], how many slots of the request come before the row's slot.
        place: int64[n], position of the row's candidate in its (request, slot).
        slots: int64[R], slots of each request.
        width: the longest candidate list.
    """

    request: NDArray[np.int64]
    rank: NDArray[np.int64]
    place: NDArray[np.int64]
    slots: NDArray[np.int64]
    width: int


def _layout(table: pa.Table) -> _Layout:
    for name in ("request_id", "ad_id"):
        require_column(table, name, "candidates")
    request = encode(table.column("request_id"))[1]
    slot = _slot(table)
    ad = encode(table.column("ad_id"))[1]
    order = np.lexsort((np.arange(len(slot)), slot, request))
    r, s, a = request[order], slot[order], ad[order]
    new_request = np.append(True, r[1:] != r[:-1])
    new_slot = new_request | np.append(True, s[1:] != s[:-1])
    slot_start = np.maximum.accumulate(np.where(new_slot, np.arange(len(r)), 0))
    slot_index = np.cumsum(new_slot) - 1
    rank = slot_index - slot_index[np.flatnonzero(new_request)][np.cumsum(new_request) - 1]
    place = np.arange(len(r)) - slot_start
    # The ad at the same place of the request's first slot must be this one: one slate is drawn from one list.
    first_row = np.flatnonzero(new_request)[np.cumsum(new_request) - 1] + place
    lengths = np.bincount(slot_index)
    ragged = lengths[slot_index] != lengths[slot_index - rank]
    differs = ragged | (a[np.minimum(first_row, len(a) - 1)] != a)
    if differs.any():
        row = int(order[np.argmax(differs)])
        raise InputError("a request's slots list different candidates", file="candidates", column="ad_id", row=row,
                         got=table.column("ad_id")[row].as_py(), expected="the same ads in the same order")
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    slots = np.bincount(r[new_slot])
    return _Layout(request, rank[back], place[back], slots, int(place.max()) + 1)


def _slot(table: pa.Table) -> NDArray[np.int64]:
    if "slot" not in table.column_names:
        return np.zeros(table.num_rows, dtype=np.int64)
    require_column(table, "slot", "candidates")
    slot: NDArray[np.int64] = table.column("slot").to_numpy().astype(np.int64)
    return slot


def _probabilities(p_click: ArrayLike, rows: int) -> Floats:
    p = np.asarray(p_click, dtype=np.float64)
    if p.shape != (rows,):
        raise InputError("predictions do not match the rows", column="p_click", got=p.shape, expected=f"({rows},)")
    bad = ~((p >= 0) & (p <= 1))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError("value not allowed", column="p_click", row=row, got=float(p[row]),
                         expected="a probability in [0, 1]")
    return p


def ranker_policy(table: pa.Table, p_click: ArrayLike, policy: PolicyConfig, reserve: float = 0.0) -> pa.Table:
    """The softmax slate policy of a ranker, with exact slot marginals and the mechanism's prices.

    A candidate's weight is exp((log p + bid_exponent * log bid) / temperature), p its predicted click rate in the
    request's first slot; the slate is drawn by Plackett-Luce without replacement. Prices are those of an
    auction that ranks by p * bid^bid_exponent (:func:`recsys.auction.slot_prices`); what a slot brings is, for VCG,
    the candidate's own predicted click rates down the slots, made not to rise.

    Args:
        table: one row per (request, slot, candidate): request_id, slot (int; absent: one slot), ad_id, bid (absent:
            all bids are 1 and nothing is priced). Requests have 1 to 3 slots, all with the same candidate list.
        p_click: float[n] in [0, 1], the row's predicted click rate (of this candidate in this slot).
        policy: temperature, bid exponent and mechanism.
        reserve: lowest price per click.

    Returns:
        POLICY rows in the order of ``table``; ``expected_click`` is ``p_click``, ``bid`` the table's.

    Raises:
        InputError: slots of a request with different candidates, fewer candidates than slots, bad predictions.
    """
    p = _probabilities(p_click, table.num_rows)
    if not table.num_rows:
        return _table(table, p, p, None)
    layout = _layout(table)
    bid = None
    if "bid" in table.column_names:
        require_column(table, "bid", "candidates")
        bid = np.maximum(table.column("bid").to_numpy().astype(np.float64), 0.0)
    probability, price = np.zeros(len(p)), np.zeros(len(p))
    for count in np.unique(layout.slots):
        member = layout.slots[layout.request] == count
        cells = np.cumsum(layout.slots == count) - 1
        first = member & (layout.rank == 0)
        rate = _block(cells, layout, first, np.maximum(p, SMALLEST))
        offered = None if bid is None else _block(cells, layout, first, bid)
        weight = _weights(rate, offered, policy)
        at = (cells[layout.request[member]], layout.rank[member], layout.place[member])
        probability[member] = slot_marginals(weight, int(count))[at]
        if offered is not None:
            effect = np.zeros((len(offered), int(count), layout.width))
            effect[at] = p[member]
            with np.errstate(over="ignore", divide="ignore"):
                priced = slot_prices(offered, np.where(rate > 0, rate, SMALLEST), int(count),
                                     mechanism=policy.mechanism, bid_exponent=policy.bid_exponent, reserve=reserve,
                                     position=np.minimum.accumulate(effect, axis=1))
            price[member] = priced[at]
    return _table(table, probability, p, None if bid is None else price, bid)


def _block(cells: NDArray[np.int64], layout: _Layout, first: NDArray[np.bool_], values: Floats) -> Floats:
    rows = np.flatnonzero(first)
    block = np.zeros((int(cells[layout.request[rows]].max()) + 1, layout.width))
    block[cells[layout.request[rows]], layout.place[rows]] = values[rows]
    return block


def _weights(rate: Floats, bid: Floats | None, policy: PolicyConfig) -> Floats:
    with np.errstate(divide="ignore"):
        score = np.log(rate)  # -inf marks padding
        if bid is not None and policy.bid_exponent > 0:
            score = score + policy.bid_exponent * np.log(np.maximum(bid, SMALLEST))
    score = score / policy.temperature
    weights: Floats = np.exp(score - score.max(axis=1, keepdims=True))
    # An underflown weight would count as padding; a real candidate always has a chance.
    return np.where(rate > 0, np.maximum(weights, 1e-300), 0.0)


def uniform_policy(table: pa.Table, p_click: ArrayLike | None = None) -> pa.Table:
    """Every candidate equally likely in every slot; not priced. Same input as :func:`ranker_policy`."""
    layout = _layout(table)
    key = layout.request * int(layout.slots.max()) + layout.rank
    probability = 1.0 / np.bincount(key)[key]
    return _table(table, probability, None if p_click is None else _probabilities(p_click, table.num_rows), None)


def _table(table: pa.Table, probability: Floats, p_click: Floats | None, price: Floats | None,
           bid: Floats | None = None) -> pa.Table:
    columns = {
        "request_id": table.column("request_id").cast(pa.string()), "slot": pa.array(_slot(table), pa.int32()),
        "ad_id": table.column("ad_id").cast(pa.string()), "probability": pa.array(np.minimum(probability, 1.0)),
    }
    if p_click is not None:
        columns["expected_click"] = pa.array(p_click)
    if price is not None:
        columns["price_per_click"] = pa.array(price)
    if bid is not None:
        columns["bid"] = pa.array(bid)
    return pa.table(columns, schema=POLICY.schema(list(columns)))
