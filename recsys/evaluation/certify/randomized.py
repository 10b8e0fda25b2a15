"""Coverage where traffic or candidates were randomised: two arms of users, and arms that choose among candidates.

``ab``: users in two arms, with 1 to 40 rows each, a click propensity of their own, and a lift that is the same for all;
the interval is that of ``recsys ab``. ``choice``: tests of four candidates that viewers were split over at random, in
stories of one to three tests; an arm picks the candidate that its scores rank first, against the uniform choice; the
interval is that of the lift report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from recsys.errors import Refused
from recsys.evaluation.ab.analysis import Plan, analyse
from recsys.evaluation.ab.units import ROWS, Metric, Units
from recsys.evaluation.certify.measure import DRAWS, Tally
from recsys.evaluation.certify.worlds import EAGERNESS
from recsys.evaluation.comparison import ArmRows, Comparison
from recsys.evaluation.intervals import Floats, Interval
from recsys.evaluation.randomized import Tests, click_squares, picked, value_per_test

Design = Literal["ab", "choice"]
LIFT = 0.1
CANDIDATES = 4  # of a test
TRUTH_TESTS = 400_000


@dataclass(frozen=True)
class RandomizedCell:
    """A cell of a randomised design.

    Attributes:
        design: see the module.
        ctr: base click rate.
        n: users of both arms, or tests.
        share: of users in the variant (``ab``).
        viewers: of a candidate on average, Poisson (``choice``).
    """

    design: Design
    ctr: float
    n: int
    share: float
    viewers: int
    replications: int
    seed: int
    section: str = "randomized"

    @property
    def name(self) -> str:
        """For a line of a log."""
        return f"randomised, {self.design}, CTR {100 * self.ctr:g} %, {self.n:,} units"

    @property
    def work(self) -> float:
        """About how long it takes, in arbitrary units."""
        return self.replications * (self.n + 5_000)


def measure_randomized(cell: RandomizedCell) -> dict[str, Any]:
    """Run a cell; widths are those of the lift."""
    tally = Tally(0.0, 1.0)
    truth = {"default": LIFT, "absolute": LIFT * cell.ctr} if cell.design == "ab" else {"default": true_choice(cell)}
    for replication in range(cell.replications):
        rng = np.random.default_rng([cell.seed, cell.n, replication])
        made, method, facts = _ab(cell, rng) if cell.design == "ab" else _choice(cell, rng, replication)
        # errors of estimates, so that one tally holds quantities of several truths
        tally.add({name: one.shifted(-truth[name]).scaled(1.0 if name == "default" else 1 / cell.ctr)
                   for name, one in made.items()}, method, facts)
    return {**asdict(cell), "true_lift": truth["default"], **tally.result()}


def draw_arms(cell: RandomizedCell, rng: np.random.Generator) -> Units:
    """Users of two arms; the variant's users click LIFT more."""
    rows = np.minimum(np.ceil(5 * (1 + rng.pareto(2.0, cell.n))), 40).astype(int)
    arm = np.sort((rng.random(cell.n) < cell.share).astype(int))
    eager = cell.ctr * rng.choice(EAGERNESS, cell.n) * rng.gamma(1.0, 1.0, cell.n) * np.where(arm, 1 + LIFT, 1.0)
    click = rng.binomial(rows, np.minimum(eager, 1.0)).astype(float)
    return Units(["a", "b"], arm, int(rows.sum()), {"click": click, ROWS: rows.astype(float)}, 0)


