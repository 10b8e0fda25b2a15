"""What a click costs: generalised second price, VCG, first price, each for every (request, slot, candidate).

All three share one ranking score, ``bid ** bid_exponent * click rate``, and one threshold: the smallest bid that keeps
a candidate at or above the best rival who would otherwise stand there. First price pays the bid; GSP pays the slot's
threshold; VCG pays the thresholds of the slot and of all below it, each weighted by the clicks that it adds.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import InputError

Floats = NDArray[np.float64]
Mechanism = Literal["gsp", "vcg", "first_price"]
MECHANISMS: tuple[Mechanism, ...] = get_args(Mechanism)


def auction_inputs(bids: ArrayLike, pctr: ArrayLike, slots: int, bid_exponent: float) -> tuple[Floats, Floats]:
    """Bids and click rates as float64[n, K], checked.

    Raises:
        InputError: shapes differ, a bid below 0, a click rate not above 0, more slots than candidates.
    """
    bid, rate = np.asarray(bids, dtype=np.float64), np.asarray(pctr, dtype=np.float64)
    if bid.shape != rate.shape or bid.ndim != 2:
        raise InputError("bids and click rates differ in shape", got=(bid.shape, rate.shape), expected="(n, K) each")
    if not 1 <= slots <= bid.shape[1]:
        raise InputError("number of slots not supported", got=slots, expected=f"1 to {bid.shape[1]}")
    if not (rate > 0).all() or not (bid >= 0).all() or not bid_exponent >= 0:
        raise InputError("value not allowed in an auction", expected="bids >= 0, click rates > 0, bid_exponent >= 0")
    return bid, rate


def thresholds(bid: Floats, rate: Floats, slots: int, bid_exponent: float) -> Floats:
    """Smallest bid with which a candidate would stand in a slot or above: float64[n, slots, K], before any reserve.

    The rival for slot s is the (s+1)-th best of the *others*, so the threshold does not depend on the own bid.
    With ``bid_exponent`` 0 the bid does not move the rank: 0 where the click rate alone is enough, else infinite.
    """
    score = bid**bid_exponent * rate
    order = np.argsort(-score, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    ranked = np.pad(np.take_along_axis(score, order, axis=1), ((0, 0), (0, 1)))  # past the last rival: nobody
    out = np.empty((len(bid), slots, bid.shape[1]))
    for s in range(slots):
        rival = np.where(rank <= s, ranked[:, s + 1, None], ranked[:, s, None])
        if bid_exponent == 0:
            out[:, s] = np.where(rate >= rival, 0.0, np.inf)
        else:
            out[:, s] = (rival / rate) ** (1.0 / bid_exponent)
    return out


def slot_prices(
    bids: ArrayLike, pctr: ArrayLike, slots: int, *, mechanism: Mechanism = "gsp", bid_exponent: float = 1.0,
    reserve: float = 0.0, position: ArrayLike | None = None,
) -> Floats:
    """Price per click of every candidate in every slot, under a squashed ranking score.

    Where candidates stand in score order these are the textbook rules; for a randomised order they give one price
    per (request, slot, candidate), so that the revenue of a policy is an exact sum.

    * ``gsp``: the slot's threshold, at least the reserve.
    * ``vcg``: sum over slots t from s on of (x_t - x_(t+1)) / x_s * max(reserve, threshold of t), x the clicks that a
      slot brings. This is Myerson's payment for the ranking, so no bid beats the true value; with ``bid_exponent`` 1
      and no reserve it is Vickrey-Clarke-Groves, with another exponent the laddered auction.
    * ``first_price``: the bid.

    Args:
        bids: float[n, K], currency per click, >= 0.
        pctr: float[n, K], > 0, in any common scale (only ratios count).
        slots: number of slots, at most K.
        mechanism: how a click is priced.
        bid_exponent: squashing, 1 ranks by expected revenue, 0 by click rate alone.
        reserve: lowest price per click.
        position: clicks that a slot brings, falling, in any scale: float[slots], or float[n, slots, K] where they
            depend on the candidate. Needed for ``vcg`` with several slots; checked, and not used, elsewhere.

    Returns:
        float64[n, slots, K], currency per click, never above the candidate's own bid.

    Raises:
        InputError: as :func:`auction_inputs`, an unknown mechanism, slot effects that rise, are negative or do not fit.

    References:
        Edelman, Ostrovsky, Schwarz (2007). Internet advertising and the generalized second-price auction.
        Lahaie, Pennock (2007). Revenue analysis of a family of ranking rules for keyword auctions.
        Aggarwal, Goel, Motwani (2006). Truthful auctions for pricing search keywords.
    """
    bid, rate = auction_inputs(bids, pctr, slots, bid_exponent)
    if mechanism not in MECHANISMS:
        raise InputError("no such mechanism", got=mechanism, expected=" | ".join(MECHANISMS))
    several = mechanism == "vcg" and slots > 1
    effect = None
    if several or position is not None:  # wrong effects are wrong input, whoever reads them
        effect = _effects(position, (len(bid), slots, bid.shape[1]))
    if mechanism == "first_price":
        return np.broadcast_to(bid[:, None, :], (len(bid), slots, bid.shape[1])).copy()
    price = np.maximum(thresholds(bid, rate, slots, bid_exponent), reserve)
    # Above its bid nobody is charged, in whatever order a randomised policy put them.
    price = np.minimum(price, bid[:, None, :])
    if several:
        assert effect is not None
        for s in range(slots - 2, -1, -1):
            kept = np.divide(effect[:, s + 1], effect[:, s], out=np.zeros_like(effect[:, s]), where=effect[:, s] > 0)
            price[:, s] = (1 - kept) * price[:, s] + kept * price[:, s + 1]
    return price


def _effects(position: ArrayLike | None, shape: tuple[int, ...]) -> Floats:
    if position is None:
        raise InputError("VCG prices need the clicks that each slot brings", column="position", got=None,
                         expected="one number per slot")
    effect = np.asarray(position, dtype=np.float64)
    if effect.ndim == 1:
        effect = effect[None, :, None]
    try:
        effect = np.broadcast_to(effect, shape)
    except ValueError:
        raise InputError("slot effects do not fit", column="position", got=effect.shape,
                         expected=f"({shape[1]},) or {shape}") from None
    if not (effect >= 0).all() or (np.diff(effect, axis=1) > 1e-9 * effect.max(initial=0.0)).any():
        raise InputError("slot effects not allowed", column="position", expected="numbers >= 0 that do not rise")
    return effect


def gsp_price(
    bids: ArrayLike, pctr: ArrayLike, slots: int, *, bid_exponent: float = 1.0, reserve: float = 0.0
) -> Floats:
    """:func:`slot_prices` of the generalised second-price auction: float64[n, slots, K], currency per click."""
    return slot_prices(bids, pctr, slots, bid_exponent=bid_exponent, reserve=reserve)


def gsp_payments(values: ArrayLike, slot_clicks: ArrayLike) -> Floats:
    """What each slot's winner pays in total under GSP: float64[slots], currency.

    Args:
        values: float[K], bids per click; the best takes the first slot.
        slot_clicks: float[slots], clicks that a slot brings, falling.
    """
    return _payments(values, slot_clicks, "gsp")


def vcg_payments(values: ArrayLike, slot_clicks: ArrayLike) -> Floats:
    """What each slot's winner pays in total under VCG, the value that the others lose by its presence: float64[slots].

    Args:
        values: float[K], values per click; the best takes the first slot.
        slot_clicks: float[slots], clicks that a slot brings, falling.
    """
    return _payments(values, slot_clicks, "vcg")


def _payments(values: ArrayLike, slot_clicks: ArrayLike, mechanism: Mechanism) -> Floats:
    value, clicks = np.sort(np.asarray(values, dtype=np.float64))[::-1], np.asarray(slot_clicks, dtype=np.float64)
    at = np.arange(len(clicks))
    paid: Floats = clicks * slot_prices(value[None], np.ones((1, len(value))), len(clicks), mechanism=mechanism,
                                        position=clicks)[0][at, at]
    return paid
