"""The ranker of texts shown to everybody: a within-test weighted ridge on content vectors.

In a randomised test of headlines there is no user to look up; all that can be learned is which text of a test
draws more clicks. So everything is measured against the test itself: the target is the log of a candidate's
(shrunk) click rate over its test's, features and target are centred within the test. This is the fixed-effects
(within) estimator of a panel regression (Wooldridge, Econometric Analysis of Cross Section and Panel Data, section
10.5) with an L2 penalty, which cross-validation on training stories picks; minimising it is minimising the weighted
squared error of the differences between all pairs of a test's candidates.

A candidate's weight is 1 / (t + 1 / its expected clicks): 1 / clicks is the variance of a log rate, and t that of the
true log rates within a test (moments estimator of DerSimonian & Laird 1986, Meta-analysis in Clinical Trials), so
that beyond some clicks more viewers say little more about what makes a text good.

With ``gamma`` > 0 the ridge is one of the Gaussian kernel exp(-gamma / 2 |a - b|^2) of unit vectors in place of their
dot product: it also learns what words do only together (Rasmussen & Williams 2006, Gaussian Processes for Machine
Learning, section 6.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

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
class Features:
    """Vectors [n, d], made of blocks side by side -> unit vectors in which every block has the same length.

    Attributes:
        mean, scale: float64[d], what a vector is centred and divided by.
        widths: lengths of the blocks (layers, poolings, encoders), which add up to d.
    """

    mean: Floats
    scale: Floats
    widths: tuple[int, ...]

    def unit(self, x: NDArray[np.floating]) -> Floats:
        """float64[n, d]; a block that equals its mean is zero."""
        vectors = (np.asarray(x, dtype=np.float64) - self.mean) / self.scale
        for block in np.split(vectors, np.cumsum(self.widths)[:-1], axis=1):
            block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12) * np.sqrt(len(self.widths))
        return np.asarray(vectors)


@dataclass(frozen=True)
class Ridge:
    """A fitted ranker; only differences of its scores within a test mean anything.

    Attributes:
        features: fitted on the training candidates.
        weights: float64[d]; with ``gamma`` > 0 float64[m], one for each of ``support``.
        scaling: ``none`` (scale is 1) or ``variance`` (standard deviation over the training texts), as chosen.
        gamma: of the Gaussian kernel, as chosen; 0: linear.
        penalty: the L2 penalty, as chosen.
        errors: "scaling, gamma, penalty" -> cross-validated weighted squared error, relative to predicting no
            difference.
        support: float[m, d], with ``gamma`` > 0 the candidates that were learned from.
    """

    features: Features
    weights: Floats
    scaling: str
    gamma: float
    penalty: float
    errors: dict[str, float]
    support: NDArray[np.floating] | None = None

    @cached_property
    def _support(self) -> NDArray[np.float32]:
        assert self.support is not None
        return self.features.unit(self.support).astype(np.float32)

    def score(self, x: NDArray[np.floating]) -> Floats:
        """Scores of candidates, float64[n], from vectors [n, d]."""
        if self.gamma == 0:
            return np.asarray(self.features.unit(x) @ self.weights)
        found = [_gaussian(self.features.unit(x[at : at + 4096]).astype(np.float32), self._support, self.gamma)
                 @ self.weights for at in range(0, len(x), 4096)]
        return np.concatenate(found) if found else np.zeros(0)


def _gaussian(a: NDArray[np.float32], b: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    # Of unit vectors |a - b|^2 / 2 is 1 - a b.
    gram = a @ b.T
    gram -= 1
    gram *= np.float32(gamma)
    return np.asarray(np.exp(gram, out=gram))


def within(values: NDArray[np.floating], test: NDArray[np.int64], weight: NDArray[np.floating]) -> Any:
    """Values [n] or [n, d], of their number format, less their weighted mean within each test."""
    count = int(test.max()) + 1
    total = np.bincount(test, weight, count)
    columns = values.reshape(len(values), -1)
    order = np.argsort(test, kind="stable")
    starts = np.searchsorted(test[order], np.arange(count))
    sums = np.add.reduceat((columns * weight[:, None])[order], starts, axis=0)
    means = (sums / np.maximum(total, 1e-12)[:, None]).astype(columns.dtype)
    return np.asarray((columns - means[test]).reshape(values.shape))


def fit_ridge(x: NDArray[np.floating], tests: Tests, story: NDArray[np.int64], penalties: tuple[float, ...],
              seed: int = 0, folds: int = 5, *, widths: tuple[int, ...] | None = None,
              gammas: tuple[float, ...] = (0.0,)) -> Ridge:
    """Fit the ranker; scaling, kernel and penalty are chosen by cross-validation that keeps a story in one fold.

    A few coordinates of a language model's hidden state are a hundred times as large as the rest and say little
    (Sun et al. 2024, Massive Activations in Large Language Models), so dividing each coordinate by its standard
    deviation may help; where rare coordinates are mostly noise, as hashed n-grams are, it may not.

    Args:
        x: [n, d] content vectors of the candidates.
        tests: their outcomes; every test needs at least two candidates with viewers.
        story: int64[n], the independent unit of each candidate.
        penalties: tried from the smallest on, until the error rises; vectors have unit length.
        seed: of the folds.
        folds: number of folds.
        widths: lengths of the blocks that a vector is made of; default: one.
        gammas: tried with the scaling that is best for the first of them.

    Raises:
        InputError: fewer stories than folds, or vectors that do not differ.
    """
    stories, code = np.unique(story, return_inverse=True)
    if len(stories) < folds:
        raise InputError("too few stories to choose a penalty by cross-validation", got=len(stories),
                         expected=f"at least {folds}")
    mean = x.mean(axis=0, dtype=np.float64)
    deviation = x.std(axis=0, dtype=np.float64)
    if not deviation.any():
        raise InputError("all content vectors are the same", got="no variance", expected="vectors that differ")
    widths = widths or (x.shape[1],)
    weight, y = targets(tests)
    held = np.random.default_rng(seed).permutation(len(stories))[code] % folds == np.arange(folds)[:, None]
    errors: dict[tuple[str, float, float], float] = {}
    best: tuple[float, Ridge] | None = None
    scalings = _scalings(deviation, widths, len(x))
    for gamma in gammas:
        for scaling in scalings:
            features = Features(mean, scalings[scaling], widths)
            problem = _Problem.of(features.unit(x), y, weight, tests.test, gamma)
            found = problem.errors(held, sorted(penalties))
            errors |= {(scaling, gamma, p): e for p, e in found.items()}
            penalty = min(found, key=lambda p: found[p])
            if best is None or found[penalty] < best[0]:
                support = x if gamma else None
                best = found[penalty], Ridge(features, problem.weights(penalty), scaling, gamma, penalty, {}, support)
        if gamma == gammas[0] and best is not None:
            scalings = {best[1].scaling: best[1].features.scale}
    assert best is not None
    return replace(best[1], errors={f"{s}, {g:g}, {p:g}": e for (s, g, p), e in errors.items()})


def _scalings(deviation: Floats, widths: tuple[int, ...], rows: int) -> dict[str, Floats]:
    """Scalings to try. Where a block has more coordinates than texts, most deviations are those of a text or two."""
    wide = np.repeat(np.array(widths) >= rows, widths)
    variance = np.where((deviation > 0) & ~wide, deviation, 1.0)
    tried = {"none": np.ones_like(deviation), "variance": variance}
    if wide.all():
        del tried["variance"]
    return {"variance": variance} if len(widths) > 1 and "variance" in tried else tried


def targets(tests: Tests) -> tuple[Floats, Floats]:
    """Weights and within-test log click rates, both float64[n]."""
    clicks = tests.trials * tests.rate
    rate = (tests.successes + PRIOR_CLICKS_TRIALS * tests.rate) / (tests.trials + PRIOR_CLICKS_TRIALS)
    log_rate = np.where(clicks > 0, np.log(np.maximum(rate, 1e-12) / np.maximum(tests.rate, 1e-12)), 0.0)
    weight = clicks / (1 + _between_variance(log_rate, clicks, tests.test) * clicks)
    return weight, within(log_rate, tests.test, weight)


def _between_variance(values: Floats, weight: Floats, test: NDArray[np.int64]) -> float:
    """Variance of the true values within a test, one for all tests: DerSimonian & Laird's, summed over tests."""
    total, squares = np.bincount(test, weight), np.bincount(test, weight**2)
    freedom = (weight > 0).sum() - (total > 0).sum()
    excess = (weight * within(values, test, weight) ** 2).sum() - freedom
    spread = (total - squares / np.maximum(total, 1e-12)).sum()
    return float(max(excess, 0.0) / spread) if spread > 0 else 0.0


