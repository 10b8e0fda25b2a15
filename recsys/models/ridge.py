"""The ranker of texts shown to everybody: a within-test weighted ridge on content vectors.

In a randomised test of headlines there is no user to look up; all that can be learned is which text of a test
draws more clicks. So everything is measured against the test itself: the target is the log of a candidate's
(shrunk) click rate over its test's, features and target are centred within the test, and a candidate counts by its
expected clicks, the inverse variance of a log rate. This is the fixed-effects (within) estimator of a panel
regression (Wooldridge, Econometric Analysis of Cross Section and Panel Data, section 10.5) with an L2 penalty,
which cross-validation on training stories picks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from recsys.errors import InputError

Floats = NDArray[np.float64]
PRIOR_CLICKS_TRIALS = 20.0  # pseudo-viewers that click at the test's own rate: keeps log(0) out, moves little else


@dataclass(frozen=True)
class Tests:
    """n candidates of T tests: ``test`` int64[n] codes 0..T-1, ``trials`` and ``successes`` float64[n]."""

    __test__ = False  # not a pytest class

    test: NDArray[np.int64]
    trials: Floats
    successes: Floats

    @property
    def rate(self) -> Floats:
        """Pooled click rate of each candidate's test, float64[n]."""
        count = int(self.test.max()) + 1
        clicks = np.bincount(self.test, self.successes, count)
        return np.asarray((clicks / np.maximum(np.bincount(self.test, self.trials, count), 1.0))[self.test])


@dataclass(frozen=True)
class Ridge:
    """A fitted ranker: ``score = (x - mean) @ weights``; only differences within a test mean anything.

    Attributes:
        mean, scale: float64[d], what a vector is centred and divided by before it is brought to unit length.
        weights: float64[d].
        scaling: ``none`` (scale is 1) or ``variance`` (standard deviation over the training texts), as chosen.
        penalty: the L2 penalty, as chosen.
        errors: "scaling, penalty" -> cross-validated weighted squared error, relative to predicting no difference.
    """

    mean: Floats
    scale: Floats
    weights: Floats
    scaling: str
    penalty: float
    errors: dict[str, float]

    def score(self, x: NDArray[np.floating]) -> Floats:
        """Scores of candidates, float64[n], from vectors [n, d]."""
        return np.asarray(_unit(x, self.mean, self.scale) @ self.weights)


def _unit(x: NDArray[np.floating], mean: Floats, scale: Floats) -> Floats:
    vectors = (np.asarray(x, dtype=np.float64) - mean) / scale
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def within(values: Floats, test: NDArray[np.int64], weight: Floats) -> Floats:
    """Values [n] or [n, d] less their weighted mean within each test."""
    count = int(test.max()) + 1
    total = np.bincount(test, weight, count)
    columns = values.reshape(len(values), -1)
    order = np.argsort(test, kind="stable")
    starts = np.searchsorted(test[order], np.arange(count))
    sums = np.add.reduceat((columns * weight[:, None])[order], starts, axis=0)
    means = sums / np.maximum(total, 1e-12)[:, None]
    return np.asarray((columns - means[test]).reshape(values.shape))


