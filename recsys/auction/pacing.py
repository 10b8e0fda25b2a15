"""Budgets over a stream of auctions: nobody spends more than its budget, and pacing spreads what it spends.

Requests are auctioned in blocks, vectorised inside a block. An advertiser that cannot pay an auction's expected
charge leaves the stream at that very auction, and the rest of the block is held again without it: each advertiser
leaves once, so the work is that of the auctions plus one block per advertiser that runs dry.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.auction.clearing import Cleared, run_auctions
from recsys.auction.prices import Floats, Mechanism
from recsys.errors import InputError


@dataclass(frozen=True)
class Campaigns:
    """What became of A advertisers' budgets over B blocks of the stream.

    Attributes:
        outcome: the auctions in the order of the requests.
        spend: float64[B, A], expected spend per block and advertiser.
        multiplier: float64[B, A], share of its bid with which an advertiser entered the block.
        left_at: int64[A], the request at which the advertiser's budget could not pay, -1 where it always could.
    """

    outcome: Cleared
    spend: Floats
    multiplier: Floats
    left_at: NDArray[np.int64]


def run_paced(
    bids: ArrayLike, pctr: ArrayLike, position: ArrayLike, advertiser: ArrayLike, budgets: ArrayLike, *,
    pacing: Literal["none", "multiplicative"] = "multiplicative", blocks: int = 50, step: float = 0.5,
    mechanism: Mechanism = "gsp", bid_exponent: float = 1.0, reserve: float = 0.0,
) -> Campaigns:
    """Hold a stream of auctions in order, under budgets.

    Spend is expected spend: price per click times expected clicks. With ``multiplicative`` pacing an advertiser bids
    a share m of its value, 0 < m <= 1, and after each block m is multiplied by exp(step * (1 - spent / target)), where
    the target is what was left of its budget divided evenly over the blocks that were left. Adaptive pacing of this
    kind converges to the best fixed multiplier where requests are drawn from one distribution (second price, one
    slot); under GSP and with many slots it is a heuristic, whose spread of spend the tests measure.

    Args:
        bids: float[n, K], value of a click to each candidate's advertiser.
        pctr: float[n, K], click rates.
        position: float[S], slot effects.
        advertiser: int[n, K], 0..A-1.
        budgets: float[A], currency, >= 0; infinite: no budget.
        pacing: ``none`` bids in full until the money is gone.
        blocks: how often multipliers change.
        step: how fast they change.
        mechanism: see :func:`recsys.auction.slot_prices`.
        bid_exponent: squashing of the bid.
        reserve: lowest price per click.

    Raises:
        InputError: shapes that do not fit, a budget below 0, an advertiser without a budget.

    References:
        Balseiro, Gur (2019). Learning in repeated auctions with budgets. Management Science 65(9).
        Conitzer et al. (2022). Multiplicative pacing equilibria in auction markets. Operations Research 70(2).
    """
    value, rate, who, budget = _inputs(bids, pctr, advertiser, budgets)
    if blocks < 1 or not step > 0:
        raise InputError("pacing not allowed", got=(blocks, step), expected="blocks >= 1 and step > 0")
    edges = np.linspace(0, len(value), min(blocks, max(1, len(value))) + 1).astype(int)
    left, m = budget.copy(), np.ones(len(budget))
    left_at = np.full(len(budget), -1)
    spend, used, parts = np.zeros((len(edges) - 1, len(budget))), np.zeros((len(edges) - 1, len(budget))), []
    for b, (start, end) in enumerate(pairwise(edges.tolist())):
        used[b], before, at = m, left.copy(), start
        while at < end:
            rows = slice(at, end)
            bid = np.where(left_at[who[rows]] < 0, value[rows] * m[who[rows]], 0.0)
            made = run_auctions(bid, rate[rows], position, mechanism=mechanism, bid_exponent=bid_exponent,
                                reserve=reserve, values=value[rows])
            paid = _charges(made, who[rows], len(budget))
            over = paid.cumsum(axis=0) > left * (1 + 1e-12)
            stop = int(np.argmax(over.any(axis=1))) if over.any() else end - at
            parts.append(Cleared(made.winner[:stop], made.clicks[:stop], made.price[:stop], made.value[:stop]))
            spend[b] += paid[:stop].sum(axis=0)
            left = np.maximum(before - spend[b], 0.0)
            at += stop
            if at < end:
                left_at[over[stop]] = at
        if pacing == "multiplicative":
            target = before / (len(edges) - 1 - b)
            share = np.divide(spend[b], target, out=np.zeros_like(target), where=np.isfinite(target) & (target > 0))
            m = np.where(np.isfinite(budget), np.clip(m * np.exp(step * (1 - share)), 1e-3, 1.0), 1.0)
    whole = [np.concatenate([getattr(p, f) for p in parts]) for f in ("winner", "clicks", "price", "value")]
    return Campaigns(Cleared(*whole), spend, used, left_at)


def _charges(made: Cleared, who: NDArray[np.int64], advertisers: int) -> Floats:
    """Expected spend of every advertiser in every auction: float64[n, A]."""
    owner = np.take_along_axis(who, np.maximum(made.winner, 0), axis=1)
    cell = np.arange(len(owner))[:, None] * advertisers + owner
    paid = np.bincount(cell.ravel(), (made.clicks * made.price).ravel(), len(owner) * advertisers)
    return paid.reshape(len(owner), advertisers).astype(np.float64)


def _inputs(bids: ArrayLike, pctr: ArrayLike, advertiser: ArrayLike,
            budgets: ArrayLike) -> tuple[Floats, Floats, NDArray[np.int64], Floats]:
    value, rate = np.asarray(bids, dtype=np.float64), np.asarray(pctr, dtype=np.float64)
    who, budget = np.asarray(advertiser, dtype=np.int64), np.asarray(budgets, dtype=np.float64)
    if who.shape != value.shape or value.ndim != 2:
        raise InputError("advertisers and bids differ in shape", column="advertiser", got=who.shape,
                         expected=str(value.shape))
    if not (budget >= 0).all():
        raise InputError("value not allowed", column="budgets", got=float(np.nanmin(budget)), expected="amounts >= 0")
    if who.size and not (who.min() >= 0 and who.max() < len(budget)):
        raise InputError("an advertiser without a budget", column="advertiser", got=int(who.max()),
                         expected=f"0 to {len(budget) - 1}")
    return value, rate, who, budget
