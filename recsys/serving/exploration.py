"""The policy that decides what is shown, and the exact probabilities with which it did.

A slate of S slots is drawn from K candidates: with probability epsilon uniformly at random, else by the ranker's
scores (Plackett-Luce at a temperature, or their falling order at temperature 0). What is logged are probabilities of
this very mixture: no rounding, no fit, and none below epsilon / K. Everything follows from (scores, slots, policy,
seed), all of which are in the log: :func:`draw` makes the same decision again, to the last bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.auction import sample_slots, slot_marginals
from recsys.config import ServedPolicyConfig

Floats = NDArray[np.float64]
_SMALLEST_RATE = 1e-12  # a rate or bid of zero still has a logarithm
_SMALLEST_WEIGHT = 1e-50  # relative to the largest; as recsys.auction draws and sums


@dataclass(frozen=True)
class Slate:
    """What is shown.

    Attributes:
        position: int64[S], candidate in each slot.
        propensity: float64[S], probability of that candidate in that slot (marginal over the slots above): what
            ``recsys ope`` weighs by.
        conditional: float64[S], its probability given the slots above: what estimators of whole slates multiply.
    """

    position: NDArray[np.int64]
    propensity: Floats
    conditional: Floats


def decision_seed(request_id: str) -> int:
    """The seed of a request's decision: 63 bits of SHA-256, so that a request draws the same slate wherever it runs."""
    return int.from_bytes(hashlib.sha256(f"slate:{request_id}".encode()).digest()[:8], "big") >> 1


def ranking_scores(rate: ArrayLike, bid: ArrayLike | None, bid_exponent: float) -> Floats:
    """log rate + bid_exponent * log bid: float64, elementwise; without bids the log rate."""
    score: Floats = np.log(np.maximum(np.asarray(rate, dtype=np.float64), _SMALLEST_RATE))
    if bid is not None and bid_exponent > 0:
        score = score + bid_exponent * np.log(np.maximum(np.asarray(bid, dtype=np.float64), _SMALLEST_RATE))
    return score


def slate_marginals(scores: ArrayLike, slots: int, policy: ServedPolicyConfig) -> Floats:
    """Probability of each candidate in each slot: float64[slots, K], every row sums to 1.

    Args:
        scores: float[K], of :func:`ranking_scores`.
        slots: at most K; at most 3 where the temperature is not 0.
        policy: epsilon and temperature.
    """
    s = np.asarray(scores, dtype=np.float64)
    if policy.temperature > 0:
        by_score = slot_marginals(_weights(s, policy)[None], slots)[0]
    else:
        by_score = np.zeros((slots, len(s)))
        by_score[np.arange(slots), _order(s)[:slots]] = 1.0
    mixed: Floats = (1.0 - policy.epsilon) * by_score + policy.epsilon / len(s)
    return mixed


def draw(scores: ArrayLike, slots: int, policy: ServedPolicyConfig, seed: int) -> Slate:
    """Decide; arguments as :func:`slate_marginals`, and the seed of :func:`decision_seed`."""
    s = np.asarray(scores, dtype=np.float64)
    rng = np.random.Generator(np.random.PCG64(seed))
    explore = rng.random() < policy.epsilon
    if explore or policy.temperature > 0:
        position = sample_slots(np.ones((1, len(s))) if explore else _weights(s, policy)[None], slots, rng)[0]
    else:
        position = _order(s)[:slots]
    marginal = slate_marginals(s, slots, policy)[np.arange(slots), position]
    # The floor of a double: a sum of three terms may exceed 1 in its last digit.
    return Slate(position, np.minimum(marginal, 1.0), np.minimum(_conditional(s, position, policy), 1.0))


def _weights(scores: Floats, policy: ServedPolicyConfig) -> Floats:
    scaled = (scores - scores.max()) / policy.temperature
    weights: Floats = np.maximum(np.exp(scaled), _SMALLEST_WEIGHT)
    return weights


def _order(scores: Floats) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.argsort(-scores, kind="stable")
    return order


def _conditional(scores: Floats, position: NDArray[np.int64], policy: ServedPolicyConfig) -> Floats:
    """P(slot's candidate | slots above) of the mixture: the ratio of the probabilities of two prefixes."""
    k, slots = len(scores), len(position)
    left = np.ones(k, dtype=bool)
    uniform, ranked, out = 1.0, 1.0, np.empty(slots)
    weights = _weights(scores, policy) if policy.temperature > 0 else None
    order = _order(scores)
    for s, chosen in enumerate(position.tolist()):
        above = policy.epsilon * uniform + (1.0 - policy.epsilon) * ranked
        uniform /= k - s
        ranked *= float(order[s] == chosen) if weights is None else weights[chosen] / weights[left].sum()
        out[s] = (policy.epsilon * uniform + (1.0 - policy.epsilon) * ranked) / above
        left[chosen] = False
    return out
