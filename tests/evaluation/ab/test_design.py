from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import InputError, Refused
from recsys.evaluation.ab.design import aa_test, detectable_lift, units_per_arm
from recsys.evaluation.ab.units import Metric, read_units
from tests.evaluation.ab.samples import exposures, units_of, written


@pytest.mark.parametrize(("base", "lift", "units"), [
    (0.20, 0.25, 1_092), (0.0035, 0.0050 / 0.0035 - 1, 29_294), (0.0035, 0.10, 468_935), (0.0035, 0.05, 1_832_007)])
def test_power_known_answers(base, lift, units):
    assert units_per_arm(base, lift) == units
    assert detectable_lift(base, units) == pytest.approx(lift, rel=1e-3)


def test_power_of_a_loss_and_of_more_power():
    assert units_per_arm(0.2, -0.25) > units_per_arm(0.2, 0.25) * 0.5
    assert units_per_arm(0.2, 0.25, power=0.9) > 1_092
    assert units_per_arm(0.2, 0.25, alpha=0.01) > 1_092


def test_bad_power_settings():
    for base, lift in ((0.0, 0.1), (1.2, 0.1), (0.6, 0.9), (0.2, -1.0), (0.2, 0.0)):
        with pytest.raises(InputError, match="setting not allowed"):
            units_per_arm(base, lift)
    assert units_per_arm(0.5, 3e-6) > 1e12  # the smallest effects are still found
    for base, lift in ((1e-12, 1e-9), (0.3, 1e-17), (1e-300, 1e-3), (0.5, 1e-9)):
        with pytest.raises(Refused, match="than any experiment has"):
            units_per_arm(base, lift)
    with pytest.raises(InputError, match="column units"):
        detectable_lift(0.2, 1)
    with pytest.raises(Refused, match="take more units"):
        detectable_lift(0.9, 4)


def test_aa_keeps_its_level_by_user_and_not_by_impression(tmp_path):
    metric = Metric("click", "rows")
    units = read_units(written(tmp_path, exposures(3000)), "arm", "user_id", [metric])
    made = aa_test(units, metric, draws=1000)
    assert made["ok"]
    assert made["uniformity_p"] > 1e-3
    assert made["low"] <= made["rejected"] <= made["high"]
    assert 0.03 < made["low"] < 0.05 < made["high"] < 0.07
    assert aa_test(units, metric, draws=1000) == made


def test_aa_finds_a_test_that_does_not_keep_its_level():
    """One unit holds nearly everything: the t test is far from its level, and says so."""
    x = np.zeros(200)
    x[:2] = (1e6, 5e5)
    assert not aa_test(units_of({"a": x[::2], "b": x[1::2]}), Metric("x"), draws=500)["ok"]
    with pytest.raises(Refused, match="at least 20"):
        aa_test(units_of({"a": np.ones(5), "b": np.ones(5)}), Metric("x"))