def _ab(cell: RandomizedCell, rng: np.random.Generator) -> tuple[dict[str, Interval], str, dict[str, float]]:
    units, metric = draw_arms(cell, rng), Metric("click", ROWS)
    clicks = min(float(units.of(a, "click").sum()) for a in units.arms)
    facts = {"clicks": clicks}
    plan = Plan("a", multiplicity="none", shares={"a": 1 - cell.share, "b": cell.share})
    try:
        found = analyse(units, [metric], plan)
    except Refused as refused:
        return {}, _refused(refused), facts
    if "refused" in found:
        return {}, _refused(found["refused"]), facts
    line = found["metrics"][metric.name]["variants"]["b"]
    made = {name: Interval(raw["estimate"], raw["low"], raw["high"], method=raw["method"]) for name, raw in (
        ("default", line["raw"]["relative"]), ("absolute", line["raw"]["absolute"])) if raw is not None}
    return made, f"{'fieller' if 'default' in made else 'difference only'}, {line['label']}", facts


def draw_tests(cell: RandomizedCell, rng: np.random.Generator) -> tuple[Tests, Floats]:
    """Tests of four candidates in stories of one to three, and scores that are half signal."""
    size = rng.integers(1, 4, cell.n)
    story = np.repeat(np.arange(cell.n), size)[:cell.n]
    test = np.repeat(np.arange(cell.n), CANDIDATES)
    rate, score = _candidates(cell, story, rng)
    trials = rng.poisson(cell.viewers, len(test)) + 1
    rows = np.arange(len(test))
    return Tests(rows, test, np.full(cell.n, CANDIDATES), trials, rng.binomial(trials, rate), story, 0), score


def _candidates(cell: RandomizedCell, story: np.ndarray, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Click rates (a story's own level, a candidate's own appeal) and scores."""
    level = rng.normal(0, 0.5, int(story.max()) + 1)[story]
    appeal = rng.normal(0, 0.25, (len(story), CANDIDATES))
    rate = cell.ctr * np.exp(np.repeat(level, CANDIDATES) - 0.125 + appeal.ravel() - 0.03125)
    return np.minimum(rate, 1.0), (0.25 * rng.normal(0, 1, appeal.shape) + appeal).ravel()


def true_choice(cell: RandomizedCell) -> float:
    """The lift of the choice over all tests that could be drawn, by simulation without viewers (to a 5,000th)."""
    rate, score = (x.reshape(-1, CANDIDATES) for x in _candidates(
        cell, np.arange(TRUTH_TESTS), np.random.default_rng(cell.seed)))
    return float(rate[np.arange(TRUTH_TESTS), score.argmax(axis=1)].mean() / rate.mean() - 1)


def _choice(cell: RandomizedCell, rng: np.random.Generator, seed: int,
            ) -> tuple[dict[str, Interval], str, dict[str, float]]:
    tests, score = draw_tests(cell, rng)
    facts = {"clicks": float(tests.successes.sum()) / CANDIDATES}
    try:
        picks = {"uniform": picked(tests, None), "scores": picked(tests, score)}
        arms = {name: ArmRows({"ctr": value_per_test(tests, pick)}, float(cell.n), {}, {},
                              click_squares=click_squares(tests, pick)) for name, pick in picks.items()}
        both = Comparison(arms, "uniform", "ctr", tests.cluster, 0.95, DRAWS, seed, paired=False)
        made, choice = both.lift("scores", "uniform", "ctr"), both.choice_of("ctr", "scores", "uniform")
        return {"default": made}, f"{choice.method}, {choice.label}", facts
    except Refused as refused:
        return {}, _refused(refused), facts


def _refused(reason: object) -> str:
    return f"refused: {' '.join(str(reason).split()[:3])}".rstrip(":,0123456789. ")


def randomized_cells(replications: int, seed: int) -> list[RandomizedCell]:
    """Click rates by sizes of both designs, uneven splits and few viewers among them."""
    ab = [RandomizedCell("ab", ctr, n, share, 0, replications, seed) for n, share in (
        (400, 0.5), (4_000, 0.5), (40_000, 0.5), (40_000, 0.1)) for ctr in (0.001, 0.004, 0.02)]
    return [*ab, *(RandomizedCell("choice", ctr, n, 0.5, viewers, replications, seed) for n, viewers in (
        (60, 200), (60, 1_500), (400, 50), (400, 1_500), (3_000, 200)) for ctr in (0.001, 0.004, 0.015))]
