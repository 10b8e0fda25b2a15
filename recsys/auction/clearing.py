"""Auctions held: who wins which slot, what a click costs, and what that earns whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.auction.prices import Floats, Mechanism, auction_inputs, slot_prices
from recsys.errors import InputError


@dataclass(frozen=True)
class Cleared:
    """The outcome of n auctions over S slots; all money in the bids' currency.

    Attributes:
        winner: int64[n, S], position of the slot's winner among the candidates, -1 where the slot stays empty.
        clicks: float64[n, S], expected clicks of the slot's winner (its rate times the slot's effect), 0 if empty.
        price: float64[n, S], price per click, 0 if empty.
        value: float64[n, S], the winner's value per click, 0 if empty.
    """

    winner: NDArray[np.int64]
    clicks: Floats
    price: Floats
    value: Floats

    @property
    def revenue(self) -> Floats:
        """What advertisers are expected to pay per request: float64[n]."""
        return (self.clicks * self.price).sum(axis=1)

    @property
    def welfare(self) -> Floats:
        """Value of the expected clicks to the advertisers per request, before they pay: float64[n]."""
        return (self.clicks * self.value).sum(axis=1)

    @property
    def surplus(self) -> Floats:
        """What advertisers keep per request, welfare minus revenue: float64[n]."""
        return self.welfare - self.revenue


def run_auctions(
    bids: ArrayLike, pctr: ArrayLike, position: ArrayLike, *, mechanism: Mechanism = "gsp", bid_exponent: float = 1.0,
    reserve: float = 0.0, values: ArrayLike | None = None,
) -> Cleared:
    """Hold n auctions at once: rank by ``bid ** bid_exponent * pctr``, fill the slots in order, price every click.

    A bid below the reserve, or of 0, does not take part. Ties go to the candidate that stands first.

    Args:
        bids: float[n, K], currency per click.
        pctr: float[n, K], click rate of the candidate in a slot of effect 1, > 0.
        position: float[S], effect of each slot on the click rate, falling; S at most K.
        mechanism: ``gsp`` | ``vcg`` | ``first_price``, see :func:`recsys.auction.slot_prices`.
        bid_exponent: squashing of the bid in the ranking score.
        reserve: lowest bid that takes part, and lowest price per click.
        values: float[n, K], what a click is worth to the advertiser; default: its bid.

    Raises:
        InputError: shapes that do not fit, a negative bid, a click rate not above 0, effects that rise.
    """
    effect = np.asarray(position, dtype=np.float64)
    if effect.ndim != 1:
        raise InputError("slot effects are not a vector", column="position", got=effect.shape, expected="(slots,)")
    bid, rate = auction_inputs(bids, pctr, len(effect), bid_exponent)
    worth = bid if values is None else np.asarray(values, dtype=np.float64)
    if worth.shape != bid.shape:
        raise InputError("values and bids differ in shape", column="values", got=worth.shape, expected=str(bid.shape))
    takes_part = (bid >= reserve) & (bid > 0)
    # A candidate out of the auction must be no rival either: with a bid of 0 its score is 0, and where the bid does
    # not count (exponent 0) its click rate is made smaller than every other.
    live_bid = np.where(takes_part, bid, 0.0)
    live_rate = rate if bid_exponent > 0 else np.where(takes_part, rate, np.finfo(float).tiny)
    price = slot_prices(live_bid, live_rate, len(effect), mechanism=mechanism, bid_exponent=bid_exponent,
                        reserve=reserve, position=effect)
    score = np.where(takes_part, live_bid**bid_exponent * live_rate, -1.0)
    winner = np.argsort(-score, axis=1, kind="stable")[:, :len(effect)].astype(np.int64)
    filled = np.take_along_axis(takes_part, winner, axis=1)

    def of_winner(matrix: Floats) -> Floats:
        return np.where(filled, np.take_along_axis(matrix, winner, axis=1), 0.0)

    paid = price[np.arange(len(bid))[:, None], np.arange(len(effect))[None, :], winner]
    return Cleared(np.where(filled, winner, -1), of_winner(rate) * effect, np.where(filled, paid, 0.0),
                   of_winner(worth))
