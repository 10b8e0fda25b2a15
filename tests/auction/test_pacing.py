"""Budgets are never overspent, whatever the stream; pacing spreads what is spent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.auction import MECHANISMS, run_auctions, run_paced
from recsys.errors import InputError


def stream(n: int, seed: int, advertisers: int = 5, width: int = 4):
    rng = np.random.default_rng(seed)
    who = np.argsort(rng.random((n, advertisers)), axis=1)[:, :width]
    return rng.lognormal(0, 0.5, (n, width)), rng.beta(2, 20, (n, width)), np.array([1.0, 0.6]), who


def spent(made, who: np.ndarray, advertisers: int) -> np.ndarray:
    """Independently of the ledger inside: what each advertiser was charged over the whole stream."""
    total = np.zeros(advertisers)
    for winner, clicks, price, row in zip(made.outcome.winner, made.outcome.clicks, made.outcome.price, who,
                                          strict=True):
        for w, c, p in zip(winner, clicks, price, strict=True):
            if w >= 0:
                total[row[w]] += c * p
    return total


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(0.0, 8.0), min_size=5, max_size=5), st.sampled_from(MECHANISMS),
       st.sampled_from(["none", "multiplicative"]), st.integers(1, 30))
def test_budgets_are_never_overspent(seed: int, budgets: list[float], mechanism, pacing, blocks: int) -> None:
    bids, rate, position, who = stream(120, seed)
    made = run_paced(bids, rate, position, who, budgets, pacing=pacing, blocks=blocks, mechanism=mechanism, reserve=0.1)
    total = spent(made, who, 5)
    assert (total <= np.array(budgets) * (1 + 1e-9) + 1e-12).all()
    np.testing.assert_allclose(made.spend.sum(axis=0), total, rtol=1e-9, atol=1e-9)
    for a in np.flatnonzero(made.left_at >= 0):  # who left is charged nothing any more
        later = made.outcome.winner[made.left_at[a]:]
        owner = np.take_along_axis(who[made.left_at[a]:], np.maximum(later, 0), axis=1)
        assert not ((owner == a) & (later >= 0)).any()


def test_without_budgets_the_stream_is_the_plain_auction() -> None:
    bids, rate, position, who = stream(300, 3)
    made = run_paced(bids, rate, position, who, np.full(5, np.inf))
    plain = run_auctions(bids, rate, position)
    assert made.outcome.revenue == pytest.approx(plain.revenue)
    assert (made.left_at == -1).all()
    assert (made.multiplier == 1).all()


def test_pacing_spreads_spend_and_keeps_advertisers_in_to_the_end() -> None:
    bids, rate, position, who = stream(6000, 5)
    free = run_paced(bids, rate, position, who, np.full(5, np.inf)).spend.sum(axis=0)
    budgets = free * 0.4
    hasty = run_paced(bids, rate, position, who, budgets, pacing="none")
    paced = run_paced(bids, rate, position, who, budgets)

    def unevenness(made) -> float:
        """Largest distance between the share of budget spent and the share of the stream gone by."""
        gone = np.arange(1, len(made.spend) + 1)[:, None] / len(made.spend)
        return float(np.abs(made.spend.cumsum(axis=0) / budgets - gone).max())

    assert unevenness(hasty) > 0.3
    assert unevenness(paced) < 0.5 * unevenness(hasty)
    last = len(bids) * 0.9
    # All but the last run dry before half of the stream is gone; the last then gets its clicks free.
    assert sorted(hasty.left_at >= 0) == [False, True, True, True, True]
    assert hasty.left_at.max() < 0.5 * len(bids)
    assert ((paced.left_at == -1) | (paced.left_at > last)).all()
    assert paced.spend.sum() == pytest.approx(budgets.sum(), rel=0.1)  # nor is the money left lying


@pytest.mark.parametrize(("change", "words"), [
    ({"budgets": [-1.0] * 5}, "amounts >= 0"), ({"budgets": [1.0] * 3}, "without a budget"),
    ({"advertiser": np.zeros((3, 1), int)}, "differ in shape"), ({"blocks": 0}, "blocks >= 1"),
])
def test_bad_campaigns_are_one_line(change: dict, words: str) -> None:
    bids, rate, position, who = stream(20, 0)
    with pytest.raises(InputError, match=words):
        run_paced(**{"bids": bids, "pctr": rate, "position": position, "advertiser": who, "budgets": [1.0] * 5,
                     **change})
