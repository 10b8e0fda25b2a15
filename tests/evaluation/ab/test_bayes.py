from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from recsys.errors import InputError
from recsys.evaluation.ab.bayes import beta_binomial


def test_beta_binomial():
    """Exact: for uniform priors and a = 0 of 1, b = 1 of 1, P(b > a) = 5/6; the interval by simulation."""
    made = beta_binomial(0, 1, 1, 1)
    assert made["chance_to_beat"] == pytest.approx(5 / 6, abs=1e-9)
    big = beta_binomial(10_000, 100_000, 10_500, 100_000)
    assert big["relative_low"] < 0.05 < big["relative_high"]
    one, two = beta(10_001, 90_001), beta(10_501, 89_501)
    normal = (two.mean() - one.mean()) / np.sqrt(one.var() + two.var())
    assert big["chance_to_beat"] == pytest.approx(0.5 * (1 + math.erf(normal / np.sqrt(2))), abs=1e-4)
    with pytest.raises(InputError, match="counts not allowed"):
        beta_binomial(5, 4, 1, 4)


@settings(max_examples=10)
@given(a=st.integers(0, 30), b=st.integers(0, 30))
def test_beta_binomial_is_antisymmetric(a, b):
    there, back = beta_binomial(a, 30, b, 30, draws=10), beta_binomial(b, 30, a, 30, draws=10)
    assert there["chance_to_beat"] + back["chance_to_beat"] == pytest.approx(1, abs=1e-6)
