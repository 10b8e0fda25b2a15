"""Slot probabilities against enumeration and Monte Carlo."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.auction import sample_slots, slot_marginals
from recsys.errors import InputError


def enumerate_marginals(weights: np.ndarray, slots: int) -> np.ndarray:
    """The definition: a sum over every ordered choice."""
    out = np.zeros((slots, len(weights)))
    for order in permutations(np.flatnonzero(weights > 0), slots):
        left, chance = weights.sum(), 1.0
        for candidate in order:
            chance *= weights[candidate] / left
            left -= weights[candidate]
        for slot, candidate in enumerate(order):
            out[slot, candidate] += chance
    return out


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 50.0), min_size=3, max_size=7), st.integers(1, 3), st.booleans())
def test_marginals_match_enumeration(weights: list[float], slots: int, padded: bool) -> None:
    w = np.array(weights + [0.0] * padded)
    np.testing.assert_allclose(slot_marginals(w[None], slots)[0], enumerate_marginals(w, slots), rtol=1e-9, atol=1e-12)


def test_marginals_match_monte_carlo() -> None:
    rng = np.random.default_rng(5)
    weights = rng.gamma(0.5, size=6)
    draws = 200_000
    shown = sample_slots(np.tile(weights, (draws, 1)), 3, rng)
    for slot in range(3):
        seen = np.bincount(shown[:, slot], minlength=6) / draws
        exact = slot_marginals(weights[None], 3)[0, slot]
        assert (np.abs(seen - exact) < 4.5 * np.sqrt(exact * (1 - exact) / draws) + 1e-9).all()


def test_marginals_keep_their_digits_when_one_candidate_takes_all() -> None:
    weights = np.array([[1.0, 1e-20, 1e-20, 2e-20]])
    marginals = slot_marginals(weights, 3)[0]
    np.testing.assert_allclose(marginals.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(marginals[1], [0.0, 0.25, 0.25, 0.5], atol=1e-12)
    # Third: after candidate 0 and one of the others.
    np.testing.assert_allclose(marginals[2, 1], 0.25 * (1 / 3) + 0.5 * (1 / 2), rtol=1e-9)


def test_many_rows_are_the_same_as_one_by_one() -> None:
    weights = np.random.default_rng(0).gamma(0.3, size=(50_000, 10)) + 1e-6
    whole = slot_marginals(weights, 3)
    np.testing.assert_allclose(whole[-1], slot_marginals(weights[-1:], 3)[0], rtol=1e-12)
    np.testing.assert_allclose(whole.sum(axis=2), 1.0, rtol=1e-9)


@pytest.mark.parametrize(("weights", "slots", "words"), [
    ([[1.0, 2.0]], 4, "number of slots"), ([[1.0, 0.0]], 2, "fewer candidates than slots"),
    ([[1.0, -1.0]], 1, "weight not allowed"), ([[1.0, np.nan]], 1, "weight not allowed"), ([1.0, 2.0], 1, "matrix"),
])
def test_bad_weights_are_refused(weights: list, slots: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        slot_marginals(np.array(weights), slots)