@dataclass(frozen=True)
class _Problem:
    """Weighted ridge of features centred within their tests: of ``a`` = sqrt(weight) x and ``b`` = sqrt(weight) y
    where there are more rows than features, else of the Gram matrix a a'.

    Tests lie whole in a fold and are centred one by one, so the folds of the dual are blocks of one Gram matrix.
    """

    a: Floats | None
    gram: NDArray[np.floating]
    b: NDArray[np.floating]
    weight: Floats
    test: NDArray[np.int64]
    dual_of: Floats | None

    @classmethod
    def of(cls, x: Floats, y: Floats, weight: Floats, test: NDArray[np.int64], gamma: float = 0.0) -> _Problem:
        root = np.sqrt(weight)
        if gamma == 0 and x.shape[1] <= x.shape[0]:
            a = within(x, test, weight) * root[:, None]
            return cls(a, a.T @ a, y * root, weight, test, None)
        # Half the memory and time of float64; the smallest penalty keeps the matrix well-conditioned.
        narrow = x.astype(np.float32)
        gram = _gaussian(narrow, narrow, gamma) if gamma else narrow @ narrow.T
        light = weight.astype(np.float32)
        gram = within(within(gram, test, light).T, test, light)
        gram *= np.sqrt(light)[:, None]
        gram *= np.sqrt(light)
        return cls(None, gram, (y * root).astype(np.float32), weight, test, None if gamma else x)

    def errors(self, held: NDArray[np.bool_], penalties: list[float]) -> dict[float, float]:
        """Cross-validated squared error of rising penalties, relative to predicting 0, until it rises.

        Args:
            held: bool[folds, n], the rows of each fold.
            penalties: tried in this order.
        """
        found: dict[float, float] = {}
        nothing = float((self.b**2).sum()) or 1.0
        for penalty in penalties:
            found[penalty] = sum(self._error(~fold, fold, penalty) for fold in held) / nothing
            if len(found) > 1 and found[penalty] > list(found.values())[-2]:
                break
        return found

    def _error(self, fit: NDArray[np.bool_], held: NDArray[np.bool_], penalty: float) -> float:
        return float(((self.b[held] - self.predict(fit, held, penalty)) ** 2).sum())

    def predict(self, fit: NDArray[np.bool_], held: NDArray[np.bool_], penalty: float) -> NDArray[np.floating]:
        """Predictions of sqrt(weight) y for the held-out rows, fitted on the others."""
        if self.a is not None:
            out = self.a[held]
            solved = _solve(self.gram - self.a[~fit].T @ self.a[~fit], self.a[fit].T @ self.b[fit], penalty)
            return np.asarray(out @ solved)
        solved = _solve(self.gram[np.ix_(fit, fit)], self.b[fit], penalty)
        return np.asarray(self.gram[np.ix_(held, fit)] @ solved)

    def weights(self, penalty: float) -> Floats:
        """The ridge solution on all rows: float64[d], or for a Gaussian kernel float64[n]."""
        if self.a is not None:
            return np.asarray(_solve(self.gram.copy(), self.a.T @ self.b, penalty), np.float64)
        spread = np.sqrt(self.weight) * _solve(self.gram.copy(), self.b, penalty)
        # The transpose of centring: what a row's centred features weigh falls on its whole test.
        total = np.bincount(self.test, self.weight)
        on_rows = spread - self.weight * (np.bincount(self.test, spread) / np.maximum(total, 1e-12))[self.test]
        return np.asarray(on_rows if self.dual_of is None else self.dual_of.T @ on_rows)


def _solve(gram: NDArray[np.floating], right: NDArray[np.floating], penalty: float) -> NDArray[np.floating]:
    # One Cholesky factor a penalty: an eigendecomposition would serve all of them, at 25 times the price of one.
    gram[np.diag_indices_from(gram)] += penalty  # the caller's to spend; the transpose is what LAPACK takes as it lies
    factor = cho_factor(gram.T, overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, right, check_finite=False))
