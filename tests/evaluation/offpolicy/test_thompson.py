from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import InputError
from recsys.evaluation.offpolicy.thompson import thompson_marginals, thompson_policy


def test_marginals_against_one_draw_at_a_time():
    """The published recipe draws one slate after another; blocks of draws use the generator in the same order."""
    alpha, beta = np.array([2.0, 5.0, 3.0, 1.0]), np.array([20.0, 40.0, 25.0, 30.0])
    rng, counts = np.random.RandomState(7), np.zeros((4, 3))
    for _ in range(500):
        counts[rng.beta(alpha, beta).argsort()[::-1][:3], np.arange(3)] += 1
    made = thompson_marginals(alpha, beta, draws=500, seed=7)
    assert made == pytest.approx(counts / 500)
    assert made.sum(axis=0) == pytest.approx(np.ones(3))


def test_policy_takes_the_column_of_its_slot_in_the_logs_order():
    marginals = np.array([[0.7, 0.2], [0.3, 0.8]])
    log = pa.table({"request_id": ["z", "a", "z"], "slot": pa.array([1, 0, 1], pa.int32())})
    made = thompson_policy(log, pa.array(["x", "y"]), marginals)
    assert made.to_pylist() == [
        {"request_id": "z", "slot": 1, "ad_id": "x", "probability": 0.2},
        {"request_id": "z", "slot": 1, "ad_id": "y", "probability": 0.8},
        {"request_id": "a", "slot": 0, "ad_id": "x", "probability": 0.7},
        {"request_id": "a", "slot": 0, "ad_id": "y", "probability": 0.3}]
    with pytest.raises(InputError, match="slot beyond"):
        thompson_policy(log, pa.array(["x", "y"]), marginals[:, :1])
    with pytest.raises(InputError, match="prior not allowed"):
        thompson_marginals([1.0, -1.0], [1.0, 1.0])
