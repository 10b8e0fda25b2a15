from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import PolicyConfig, ServedPolicyConfig
from recsys.evaluation.policy import ranker_policy
from recsys.serving.exploration import decision_seed, draw, ranking_scores, slate_marginals

RNG = np.random.default_rng(4)
RATE, BID = RNG.uniform(0.01, 0.3, 6), RNG.uniform(0.1, 2.0, 6)
SCORES = ranking_scores(RATE, BID, 0.5)


def policy(**more) -> ServedPolicyConfig:
    return ServedPolicyConfig(**{"temperature": 0.4, "epsilon": 0.2, **more})


def slate_probability(slate: tuple[int, ...], p: ServedPolicyConfig) -> float:
    """By the definition: of the mixture of a uniform slate and a sequential softmax (or the order)."""
    k, uniform, ranked = len(SCORES), 1.0, 1.0
    weights, order = np.exp(SCORES / p.temperature) if p.temperature else None, np.argsort(-SCORES)
    for s, chosen in enumerate(slate):
        uniform /= k - s
        left = [i for i in range(k) if i not in slate[:s]]
        ranked *= float(order[s] == chosen) if weights is None else weights[chosen] / weights[left].sum()
    return p.epsilon * uniform + (1 - p.epsilon) * ranked


@pytest.mark.parametrize("p", [policy(), policy(epsilon=0.0), policy(epsilon=1.0), policy(temperature=0.0)])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_marginals_and_conditionals_are_sums_over_all_slates(p, slots):
    slates = list(permutations(range(6), slots))
    chance = np.array([slate_probability(s, p) for s in slates])
    assert chance.sum() == pytest.approx(1.0, abs=1e-12)
    expected = np.zeros((slots, 6))
    for s, c in zip(slates, chance, strict=True):
        expected[np.arange(slots), list(s)] += c
    got = slate_marginals(SCORES, slots, p)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-16)
    made = draw(SCORES, slots, p, 11)
    np.testing.assert_array_equal(made.propensity, np.minimum(got[np.arange(slots), made.position], 1.0))
    prefix = [sum(c for s, c in zip(slates, chance, strict=True) if s[:n] == tuple(made.position[:n]))
              for n in range(slots + 1)]
    np.testing.assert_allclose(made.conditional, [b / a for a, b in pairwise(prefix)], rtol=1e-12)


@pytest.mark.parametrize("p", [policy(), policy(temperature=0.0)])
def test_slates_are_drawn_with_the_probabilities_that_are_logged(p):
    """Chi-square of 5,000 seeds against the slates' probabilities; deterministic, so it cannot flicker."""
    slates = list(permutations(range(6), 2))
    counts = dict.fromkeys(slates, 0)
    n = 5_000
    for i in range(n):
        counts[tuple(draw(SCORES, 2, p, decision_seed(f"r{i}")).position.tolist())] += 1
    expected = np.array([n * slate_probability(s, p) for s in slates])
    got = np.array([counts[s] for s in slates])
    statistic = ((got - expected) ** 2 / expected).sum()
    assert statistic < 58.3  # 99.9 % of chi-square with 29 degrees of freedom


def test_the_same_seed_the_same_slate_to_the_last_bit():
    one, two = (draw(SCORES, 3, policy(), decision_seed("request")) for _ in range(2))
    for name in ("position", "propensity", "conditional"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    seeds = {decision_seed(f"r{i}") for i in range(1000)}
    assert len(seeds) == 1000
    assert max(seeds) < 2**63


def test_no_propensity_is_below_the_floor_and_none_is_rounded():
    p = policy(epsilon=0.1)
    wild = np.array([0.0, -800.0, -5.0, -900.0])  # a softmax that underflows
    for i in range(200):
        made = draw(wild, 3, p, i)
        assert (made.propensity >= 0.1 / 4).all()
        assert (made.propensity <= 1.0).all()
        assert (made.conditional > 0).all()
    assert made.propensity[0] != round(float(made.propensity[0]), 6)


def test_what_is_served_is_what_evaluation_calls_a_rankers_policy():
    """Without exploration the marginals are those of recsys.evaluation.ranker_policy on the same candidates."""
    rows = [(s, i) for s in range(2) for i in range(6)]
    table = pa.table({"request_id": ["r"] * 12, "slot": pa.array([s for s, _ in rows], pa.int32()),
                      "ad_id": [f"a{i}" for _, i in rows], "bid": [BID[i] for _, i in rows]})
    known = ranker_policy(table, [RATE[i] for _, i in rows], PolicyConfig(temperature=0.4, bid_exponent=0.5))
    got = slate_marginals(SCORES, 2, policy(epsilon=0.0))
    np.testing.assert_allclose(known["probability"].to_numpy(), got.ravel(), rtol=1e-12)


def test_beyond_three_slots_the_order_has_exact_marginals_too():
    p = policy(temperature=0.0, epsilon=0.3)
    got = slate_marginals(SCORES, 5, p)
    np.testing.assert_allclose(got.sum(axis=1), 1.0, rtol=1e-12)
    order = np.argsort(-SCORES)
    assert got[4, order[4]] == pytest.approx(0.7 + 0.3 / 6)
    assert len(set(draw(SCORES, 5, p, 3).position.tolist())) == 5
