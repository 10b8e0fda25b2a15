from __future__ import annotations

from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import PolicyConfig
from recsys.contracts import POLICY, validate
from recsys.errors import InputError
from recsys.evaluation.policy import ranker_policy, uniform_policy

SETTINGS = PolicyConfig(temperature=0.5, bid_exponent=0.5)


def candidates(requests: list[tuple[list[str], list[int], list[float]]]) -> pa.Table:
    """(ads, slot numbers, bids) of each request -> one row per (request, slot, candidate)."""
    rows = [(f"r{i}", slot, ad, bid) for i, (ads, slots, bids) in enumerate(requests)
            for slot in slots for ad, bid in zip(ads, bids, strict=True)]
    request, slot, ad, bid = (list(c) for c in zip(*rows, strict=True))
    return pa.table({"request_id": request, "slot": pa.array(slot, pa.int32()), "ad_id": ad,
                     "bid": pa.array(bid, pa.float64())})


def test_marginals_are_those_of_plackett_luce_over_all_orders():
    """Requests with different numbers of slots and candidates, against enumeration of every slate."""
    requests = [(["a", "b", "c"], [0, 1], [1.0, 2.0, 0.5]), (["c", "d", "e", "f"], [0, 1, 2], [1.0, 1.0, 3.0, 0.2]),
                (["a", "f"], [4], [0.3, 0.9])]
    table = candidates(requests)
    p = np.random.default_rng(0).uniform(0.01, 0.2, table.num_rows)
    policy = validate(ranker_policy(table, p, SETTINGS), POLICY)
    at = 0
    for ads, slots, bids in requests:
        k = len(ads)
        weight = np.exp((np.log(p[at:at + k]) + 0.5 * np.log(bids)) / 0.5)  # the first slot's predictions decide
        expected = np.zeros((len(slots), k))
        for order in permutations(range(k), len(slots)):
            left, chance = weight.sum(), 1.0
            for ad in order:
                chance *= weight[ad] / left
                left -= weight[ad]
            for rank, ad in enumerate(order):
                expected[rank, ad] += chance
        got = policy["probability"].to_numpy()[at:at + k * len(slots)].reshape(len(slots), k)
        assert got == pytest.approx(expected)
        at += k * len(slots)
    assert policy["expected_click"].to_numpy() == pytest.approx(p)
    assert policy["ad_id"].to_pylist() == table["ad_id"].to_pylist()


def test_row_order_does_not_matter():
    table = candidates([(["a", "b", "c"], [0, 1], [1.0, 2.0, 0.5]), (["b", "c"], [1], [1.0, 2.0])])
    p = np.linspace(0.01, 0.2, table.num_rows)
    plain = ranker_policy(table, p, SETTINGS).to_pylist()
    interleaved = np.array([6, 3, 0, 4, 1, 7, 5, 2])  # candidates of a slot keep their order
    mixed = ranker_policy(table.take(interleaved), p[interleaved], SETTINGS).to_pylist()
    for at, row in zip(interleaved, mixed, strict=True):
        assert row == pytest.approx(plain[at])


def test_prices_are_second_prices():
    """One slot, two candidates: the better pays what keeps its score level with the other's, the other its bid."""
    table = candidates([(["a", "b"], [0], [4.0, 1.0])])
    policy = ranker_policy(table, np.array([0.1, 0.1]), SETTINGS)
    assert policy["price_per_click"].to_pylist() == pytest.approx([1.0, 1.0])
    policy = ranker_policy(table, np.array([0.2, 0.1]), SETTINGS)
    assert policy["price_per_click"].to_pylist() == pytest.approx([0.25, 1.0])  # (1 * 0.1 / 0.2)^(1 / 0.5)
    assert "price_per_click" not in ranker_policy(table.drop_columns(["bid"]), np.ones(2) / 2, SETTINGS).column_names


def test_cold_temperature_picks_the_best_and_zero_predictions_are_allowed():
    table = candidates([(["a", "b", "c"], [0, 1], [1.0, 1.0, 1.0])])
    p = np.tile([0.0, 0.3, 0.1], 2)
    policy = ranker_policy(table, p, PolicyConfig(temperature=0.05))
    assert policy["probability"].to_numpy() == pytest.approx([0, 1, 0, 0, 0, 1], abs=1e-6)


