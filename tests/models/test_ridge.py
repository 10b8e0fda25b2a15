"""The within-test ridge: exact against scikit-learn, blind to test effects, and never across stories."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as Reference

from recsys.errors import InputError
from recsys.models.ridge import Tests, _Problem, fit_ridge, within


def world(seed: int = 0, tests: int = 300, each: int = 4, dim: int = 12, effect: float = 0.3):
    rng = np.random.default_rng(seed)
    test = np.repeat(np.arange(tests), each)
    x = rng.normal(size=(tests * each, dim))
    level = rng.uniform(0.01, 0.03, tests)[test]  # the test's own rate: image, topic, day
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    truth = rng.normal(size=dim)
    trials = np.full(tests * each, 3000.0)
    clicks = rng.binomial(3000, np.clip(level * np.exp(effect * unit @ truth), 0, 1)).astype(float)
    return x, Tests(test, trials, clicks), test, truth


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 1e4))
def test_primal_and_dual_equal_scikit_learn(rows: int, dim: int, penalty: float):
    rng = np.random.default_rng(rows * 100 + dim)
    x, y, weight = rng.normal(size=(rows, dim)), rng.normal(size=rows), rng.uniform(0.1, 2, rows)
    reference = Reference(alpha=penalty, fit_intercept=False, solver="cholesky").fit(x, y, sample_weight=weight)
    np.testing.assert_allclose(_Problem.of(x, y, weight).weights(penalty), reference.coef_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dim", [3, 60])
def test_folds_of_the_dual_are_those_of_a_fit_on_fewer_rows(dim: int):
    rng = np.random.default_rng(1)
    x, y, weight = rng.normal(size=(40, dim)), rng.normal(size=40), rng.uniform(0.1, 2, 40)
    held = np.arange(40) < 10
    predicted = _Problem.of(x, y, weight).predict(~held, held, (2.0,))[0]
    reference = Reference(alpha=2.0, fit_intercept=False).fit(x[~held], y[~held], sample_weight=weight[~held])
    np.testing.assert_allclose(predicted, x[held] @ reference.coef_, rtol=1e-6)


def test_within_takes_the_weighted_mean_of_each_test_away():
    values, test, weight = np.array([1.0, 3.0, 10.0]), np.array([0, 0, 1]), np.array([1.0, 3.0, 1.0])
    np.testing.assert_allclose(within(values, test, weight), [-1.5, 0.5, 0.0])


def test_it_finds_the_better_text_of_tests_it_has_not_seen():
    x, tests, story, truth = world()
    ridge = fit_ridge(x[:800], Tests(tests.test[:800], tests.trials[:800], tests.successes[:800]), story[:800],
                      (1.0, 10.0, 100.0))
    unit = x[800:] / np.linalg.norm(x[800:], axis=1, keepdims=True)
    assert np.corrcoef(ridge.score(x[800:]), unit @ truth)[0, 1] > 0.9
    assert min(ridge.errors.values()) < 1


def test_noise_gets_the_largest_penalty_and_explains_nothing():
    x, tests, story, _ = world(effect=0.0)
    ridge = fit_ridge(x, tests, story, (1.0, 10.0, 1e6))
    assert ridge.penalty == 1e6
    assert min(ridge.errors.values()) == pytest.approx(1, abs=0.01)


def test_a_giant_coordinate_that_says_nothing_is_scaled_away():
    x, tests, story, _ = world()
    x = np.column_stack([x, np.random.default_rng(5).normal(size=len(x)) * 1e3])
    ridge = fit_ridge(x, tests, story, (1.0, 10.0, 100.0))
    assert ridge.scaling == "variance"


def test_scores_do_not_depend_on_the_tests_own_click_rate():
    x, tests, story, _ = world()
    scaled = Tests(tests.test, tests.trials * 4, tests.successes * 4)
    a, b = (fit_ridge(x, t, story, (10.0,)).score(x) for t in (tests, scaled))
    assert np.corrcoef(a, b)[0, 1] > 0.99


def test_bad_input():
    x, tests, story, _ = world(tests=4)
    with pytest.raises(InputError, match="too few stories"):
        fit_ridge(x, tests, story, (1.0,))
    x, tests, story, _ = world(tests=20)
    with pytest.raises(InputError, match="all content vectors are the same"):
        fit_ridge(np.ones_like(x), tests, story, (1.0,))
