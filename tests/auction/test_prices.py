"""Prices of the three mechanisms: known answers, and the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.auction import MECHANISMS, gsp_payments, gsp_price, run_auctions, slot_prices, vcg_payments
from recsys.errors import InputError

KNOWN = {"bids": [[10.0, 4.0, 2.0]], "pctr": [[1.0, 1.0, 1.0]], "position": [200.0, 100.0]}


def test_known_answer_revenue_of_gsp_and_vcg() -> None:
    gsp, vcg, first = (run_auctions(**KNOWN, mechanism=m) for m in MECHANISMS)
    assert gsp.revenue[0] == pytest.approx(1000.0)
    assert vcg.revenue[0] == pytest.approx(800.0)
    assert (vcg.clicks * vcg.price)[0] == pytest.approx([600.0, 200.0])
    assert first.revenue[0] == pytest.approx(10 * 200 + 4 * 100)
    assert [m.welfare[0] for m in (gsp, vcg, first)] == pytest.approx([2400.0] * 3)
    assert (gsp.surplus[0], vcg.surplus[0], first.surplus[0]) == pytest.approx((1400.0, 1600.0, 0.0))


def test_reserve_by_hand() -> None:
    # Values 10, 4, 2 with a reserve of 3: the third stays out; VCG pays 4 * 100 + 3 * 100 and 3 * 100.
    gsp, vcg, first = (run_auctions(**KNOWN, mechanism=m, reserve=3.0) for m in MECHANISMS)
    assert (gsp.clicks * gsp.price)[0] == pytest.approx([800.0, 300.0])
    assert (vcg.clicks * vcg.price)[0] == pytest.approx([700.0, 300.0])
    assert first.winner[0].tolist() == [0, 1]
    alone = run_auctions(**KNOWN, reserve=5.0)
    assert alone.winner[0].tolist() == [0, -1]
    assert (alone.revenue[0], alone.price[0, 1], alone.clicks[0, 1]) == (1000.0, 0.0, 0.0)


@st.composite
def markets(draw: st.DrawFn):
    count = draw(st.integers(2, 5))
    amounts = st.floats(0.05, 20.0)
    bids = draw(st.lists(amounts, min_size=count, max_size=count))
    rates = draw(st.lists(st.floats(0.01, 0.5), min_size=count, max_size=count))
    slots = draw(st.integers(1, min(3, count)))
    position = sorted(draw(st.lists(st.floats(0.0, 1.0), min_size=slots, max_size=slots)), reverse=True)
    return {"bids": np.array([bids]), "pctr": np.array([rates]), "position": np.array(position),
            "bid_exponent": draw(st.sampled_from([0.3, 0.5, 1.0])), "reserve": draw(st.sampled_from([0.0, 0.5, 3.0]))}


@settings(max_examples=150, deadline=None)
@given(markets(), st.integers(0, 4), st.floats(0.0, 30.0))
def test_no_bid_beats_the_true_value_under_vcg(market: dict, who: int, lie: float) -> None:
    values, who = market["bids"], who % market["bids"].shape[1]

    def utility(bid: float) -> float:
        bids = values.copy()
        bids[0, who] = bid
        made = run_auctions(**{**market, "bids": bids}, mechanism="vcg", values=values)
        won = made.winner[0] == who
        return float((made.clicks[0, won] * (values[0, who] - made.price[0, won])).sum())

    truth = utility(values[0, who])
    assert truth >= -1e-9
    assert utility(lie) <= truth + 1e-9


def test_shading_pays_under_gsp_and_first_price() -> None:
    # The textbook case: the top bidder of GSP gains by taking the second slot (values 10, 4, 2 with clicks 200, 199).
    market = {"pctr": [[1.0, 1.0, 1.0]], "position": [200.0, 199.0], "values": [[10.0, 4.0, 2.0]]}
    for mechanism in ("gsp", "first_price"):
        honest = run_auctions([[10.0, 4.0, 2.0]], **market, mechanism=mechanism)
        shaded = run_auctions([[3.0, 4.0, 2.0]], **market, mechanism=mechanism)
        gain = [(m.clicks * (m.value - m.price))[m.winner == 0].sum() for m in (honest, shaded)]
        assert gain[1] > gain[0]


@settings(max_examples=100, deadline=None)
@given(markets())
def test_order_of_revenues_reserve_and_accounting(market: dict) -> None:
    made = {m: run_auctions(**market, mechanism=m) for m in MECHANISMS}
    assert made["vcg"].revenue[0] <= made["gsp"].revenue[0] + 1e-9 <= made["first_price"].revenue[0] + 2e-9
    for outcome in made.values():
        filled = outcome.winner[0] >= 0
        paid = market["bids"][0, outcome.winner[0][filled]]
        assert (paid >= market["reserve"]).all()
        assert (outcome.price[0, filled] >= market["reserve"] - 1e-12).all()
        assert (outcome.price[0, filled] <= paid + 1e-12).all()
        assert outcome.welfare[0] == pytest.approx(outcome.revenue[0] + outcome.surplus[0])
        assert filled.sum() == min(len(market["position"]), (market["bids"] >= market["reserve"]).sum())


def test_many_auctions_are_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(1)
    bids, rates = rng.lognormal(0, 1, (200, 6)), rng.beta(2, 30, (200, 6))
    for mechanism in MECHANISMS:
        whole = run_auctions(bids, rates, [1.0, 0.7, 0.5], mechanism=mechanism, reserve=0.3, bid_exponent=0.7)
        single = [run_auctions(bids[i:i + 1], rates[i:i + 1], [1.0, 0.7, 0.5], mechanism=mechanism, reserve=0.3,
                               bid_exponent=0.7) for i in (0, 77, 199)]
        assert [s.revenue[0] for s in single] == pytest.approx(whole.revenue[[0, 77, 199]].tolist())


def test_vcg_prices_follow_a_candidates_own_slot_effects() -> None:
    bids, rates = np.array([[10.0, 4.0, 2.0]]), np.ones((1, 3))
    effect = np.array([[[200.0, 50.0, 1.0], [100.0, 50.0, 1.0]]])
    price = slot_prices(bids, rates, 2, mechanism="vcg", position=effect)[0]
    assert price[0, 0] == pytest.approx((100 * 4 + 100 * 2) / 200)
    assert price[0, 1] == pytest.approx(2.0)  # the second slot brings candidate 1 as much: only that threshold counts


@pytest.mark.parametrize(("change", "words"), [
    ({"position": [0.5, 1.0]}, "do not rise"), ({"position": [1.0, -1.0]}, "do not rise"),
    ({"position": [[1.0, 0.5]]}, "not a vector"), ({"pctr": [[1.0, 0.0, 1.0]]}, "not allowed in an auction"),
    ({"bids": [[1.0, -2.0, 1.0]]}, "not allowed in an auction"), ({"mechanism": "dutch"}, "no such mechanism"),
    ({"values": [[1.0]]}, "differ in shape"), ({"bid_exponent": -1.0}, "not allowed in an auction"),
])
def test_bad_auctions_are_one_line(change: dict, words: str) -> None:
    for mechanism in MECHANISMS:
        with pytest.raises(InputError, match=words):
            run_auctions(**{**KNOWN, "mechanism": mechanism, **change})


def test_vcg_without_slot_effects_is_refused() -> None:
    with pytest.raises(InputError, match="clicks that each slot brings"):
        slot_prices([[1.0, 2.0]], [[1.0, 1.0]], 2, mechanism="vcg")
    assert slot_prices([[1.0, 2.0]], [[1.0, 1.0]], 1, mechanism="vcg")[0, 0, 1] == 1.0


def test_gsp_and_vcg_known_answers() -> None:
    values, clicks = [10.0, 4.0, 2.0], [200.0, 100.0]
    assert gsp_payments(values, clicks).sum() == pytest.approx(1000.0)
    assert vcg_payments(values, clicks).tolist() == [600.0, 200.0]


def test_one_slot_gsp_and_vcg_are_the_second_price() -> None:
    assert gsp_payments([3.0, 7.0, 5.0], [10.0]).tolist() == [50.0]
    assert vcg_payments([3.0, 7.0, 5.0], [10.0]).tolist() == [50.0]


def test_gsp_price_keeps_the_slot_and_no_more() -> None:
    rng = np.random.default_rng(3)
    bids, pctr = rng.lognormal(0, 0.7, (40, 6)), rng.beta(2, 30, (40, 6))
    exponent = 0.6
    score = bids**exponent * pctr
    price = gsp_price(bids, pctr, 3, bid_exponent=exponent, reserve=0.01)
    order = np.argsort(-score, axis=1)
    for row in range(40):
        for slot in range(3):
            winner, following = order[row, slot], order[row, slot + 1]
            paid = price[row, slot, winner]
            expected = (score[row, following] / pctr[row, winner]) ** (1 / exponent)
            assert paid == pytest.approx(max(expected, 0.01))
    assert (price <= bids[:, None, :] + 1e-12).all()


def test_gsp_price_edges() -> None:
    bids, pctr = np.array([[2.0, 1.0]]), np.array([[0.1, 0.1]])
    price = gsp_price(bids, pctr, 2, reserve=0.05)[0]
    assert price[0, 0] == pytest.approx(1.0)
    assert price[0, 1] == pytest.approx(1.0)  # out of order: it cannot keep the slot, so it pays its whole bid
    assert price[1, 1] == pytest.approx(0.05)  # nobody below: the reserve
    flat = gsp_price(bids, np.array([[0.1, 0.2]]), 1, bid_exponent=0.0, reserve=0.05)[0, 0]
    assert flat.tolist() == [2.0, 0.05]
    with pytest.raises(InputError, match="differ in shape"):
        gsp_price(bids, pctr[:, :1], 1)
    with pytest.raises(InputError, match="number of slots"):
        gsp_price(bids, pctr, 3)
    with pytest.raises(InputError, match="not allowed in an auction"):
        gsp_price(bids, pctr * 0, 1)
