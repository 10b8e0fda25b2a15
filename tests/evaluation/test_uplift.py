from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError, Refused
from recsys.evaluation.uplift import qini_curve, uplift_at, uplift_curve, uplift_report


def made(n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    i = np.arange(n)
    score = np.round(((i * 37) % 41) / 41, 1)
    treated = ((i * 7) % 5 < 2).astype(int)
    return ((i * 11) % 13 < 4 + 3 * treated * (score > 0.5)).astype(int), treated, score


def test_areas_of_scikit_uplift():
    """scikit-uplift 0.5.1 on the same rows, its counts divided by n; ties in the score are one step in both."""
    outcome, treated, score = made()
    assert uplift_curve(outcome, treated, score).area == pytest.approx(0.0936371735902986, rel=1e-9)
    assert qini_curve(outcome, treated, score).area == pytest.approx(0.03364919282106782, rel=1e-9)


def test_by_hand():
    """Treated 1, 0; untreated 0, 1, best score first: after two rows 1 treated click; in the end 1 - 1 * 2 / 2."""
    outcome, treated, score = [1, 0, 0, 1], [1, 0, 1, 0], [4, 3, 2, 1]
    assert qini_curve(outcome, treated, score).gain == pytest.approx([0, 0.25, 0.25, 0.25, 0])
    assert uplift_curve(outcome, treated, score).gain == pytest.approx([0, 0.25, 0.5, 0.375, 0])
    assert uplift_at(outcome, treated, score, 0.5) == 1.0


@given(seed=st.integers(0, 10_000))
def test_order_of_rows_and_scale_of_scores_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    outcome, treated, score = made()
    at = rng.permutation(len(score))
    for curve in (qini_curve, uplift_curve):
        assert curve(outcome[at], treated[at], np.exp(score[at])).area == pytest.approx(
            curve(outcome, treated, score).area)


def test_a_good_score_is_found_and_a_random_one_is_not():
    rng = np.random.default_rng(0)
    effect, treated = rng.uniform(0, 0.3, 20_000), rng.integers(0, 2, 20_000)
    outcome = (rng.random(20_000) < 0.2 + effect * treated).astype(float)
    good = uplift_report(outcome, treated, effect, draws=60)
    noise = uplift_report(outcome, treated, rng.random(20_000), draws=60)
    assert good["qini"]["low"] > 0
    assert good["auuc"]["low"] > 0
    assert noise["qini"]["low"] < 0 < noise["qini"]["high"]
    assert good["uplift_at_10"] > good["uplift_at_30"] > good["uplift"] > 0.1


def test_bad_columns_are_named():
    with pytest.raises(InputError, match="columns do not match"):
        qini_curve([1, 0], [1], [1, 2])
    with pytest.raises(InputError, match="column treated, row 1"):
        qini_curve([1, 0], [1, 2], [1, 2])
    with pytest.raises(InputError, match="column score, row 0"):
        uplift_curve([1, 0], [1, 0], [np.nan, 2])
    with pytest.raises(Refused, match="treated and untreated"):
        qini_curve([1, 0], [1, 1], [1, 2])
    with pytest.raises(Refused, match="larger share"):
        uplift_at([1, 0], [1, 0], [2, 1], 0.5)
    with pytest.raises(InputError, match="column share"):
        uplift_at([1, 0], [1, 0], [2, 1], 0)
