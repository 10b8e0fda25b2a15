from __future__ import annotations

import numpy as np
import pytest

from recsys.auction import run_auctions, run_paced
from recsys.config import PacingConfig
from recsys.serving.pacing import Pacer


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def serve(pacer: Pacer, clock: Clock, bids: np.ndarray, rates: np.ndarray, blocks: int, period: float):
    """Requests spread evenly over the period; the auctions of run_paced, one at a time."""
    n, k = bids.shape
    multipliers, charges = [], []
    for i in range(n):
        clock.now = i * period / n
        paced, can = pacer.enter(np.arange(k), bids[i], rates[i])
        if i % (n // blocks) == 0:
            multipliers.append(pacer.multiplier)
        made = run_auctions(np.where(can, paced, 0.0)[None], rates[i][None], [1.0, 0.6])
        rows = made.winner[0][made.winner[0] >= 0]
        charge = (made.clicks * made.price)[0][made.winner[0] >= 0]
        charges.append((rows, charge))
        pacer.charge(rows, charge)
    return np.array(multipliers), charges


@pytest.mark.parametrize("limited", [False, True])
def test_multipliers_and_spend_are_those_of_run_paced(limited):
    rng = np.random.default_rng(2)
    n, k, blocks, period = 800, 5, 20, 100.0
    bids, rates = rng.uniform(0.2, 1.0, (n, k)), rng.uniform(0.02, 0.2, (n, k))
    budget = np.full(k, 3.0) if limited else np.array([4.0, np.inf, 3.0, 1e9, 5.0])
    known = run_paced(bids, rates, [1.0, 0.6], np.tile(np.arange(k), (n, 1)), budget, blocks=blocks)
    clock = Clock()
    pacer = Pacer(budget, PacingConfig(period_seconds=period, blocks=blocks), clock)
    multipliers, _ = serve(pacer, clock, bids, rates, blocks, period)
    ran_dry = known.left_at >= 0
    until = blocks if not ran_dry.any() else int(known.left_at[ran_dry].min() * blocks / n)
    assert until > 5
    # Until the first one runs dry nothing differs; then an ad here leaves an auction earlier, by one charge at most.
    np.testing.assert_allclose(multipliers[:until], known.multiplier[:until], rtol=1e-9)
    spent, most = pacer.spent, (bids * rates).max()
    finite = np.isfinite(budget)
    assert (spent[finite] <= budget[finite]).all()
    np.testing.assert_allclose(spent[finite], known.spend.sum(axis=0)[finite], atol=2 * most, rtol=0.05)


def test_nobody_pays_more_than_it_has_and_a_new_period_has_a_new_budget():
    clock = Clock()
    pacer = Pacer(np.array([1.0, np.inf]), PacingConfig(period_seconds=10, blocks=5, share=0.5), clock)
    for _ in range(20):
        paced, can = pacer.enter(np.array([0, 1]), np.array([2.0, 2.0]), np.array([0.1, 0.1]))
        assert can[1]
        if can[0]:
            pacer.charge(np.array([0]), paced[:1] * 0.1)
    assert pacer.spent[0] <= 0.5
    assert pacer.spent[0] > 0.25
    assert pacer.spent[1] == 0
    clock.now = 34.0  # whole periods without a request
    _, can = pacer.enter(np.array([0]), np.array([2.0]), np.array([0.1]))
    assert can[0]
    assert pacer.spent[0] == 0


def test_a_new_version_of_the_ads_keeps_what_was_spent():
    clock = Clock()
    config = PacingConfig(period_seconds=10, blocks=5)
    before = Pacer(np.array([1.0, 2.0, np.inf]), config, clock)
    before.charge(np.array([0, 1]), np.array([0.4, 0.5]))
    after = Pacer(np.array([np.inf, 2.0, 1.5, 5.0]), config, clock)
    after.carry_over(before, np.array([2, 1, 0, -1]))  # the same ads in another order, one with more money, one new
    np.testing.assert_allclose(after.spent, [0.0, 0.5, 0.4, 0.0])
    clock.now = 2.0
    before.enter(np.array([0]), np.ones(1), np.ones(1))
    after.enter(np.array([0]), np.ones(1), np.ones(1))
    assert after.multiplier[1] == pytest.approx(before.multiplier[1])
