from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import Refused
from recsys.evaluation.aa import aa_of_sums
from tests.evaluation.test_growth import report


def test_a_ratio_keeps_its_level_and_too_few_units_are_refused() -> None:
    rng = np.random.default_rng(0)
    below = rng.poisson(5, 2000) + 1.0
    made = aa_of_sums(rng.poisson(0.2 * below).astype(float), below, draws=600)
    assert made["ok"]
    assert made["low"] <= made["rejected"] <= made["high"]
    assert made["uniformity_p"] > 1e-3
    with pytest.raises(Refused, match="at least 20"):
        aa_of_sums(below[:10], below[:10])


def test_one_unit_that_is_half_of_everything_breaks_the_level() -> None:
    rng = np.random.default_rng(1)
    a = rng.exponential(1, 400)
    a[0] = 4000.0
    assert not aa_of_sums(a, np.ones(400), draws=600)["ok"]


def test_the_report_tries_its_own_errors_and_says_what_the_model_saved() -> None:
    lift = report(None, 1500)
    assert lift["aa"]["good"]["ok"]
    assert lift["aa"]["good"]["alpha"] == 0.05
    assert lift["aa"]["good"]["units"] == 1500
    raw = lift["arms"]["good"]["unadjusted"]
    assert raw["estimator"] == "ips"
    assert raw["se"] > 0
    assert raw["variance_reduction"] == pytest.approx(1 - (lift["arms"]["good"]["se"] / raw["se"]) ** 2, abs=0.1)
    assert raw["lift"]["low"] < lift["arms"]["good"]["lift"]["estimate"] < raw["lift"]["high"]
    assert "unadjusted" not in lift["arms"]["logged"]