def test_uniform_policy():
    table = candidates([(["a", "b", "c"], [0, 1], [1.0, 2.0, 0.5]), (["b", "c"], [1], [1.0, 2.0])])
    assert uniform_policy(table)["probability"].to_pylist() == pytest.approx([1 / 3] * 6 + [1 / 2] * 2)


def test_bad_input():
    table = candidates([(["a", "b"], [0, 1], [1.0, 2.0])])
    with pytest.raises(InputError, match=r"row 2: value not allowed; got 1\.5"):
        ranker_policy(table, np.array([0.1, 0.1, 1.5, 0.1]), SETTINGS)
    with pytest.raises(InputError, match="expected \\(4,\\)"):
        ranker_policy(table, np.array([0.1]), SETTINGS)
    other = table.set_column(2, "ad_id", pa.array(["a", "b", "a", "x"]))
    with pytest.raises(InputError, match="row 3: a request's slots list different candidates; got 'x'"):
        ranker_policy(other, np.full(4, 0.1), SETTINGS)
    with pytest.raises(InputError, match="different candidates"):
        ranker_policy(table.slice(0, 3), np.full(3, 0.1), SETTINGS)
    with pytest.raises(InputError, match="fewer candidates than slots"):
        ranker_policy(candidates([(["a"], [0, 1], [1.0])]), np.full(2, 0.1), SETTINGS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(3, 7), st.integers(1, 3)), min_size=1, max_size=6),
       st.floats(0.05, 5), st.floats(0, 2), st.integers(0, 2**32 - 1))
def test_probabilities_sum_to_one_in_every_slot(shapes, temperature, exponent, seed):
    rng = np.random.default_rng(seed)
    table = candidates([([f"a{j}" for j in range(k)], list(range(s)), rng.uniform(0.05, 3, k).tolist())
                        for k, s in shapes])
    policy = ranker_policy(table, rng.uniform(1e-6, 1, table.num_rows),
                           PolicyConfig(temperature=temperature, bid_exponent=exponent))
    totals = policy.group_by(["request_id", "slot"]).aggregate([("probability", "sum")])
    assert totals["probability_sum"].to_numpy() == pytest.approx(np.ones(totals.num_rows))
    price, bid = policy["price_per_click"].to_numpy(), table["bid"].to_numpy()
    assert (price >= 0).all()
    assert (price <= bid + 1e-12).all()


def test_mechanisms_price_the_same_slate_differently():
    """Known answer: values 10, 4, 2 at equal click rates, a second slot that brings half the clicks."""
    table = candidates([(["a", "b", "c"], [0, 1], [10.0, 4.0, 2.0])])
    p = np.array([0.2, 0.2, 0.2, 0.1, 0.1, 0.1])
    made = {m: ranker_policy(table, p, SETTINGS.model_copy(update={"bid_exponent": 1.0, "mechanism": m}))
            for m in ("gsp", "vcg", "first_price")}
    price = {m: t["price_per_click"].to_numpy().reshape(2, 3) for m, t in made.items()}
    assert (price["gsp"][0, 0], price["gsp"][1, 1]) == pytest.approx((4.0, 2.0))
    assert (price["vcg"][0, 0], price["vcg"][1, 1]) == pytest.approx((3.0, 2.0))
    assert price["first_price"] == pytest.approx(np.array([[10.0, 4.0, 2.0]] * 2))
    for table_ in made.values():
        assert table_["probability"].equals(made["gsp"]["probability"])
        assert table_["bid"].to_pylist() == table["bid"].to_pylist()


def test_vcg_prices_take_predictions_that_rise_down_the_slots():
    table = candidates([(["a", "b", "c"], [0, 1], [10.0, 4.0, 2.0])])
    p = np.array([0.2, 0.2, 0.2, 0.3, 0.1, 0.1])  # the model thinks that the second slot is better for a
    price = ranker_policy(table, p, SETTINGS.model_copy(update={"mechanism": "vcg"}))["price_per_click"].to_numpy()
    assert np.isfinite(price).all()
    assert (price <= np.tile([10.0, 4.0, 2.0], 2) + 1e-12).all()
