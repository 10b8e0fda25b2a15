"""The within-test ridge: exact against scikit-learn, blind to test effects, and never across stories."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as Reference

from recsys.errors import InputError
from recsys.models.ridge import Tests, _between_variance, _Problem, fit_ridge, targets, within


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
    test = np.sort(rng.integers(0, 3, rows))
    test = np.unique(test, return_inverse=True)[1]
    reference = Reference(alpha=penalty, fit_intercept=False, solver="cholesky").fit(
        within(x, test, weight), y, sample_weight=weight)
    close = {"rtol": 1e-6, "atol": 1e-9} if dim <= rows else {"rtol": 1e-3, "atol": 1e-4}  # the dual is in float32
    np.testing.assert_allclose(_Problem.of(x, y, weight, test).weights(penalty), reference.coef_, **close)


@pytest.mark.parametrize("dim", [3, 60])
def test_folds_of_the_dual_are_those_of_a_fit_on_fewer_rows(dim: int):
    rng = np.random.default_rng(1)
    x, y, weight = rng.normal(size=(40, dim)), rng.normal(size=40), rng.uniform(0.1, 2, 40)
    held, test = np.arange(40) < 10, np.arange(40) // 5
    predicted = _Problem.of(x, y, weight, test).predict(~held, held, 2.0)
    x = within(x, test, weight)
    reference = Reference(alpha=2.0, fit_intercept=False).fit(x[~held], y[~held], sample_weight=weight[~held])
    np.testing.assert_allclose(predicted, np.sqrt(weight[held]) * (x[held] @ reference.coef_), rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_kernel_ridge_equals_a_ridge_on_the_kernels_own_features(gamma: float):
    x, tests, story, _ = world(tests=60)
    ridge = fit_ridge(x, tests, story, (3.0,), gammas=(gamma,), widths=(8, 4))
    weight, y = targets(tests)
    unit = ridge.features.unit(np.concatenate([x, x[:7] + 0.1]))
    kernel = np.exp(-gamma / 2 * ((unit[:, None] - unit[None]) ** 2).sum(2))
    values, vectors = np.linalg.eigh(kernel)  # explicit features of the kernel: their dot products are its entries
    features = vectors * np.sqrt(np.maximum(values, 0))
    rows = len(x)
    reference = Reference(alpha=3.0, fit_intercept=False).fit(within(features[:rows], tests.test, weight), y,
                                                              sample_weight=weight)
    want, got = features @ reference.coef_, ridge.score(np.concatenate([x, x[:7] + 0.1]))
    np.testing.assert_allclose(got - got.mean(), want - want.mean(), atol=2e-3 * np.ptp(want))


def test_a_kernel_is_chosen_where_words_work_only_together():
    rng = np.random.default_rng(3)
    test = np.repeat(np.arange(400), 4)
    x = rng.choice([-1.0, 1.0], size=(1600, 3))
    clicks = rng.binomial(3000, 0.02 * np.exp(0.4 * x[:, 0] * x[:, 1])).astype(float)
    ridge = fit_ridge(x, Tests(test, np.full(1600, 3000.0), clicks), test, (1.0, 10.0, 100.0), gammas=(0.0, 1.0))
    assert ridge.gamma == 1.0
    assert min(e for k, e in ridge.errors.items() if ", 0, " in k) > 0.95 > 0.5 > min(ridge.errors.values())
    assert ridge.score(np.array([[1.0, 1, 1], [-1, -1, 1]])).min() > ridge.score(np.array([[1.0, -1, 1]]))[0]


def test_every_block_weighs_the_same_whatever_its_scale():
    x, tests, story, _ = world()
    a = fit_ridge(x, tests, story, (10.0,), widths=(6, 6))
    b = fit_ridge(x * np.repeat([1.0, 1e4], 6), tests, story, (10.0,), widths=(6, 6))
    np.testing.assert_allclose(a.score(x), b.score(x * np.repeat([1.0, 1e4], 6)), rtol=1e-6)
    norms = np.linalg.norm(a.features.unit(x).reshape(len(x), 2, 6), axis=2)
    np.testing.assert_allclose(norms, np.sqrt(0.5))


@pytest.mark.parametrize("truth", [0.0, 0.04, 0.2])
def test_variance_within_tests_is_found_beneath_the_noise(truth: float):
    rng = np.random.default_rng(8)
    test = np.repeat(np.arange(3000), 4)
    weight = rng.uniform(10, 100, len(test))
    values = rng.normal(size=3000)[test] + rng.normal(0, np.sqrt(truth + 1 / weight))
    assert _between_variance(values, weight, test) == pytest.approx(truth, rel=0.05, abs=0.003)
