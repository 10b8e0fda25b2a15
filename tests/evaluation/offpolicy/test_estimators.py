"""Each estimator against what is known exactly: the definition on a few rows, and an enumerated bandit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.evaluation.offpolicy.estimators import ESTIMATORS, Outcomes, Slate, estimator

UNBIASED = ("ips", "dr", "mrdr")
TEND_TO_IT = ("snips", "sndr")
SHRUNK = [name for name, e in ESTIMATORS.items() if e.grid]


def drawn(n: int, seed: int, same: bool = False, zero_model: bool = False) -> Outcomes:
    rng = np.random.default_rng(seed)
    weight = np.ones(n) if same else rng.exponential(1.0, n)
    reward = (rng.random(n) < 0.3).astype(float)
    q, v, q2, v2 = (np.zeros(n) if zero_model else rng.random(n) for _ in range(4))
    return Outcomes(weight, reward, q, v, chosen=weight / 4, robust=(q2, v2), cluster_weight=weight)


class Enumerated:
    """2 contexts x 3 ads with all (context, ad, click) outcomes and their probabilities under the logging policy."""

    def __init__(self, model: str = "wrong") -> None:
        self.context = np.array([0.4, 0.6])
        self.rate = np.array([[0.1, 0.5, 0.3], [0.7, 0.2, 0.4]])
        self.logging = np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
        self.target = np.array([[0.1, 0.8, 0.1], [0.05, 0.35, 0.6]])
        self.truth = float((self.context * (self.target * self.rate).sum(axis=1)).sum())
        cells = list(product(range(2), range(3), (0.0, 1.0)))
        x, a = (np.array([c[k] for c in cells], dtype=int) for k in (0, 1))
        self.reward = np.array([c[2] for c in cells])
        self.chance = self.context[x] * self.logging[x, a] * np.where(self.reward == 1, self.rate[x, a],
                                                                      1 - self.rate[x, a])
        q = {"wrong": np.full((2, 3), 0.35), "right": self.rate}[model]
        own, value = q[x, a], (self.target * q).sum(axis=1)[x]
        cluster = np.array([0, 1, 1])
        mass = [np.stack([p[:, cluster == c].sum(axis=1) for c in range(2)], axis=1)
                for p in (self.target, self.logging)]
        self.outcomes = Outcomes(self.target[x, a] / self.logging[x, a], self.reward, own, value,
                                 chosen=self.target[x, a], robust=(own, value),
                                 cluster_weight=(mass[0] / mass[1])[x, cluster[a]])

    def mean(self, name: str, level: float | None = None) -> float:
        """Exact expectation of a mean estimator; the large-sample value of a ratio."""
        one = ESTIMATORS[name]
        columns = one.base(self.outcomes, one.default if level is None else level)
        expected = [float((c * self.chance).sum()) for c in columns]
        return {"mean": lambda: expected[0], "ratio": lambda: expected[-2] / expected[-1],
                "shifted": lambda: expected[0] + expected[-2] / expected[-1]}[one.kind]()


@pytest.mark.parametrize("model", ["wrong", "right"])
@pytest.mark.parametrize("name", [*UNBIASED, *TEND_TO_IT, *SHRUNK])
def test_expectation_over_all_outcomes_is_the_truth(name: str, model: str):
    """Shrunk ones at their least biased level."""
    world = Enumerated(model)
    assert world.mean(name) == pytest.approx(world.truth, rel=1e-12)


def test_direct_method_is_as_right_as_its_model():
    assert Enumerated("right").mean("dm") == pytest.approx(Enumerated().truth, rel=1e-12)
    assert Enumerated("wrong").mean("dm") == pytest.approx(0.35)


def test_with_the_right_model_and_no_noise_dr_has_no_variance():
    """Rewards equal to their expectation: DR's rows vary with the context only, IPS's with the draw too."""
    world = Enumerated("right")
    q = world.outcomes.q
    exact = Outcomes(world.outcomes.weight, q, q, world.outcomes.q_policy, robust=world.outcomes.robust)
    for name in ("dr", "sndr", "switch_dr", "dros", "sub_gaussian_dr", "mrdr"):
        assert ESTIMATORS[name].rows(exact) - exact.q_policy == pytest.approx(np.zeros(len(q)), abs=1e-12)
    assert np.std(ESTIMATORS["ips"].rows(exact) - exact.q_policy) > 0.1


def test_shrinking_is_bias_between_ips_and_nothing_or_dr_and_dm():
    world = Enumerated("wrong")
    direct = world.mean("dm")
    for name in SHRUNK:
        values = [world.mean(name, level) for level in ESTIMATORS[name].grid]
        errors = np.abs(np.array(values) - world.truth)
        assert errors[0] < 1e-12
        assert errors.max() > 1e-3  # the grid reaches where bias shows
        if name in ("switch_dr", "dros"):
            assert abs(values[-1] - direct) < abs(values[0] - direct)
    assert world.mean("switch_dr", 0.0) == pytest.approx(direct)


def test_clusters_weight_is_right_where_rates_do_not_differ_within_clusters():
    world = Enumerated()
    assert abs(world.mean("mips") - world.truth) > 1e-3  # ads 1 and 2 differ, so clusters of them are biased
    world.rate[:, 2] = world.rate[:, 1]
    x = np.repeat([0, 1], 6)
    a = np.tile(np.repeat([0, 1, 2], 2), 2)
    chance = world.context[x] * world.logging[x, a]
    chance *= np.where(world.reward == 1, world.rate[x, a], 1 - world.rate[x, a])
    truth = float((world.context * (world.target * world.rate).sum(axis=1)).sum())
    assert (ESTIMATORS["mips"].rows(world.outcomes) * chance).sum() == pytest.approx(truth, rel=1e-12)
    variance = {n: float((ESTIMATORS[n].rows(world.outcomes)**2 * chance).sum()) for n in ("mips", "ips")}
    assert variance["mips"] < variance["ips"]


def test_replay_tends_to_the_truth_on_a_uniform_log():
    world = Enumerated()
    world.logging[:] = 1 / 3
    x, a = np.repeat([0, 1], 6), np.tile(np.repeat([0, 1, 2], 2), 2)
    chance = world.context[x] / 3 * np.where(world.reward == 1, world.rate[x, a], 1 - world.rate[x, a])
    match, earned = ((c * chance).sum() for c in reversed(ESTIMATORS["replay"].base(world.outcomes, float("nan"))))
    assert earned / match == pytest.approx(world.truth, rel=1e-12)


@given(st.integers(1, 60), st.integers(0, 10_000))
def test_target_equal_to_logging_gives_the_sample_mean(n: int, seed: int):
    made = drawn(n, seed, same=True, zero_model=True)
    ones = np.ones(n)
    made = Outcomes(made.weight, made.reward, made.q, made.q_policy, made.chosen, made.robust, made.cluster_weight,
                    Slate(ones, ones, ones, np.zeros(n)))
    for name, one in ESTIMATORS.items():
        if name != "dm":
            assert one.rows(made).mean() == pytest.approx(made.reward.mean(), abs=1e-12)
    for name in SHRUNK:  # a weight of 1 is not clipped at 1 or more, nor mixed with 1
        if name in ("clipped_ips", "sub_gaussian_ips", "sub_gaussian_dr", "switch_dr"):
            for level in ESTIMATORS[name].grid:
                assert ESTIMATORS[name].rows(made, level).mean() == pytest.approx(made.reward.mean(), abs=1e-12)


@given(st.integers(2, 80), st.integers(0, 10_000), st.integers(1, 9))
def test_sums_over_clusters_say_the_same_as_rows(n: int, seed: int, groups: int):
    """The rule that combines base columns may be applied before or after summing within clusters."""
    made = drawn(n, seed)
    code = np.random.default_rng(seed).integers(0, groups, n)
    size = np.bincount(code, minlength=groups).astype(float)
    for one in ESTIMATORS.values():
        columns = one.base(made, one.default)
        if columns is None:
            continue
        rows = one.rows(made)
        summed = one.influence(tuple(np.bincount(code, c, groups) for c in columns), size)
        assert summed == pytest.approx(np.bincount(code, rows, groups), abs=1e-9)
        assert summed.sum() / size.sum() == pytest.approx(rows.mean(), abs=1e-12)


def test_ratio_estimators_are_their_formulas():
    made = drawn(200, 1)
    w, r = made.weight, made.reward
    assert ESTIMATORS["snips"].rows(made).mean() == pytest.approx((w * r).sum() / w.sum())
    assert ESTIMATORS["sndr"].rows(made).mean() == pytest.approx(
        made.q_policy.mean() + (w * (r - made.q)).sum() / w.sum())
    assert ESTIMATORS["replay"].rows(made).mean() == pytest.approx((w * r).sum() / w.sum())


def test_shrunk_weights_are_their_formulas_and_bounded():
    weight = np.array([0.0, 0.5, 1.0, 3.0, 400.0])
    made = Outcomes(weight, np.ones(5))
    assert ESTIMATORS["clipped_ips"].rows(made, 2.0) == pytest.approx(np.minimum(weight, 2))
    assert ESTIMATORS["switch_dr"].rows(made, 2.0) == pytest.approx([0, 0.5, 1, 0, 0])
    assert ESTIMATORS["dros"].rows(made, 10.0) == pytest.approx(10 * weight / (weight**2 + 10))
    assert ESTIMATORS["dros"].rows(made, 10.0).max() <= np.sqrt(10) / 2 + 1e-12
    assert ESTIMATORS["sub_gaussian_ips"].rows(made, 0.1) == pytest.approx(weight / (0.9 + 0.1 * weight))
    assert ESTIMATORS["sub_gaussian_ips"].rows(made, 0.1).max() < 10


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SHRUNK)
def test_a_weight_of_0_stays_0_at_every_level(name: str):
    """A deterministic target has many: at level 1 the mixed weight would be 0 / 0."""
    made = Outcomes(np.array([0.0, 0.0, 3.0]), np.ones(3))
    for level in ESTIMATORS[name].grid:
        assert ESTIMATORS[name].rows(made, level)[:2].tolist() == [0.0, 0.0]
        assert np.isfinite(ESTIMATORS[name].rows(made, level)).all()


def test_what_the_rows_lack_is_no_number():
    bare = Outcomes(np.ones(3), np.ones(3))
    assert {n for n, e in ESTIMATORS.items() if e.rows(bare) is None} == {
        "dm", "mrdr", "mips", "replay", "iips", "sips", "rips", "cascade_dr"}
    with pytest.raises(InputError, match="no such estimator"):
        estimator("magic")
