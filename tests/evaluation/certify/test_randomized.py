"""Randomised designs: their truth is the truth, and few clicks are not taken for many."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.evaluation.certify import judge
from recsys.evaluation.certify.randomized import (
    LIFT,
    RandomizedCell,
    draw_arms,
    draw_tests,
    measure_randomized,
    randomized_cells,
    true_choice,
)
from recsys.evaluation.randomized import picked, value_per_test


def test_the_truths_are_those_of_large_samples():
    cell = RandomizedCell("ab", 0.02, 400_000, 0.3, 0, 1, 3)
    units = draw_arms(cell, np.random.default_rng(0))
    rate = {a: units.of(a, "click").sum() / units.of(a, "rows").sum() for a in units.arms}
    assert rate["a"] == pytest.approx(0.02, rel=0.01)
    assert rate["b"] / rate["a"] - 1 == pytest.approx(LIFT, abs=0.015)
    assert (units.arm == 1).mean() == pytest.approx(0.3, abs=0.01)
    cell = RandomizedCell("choice", 0.01, 60_000, 0.5, 500, 1, 3)
    tests, score = draw_tests(cell, np.random.default_rng(0))
    values = [value_per_test(tests, picked(tests, s)).mean() for s in (score, None)]
    assert values[0] / values[1] - 1 == pytest.approx(true_choice(cell), abs=0.01)
    assert 1.5 < len(tests.size) / (tests.cluster.max() + 1) < 2.5


def test_few_clicks_of_randomised_candidates_are_exploratory_and_covered():
    """Twenty clicks in 400 tests: Student's t called that confirmatory and held the truth in 92 of 100."""
    few = measure_randomized(RandomizedCell("choice", 0.001, 400, 0.5, 50, 60, 2))
    assert few["facts"]["clicks"] < 30
    assert set(few["chosen"]) == {"betting, exploratory"}
    assert few["methods"]["default"]["coverage"] >= 0.95
    many = measure_randomized(RandomizedCell("choice", 0.015, 400, 0.5, 1_500, 60, 2))
    assert set(many["chosen"]) == {"t, confirmatory"}
    assert judge.covers(many, "default")


def test_hardly_any_click_is_refused():
    none = measure_randomized(RandomizedCell("choice", 0.0001, 60, 0.5, 50, 25, 2))
    assert sum(n for name, n in none["chosen"].items() if name.startswith("refused")) == 25
    assert none["methods"] == {}


def test_the_grid_has_low_click_rates_and_uneven_splits():
    cells = randomized_cells(10, 2)
    assert {(c.design, c.ctr) for c in cells} >= {("ab", 0.001), ("choice", 0.001)}
    assert {c.share for c in cells if c.design == "ab"} == {0.5, 0.1}
    assert len(set(cells)) == len(cells)