def fit_ridge(x: NDArray[np.floating], tests: Tests, story: NDArray[np.int64], penalties: tuple[float, ...],
              seed: int = 0, folds: int = 5) -> Ridge:
    """Fit the ranker; scaling and penalty are chosen by cross-validation that keeps a story in one fold.

    A few coordinates of a language model's hidden state are a hundred times as large as the rest and say little
    (Sun et al. 2024, Massive Activations in Large Language Models), so dividing each coordinate by its standard
    deviation may help; where rare coordinates are mostly noise, as hashed n-grams are, it may not.

    Args:
        x: [n, d] content vectors of the candidates.
        tests: their outcomes; every test needs at least two candidates with viewers.
        story: int64[n], the independent unit of each candidate.
        penalties: tried; vectors have unit length and a candidate weighs its expected clicks.
        seed: of the folds.
        folds: number of folds.

    Raises:
        InputError: fewer stories than folds, or vectors that do not differ.
    """
    stories, code = np.unique(story, return_inverse=True)
    if len(stories) < folds:
        raise InputError("too few stories to choose a penalty by cross-validation", got=len(stories),
                         expected=f"at least {folds}")
    x = np.asarray(x, dtype=np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    if not deviation.any():
        raise InputError("all content vectors are the same", got="no variance", expected="vectors that differ")
    scales = {"none": np.ones_like(mean)}
    if x.shape[0] > x.shape[1]:  # with more coordinates than texts, most deviations are those of a text or two
        scales["variance"] = np.where(deviation > 0, deviation, 1.0)
    weight, y = _target(tests)
    fold = np.random.default_rng(seed).permutation(len(stories))[code] % folds
    nothing = float((weight * y**2).sum()) or 1.0
    errors: dict[tuple[str, float], float] = {}
    problems: dict[str, _Problem] = {}
    for scaling, scale in scales.items():
        problem = problems[scaling] = _Problem.of(within(_unit(x, mean, scale), tests.test, weight), y, weight)
        found = np.zeros(len(penalties))
        for k in range(folds):
            held = fold == k
            for at, predicted in enumerate(problem.predict(~held, held, penalties)):
                found[at] += (weight[held] * (y[held] - predicted) ** 2).sum()
        errors |= {(scaling, p): float(e / nothing) for p, e in zip(penalties, found, strict=True)}
    scaling, penalty = min(errors, key=lambda k: errors[k])
    weights = problems[scaling].weights(penalty)
    return Ridge(mean, scales[scaling], weights, scaling, penalty, {f"{s}, {p:g}": e for (s, p), e in errors.items()})


def _target(tests: Tests) -> tuple[Floats, Floats]:
    """Weights (expected clicks) and within-test log click rates, both float64[n]."""
    weight = tests.trials * tests.rate
    rate = (tests.successes + PRIOR_CLICKS_TRIALS * tests.rate) / (tests.trials + PRIOR_CLICKS_TRIALS)
    log_rate = np.where(weight > 0, np.log(np.maximum(rate, 1e-12) / np.maximum(tests.rate, 1e-12)), 0.0)
    return weight, within(log_rate, tests.test, weight)


@dataclass(frozen=True)
class _Problem:
    """Weighted ridge: a = sqrt(weight) x, b = sqrt(weight) y, and for the dual (n < d) the Gram matrix a a'.

    Tests lie whole in a fold and are centred one by one, so the folds of the dual are blocks of one Gram matrix.
    """

    x: Floats
    root: Floats
    a: Floats
    b: Floats
    gram: Floats | None

    @classmethod
    def of(cls, x: Floats, y: Floats, weight: Floats) -> _Problem:
        root = np.sqrt(weight)
        a = x * root[:, None]
        return cls(x, root, a, y * root, a @ a.T if a.shape[0] < a.shape[1] else None)

    def predict(self, fit: NDArray[np.bool_], held: NDArray[np.bool_], penalties: tuple[float, ...]) -> list[Floats]:
        """Predictions of the held-out rows for each penalty, fitted on the others."""
        if self.gram is None:
            gram, right = self.a[fit].T @ self.a[fit], self.a[fit].T @ self.b[fit]
            return [self.x[held] @ _solve(gram, right, p) for p in penalties]
        gram, cross = self.gram[np.ix_(fit, fit)], self.gram[np.ix_(held, fit)]
        root = self.root[held]
        scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)[:, None]
        return [(cross * scale) @ _solve(gram, self.b[fit], p) for p in penalties]

    def weights(self, penalty: float) -> Floats:
        """The ridge solution on all rows, float64[d]."""
        if self.gram is None:
            return _solve(self.a.T @ self.a, self.a.T @ self.b, penalty)
        return np.asarray(self.a.T @ _solve(self.gram, self.b, penalty))


def _solve(gram: Floats, right: Floats, penalty: float) -> Floats:
    # One Cholesky factor a penalty: an eigendecomposition would serve all of them, at 25 times the price of one.
    shifted = gram.copy()
    np.fill_diagonal(shifted, shifted.diagonal() + penalty)
    factor = cho_factor(shifted, overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, right, check_finite=False))
