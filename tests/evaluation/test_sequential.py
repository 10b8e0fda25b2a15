from __future__ import annotations

import numpy as np
import pytest

from recsys.evaluation.sequential import always_valid_multiplier, always_valid_p


def test_always_valid_p_inverts_its_interval_and_survives_peeking() -> None:
    for units in (10, 500, 5000, 10**6):
        edge = always_valid_multiplier(units, 0.05, 5000)
        assert always_valid_p(edge, units, 0.05, 5000) == pytest.approx(0.05)
    # 400 null streams, looked at 30 times each between 200 and 6,000 units: fixed tests err often, this one seldom.
    rng = np.random.default_rng(0)
    units = np.arange(200, 6001, 200)
    z = rng.normal(size=(400, 6000)).cumsum(axis=1)[:, units - 1] / np.sqrt(units)
    ever = np.array([[always_valid_p(float(v), int(n), 0.05, 5000) < 0.05
                      for v, n in zip(row, units, strict=True)] for row in z]).any(axis=1)
    assert (np.abs(z) > 1.96).any(axis=1).mean() > 0.15
    assert ever.mean() <= 0.05
