"""Policies among randomised candidates: which headline of a test would each arm have picked, and how did it do?

A test shows its candidates to randomly split viewers, so the click rate of each candidate is known without
importance weights. The value of a policy is the mean over tests of the click rate of the candidate it picks; the
uniform choice earns the mean click rate of the test's candidates. Tests of one story are one cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from recsys.contracts import IMPRESSIONS, validate
from recsys.errors import InputError, Refused
from recsys.evaluation.columns import encode, require_column
from recsys.evaluation.intervals import Floats


@dataclass(frozen=True)
class Tests:
    """Randomised tests with at least two candidates that were shown; n rows, T tests.

    Attributes:
        rows: int64[n], the rows of the table that are evaluated.
        test: int64[n], codes 0..T-1.
        size: int64[T], candidates of each test.
        trials: int64[n], viewers; ``successes`` int64[n], clicks.
        cluster: int64[T], code of the test's independent unit.
        dropped: rows of the table left aside (no viewers, or alone in their test).
    """

    __test__ = False  # not a pytest class

    rows: NDArray[np.int64]
    test: NDArray[np.int64]
    size: NDArray[np.int64]
    trials: NDArray[np.int64]
    successes: NDArray[np.int64]
    cluster: NDArray[np.int64]
    dropped: int

    @property
    def rate(self) -> Floats:
        """Click rate of each row, float64[n]."""
        return self.successes / self.trials


def read_tests(table: pa.Table, unit: str = "group_id") -> Tests:
    """Check an aggregated IMPRESSIONS table and find its tests.

    Args:
        table: IMPRESSIONS with trials and successes; one row per (request_id, ad_id), a request being a test.
        unit: column of the independent unit (the story); constant within a test.

    Raises:
        InputError: a column is missing, a test lies in two units, a candidate stands twice in a test.
        Refused: no test has two candidates with viewers.
    """
    if table.num_rows == 0:
        raise InputError("no rows", file="test", got="0 rows", expected="at least one test")
    table = validate(table, IMPRESSIONS, "test")
    for name in dict.fromkeys(("trials", "successes", unit)):
        require_column(table, name, "test")
    request, ad = encode(table.column("request_id"))[1], encode(table.column("ad_id"))[1]
    pairs, first = np.unique(request * (int(ad.max()) + 1) + ad, return_index=True)
    if len(pairs) < len(ad):
        row = int(np.setdiff1d(np.arange(len(ad)), first)[0])
        raise InputError("candidate stands twice in a test", file="test", column="ad_id", row=row,
                         got=table.column("ad_id")[row].as_py(), expected="one pooled row per (request_id, ad_id)")
    trials, successes = (table.column(n).to_numpy() for n in ("trials", "successes"))
    shown = trials > 0
    rows = np.flatnonzero(shown & (np.bincount(request, shown)[request] >= 2))
    if not len(rows):
        raise Refused("no test has two candidates with viewers: there is no choice to evaluate")
    test = np.unique(request[rows], return_inverse=True)[1].astype(np.int64)
    unit_code = encode(table.column(unit))[1][rows]
    cluster = np.zeros(int(test.max()) + 1, dtype=np.int64)
    cluster[test] = unit_code
    if (cluster[test] != unit_code).any():
        row = int(rows[np.argmax(cluster[test] != unit_code)])
        raise InputError("a test lies in two units", file="test", column=unit, row=row,
                         got=table.column(unit)[row].as_py(), expected="one value in all rows of a request_id")
    return Tests(rows, test, np.bincount(test), trials[rows], successes[rows],
                 np.unique(cluster, return_inverse=True)[1].astype(np.int64), table.num_rows - len(rows))


def picked(tests: Tests, scores: ArrayLike | None, name: str = "arm") -> Floats:
    """Probability with which an arm picks each row: its highest score in the test, shared evenly among ties.

    Args:
        tests: n rows.
        scores: one number per row of the table the tests were read from; None picks uniformly.
        name: the arm, for the error.

    Returns:
        float64[n]; sums to 1 within a test.
    """
    if scores is None:
        return 1.0 / tests.size[tests.test]
    values = np.asarray(scores, dtype=np.float64)
    wanted = len(tests.rows) + tests.dropped
    if values.shape != (wanted,):
        raise InputError("scores do not match the table", file=f"arm {name}", got=values.shape, expected=f"({wanted},)")
    values = values[tests.rows]
    if not np.isfinite(values).all():
        at = int(np.argmax(~np.isfinite(values)))
        raise InputError("score is not a number", file=f"arm {name}", row=int(tests.rows[at]), got=float(values[at]),
                         expected="a finite score for every candidate with viewers")
    best = np.full(len(tests.size), -np.inf)
    np.maximum.at(best, tests.test, values)
    top = values == best[tests.test]
    share: Floats = top / np.bincount(tests.test, top)[tests.test]
    return share


def value_per_test(tests: Tests, pick: Floats, rate: Floats | None = None) -> Floats:
    """Expected click rate of what an arm picks in each test: float64[T]."""
    value: Floats = np.bincount(tests.test, pick * (tests.rate if rate is None else rate)).astype(np.float64)
    return value


def click_squares(tests: Tests, pick: Floats) -> Floats:
    """Sum of the squares of what each click counts in :func:`value_per_test`: float64[T].

    A click of a row counts pick / viewers there; (sum of values)^2 over the sum of these is the effective number of
    clicks that a mean of values rests on.
    """
    squares: Floats = np.bincount(tests.test, (pick / tests.trials) ** 2 * tests.successes).astype(np.float64)
    return squares


def oracle_lift(tests: Tests, draws: int = 20, seed: int = 0) -> dict[str, float]:
    """How much there is to gain: the lift over uniform of choosing the truly best candidate, from below and above.

    ``thinned``: each candidate's viewers are split at random into halves; the better half-one rate is chosen and
    half two is read (unbiased for that chooser, which has half the data, so a lower bound for a perfect one).
    ``noisy``: choosing and reading on the same data, which flatters the chooser (an upper bound).

    Args:
        tests: n rows.
        draws: random splits averaged.
        seed: of the splits.
    """
    rng = np.random.default_rng(seed)
    uniform = picked(tests, None)
    half = tests.trials // 2
    usable = half > 0
    lifts = []
    for _ in range(draws):
        one = rng.hypergeometric(tests.successes, tests.trials - tests.successes, half)
        rate_one = np.where(usable, one / np.maximum(half, 1), 0.0)
        rate_two = (tests.successes - one) / (tests.trials - half)
        everywhere = np.full(len(tests.rows) + tests.dropped, -np.inf)
        everywhere[tests.rows] = rate_one
        pick = picked(tests, everywhere)
        lifts.append(value_per_test(tests, pick, rate_two).mean() / value_per_test(tests, uniform, rate_two).mean() - 1)
    everywhere[tests.rows] = tests.rate
    noisy = value_per_test(tests, picked(tests, everywhere)).mean() / value_per_test(tests, uniform).mean() - 1
    return {"thinned": float(np.mean(lifts)), "noisy": float(noisy)}


def week_in_broken_window(weeks: pa.ChunkedArray, first: int = 201325, last: int = 201401) -> NDArray[np.bool_]:
    """Rows of Upworthy whose ``test_week`` (YYYYWW) lies in the window of broken randomisation, bounds included."""
    inside = pc.and_(pc.greater_equal(weeks, first), pc.less_equal(weeks, last))
    mask: NDArray[np.bool_] = pc.fill_null(inside, False).to_numpy()
    return mask
