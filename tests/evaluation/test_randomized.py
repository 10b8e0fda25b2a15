from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.errors import InputError, Refused
from recsys.evaluation import randomized
from recsys.evaluation.health import srm_of_groups


def headline_tests(sizes: list[int], trials: list[int], successes: list[int], stories: list[str]) -> pa.Table:
    request = [f"t{i}" for i, k in enumerate(sizes) for _ in range(k)]
    story = [stories[i] for i, k in enumerate(sizes) for _ in range(k)]
    return pa.table({"impression_id": [f"i{j}" for j in range(len(request))], "request_id": request,
                     "ad_id": [f"a{j}" for j in range(len(request))], "trials": trials, "successes": successes,
                     "group_id": story})


def simulated(stories: int, seed: int, spread: float = 0.3) -> tuple[pa.Table, np.ndarray]:
    """Headline tests: 1-3 tests a story, 2-6 candidates each, about 3,000 viewers; and the true rates."""
    rng = np.random.default_rng(seed)
    story = np.repeat(np.arange(stories), rng.integers(1, 4, stories))
    size = rng.integers(2, 7, len(story))
    test = np.repeat(np.arange(len(story)), size)
    level = rng.normal(-4.2, 0.4, stories)[story][test]
    rate = 1 / (1 + np.exp(-level - rng.normal(0, spread, len(test))))
    trials = rng.poisson(3000, len(story))[test]
    table = headline_tests(size.tolist(), trials.tolist(), rng.binomial(trials, rate).tolist(),
                           [f"s{s}" for s in story])
    return table, rate


def test_value_is_the_mean_over_tests_of_the_picked_rate():
    table = headline_tests([2, 3], [100, 100, 100, 100, 200], [1, 3, 2, 4, 18], ["s", "t"])
    tests = randomized.read_tests(table)
    pick = randomized.picked(tests, np.array([0.0, 1.0, 5.0, 5.0, -1.0]))  # a tie in the second test
    assert pick == pytest.approx([0, 1, 0.5, 0.5, 0])
    assert randomized.value_per_test(tests, pick) == pytest.approx([0.03, 0.03])
    uniform = randomized.value_per_test(tests, randomized.picked(tests, None))
    assert uniform == pytest.approx([0.02, (0.02 + 0.04 + 0.09) / 3])


def test_rows_without_viewers_and_lonely_candidates_are_left_aside():
    table = headline_tests([2, 2, 1], [100, 100, 100, 0, 50], [1, 3, 2, 0, 1], ["s", "t", "u"])
    tests = randomized.read_tests(table)
    assert tests.rows.tolist() == [0, 1]
    assert tests.dropped == 3
    assert randomized.picked(tests, [2.0, 1.0, np.nan, np.nan, 0.0]) == pytest.approx([1, 0])
    with pytest.raises(Refused, match="no choice to evaluate"):
        randomized.read_tests(table.slice(2))


def test_bad_input():
    table = headline_tests([2, 2], [100] * 4, [1] * 4, ["s", "t"])
    tests = randomized.read_tests(table)
    with pytest.raises(InputError, match="arm x: scores do not match"):
        randomized.picked(tests, np.ones(3), "x")
    with pytest.raises(InputError, match="arm x, row 2: score is not a number"):
        randomized.picked(tests, [1.0, 1.0, np.nan, 1.0], "x")
    with pytest.raises(InputError, match="missing column"):
        randomized.read_tests(table, unit="user_id")
    split = table.set_column(5, "group_id", pa.array(["s", "s", "t", "u"]))
    with pytest.raises(InputError, match="a test lies in two units"):
        randomized.read_tests(split)
    twice = table.set_column(2, "ad_id", pa.array(["a", "a", "b", "c"]))
    with pytest.raises(InputError, match="row 1: candidate stands twice"):
        randomized.read_tests(twice)


def test_oracle_headroom_is_between_nothing_and_the_noisy_oracle():
    table, rate = simulated(300, seed=0)
    tests = randomized.read_tests(table)
    uniform = randomized.picked(tests, None)
    true = (randomized.value_per_test(tests, randomized.picked(tests, rate), rate).mean()
            / randomized.value_per_test(tests, uniform, rate).mean() - 1)
    lift = randomized.oracle_lift(tests, draws=10)
    assert 0.5 * true < lift["thinned"] < true < lift["noisy"]


def test_oracle_of_pure_noise_has_no_headroom():
    """All candidates of a test are alike: the noisy oracle still claims a lift, the thinned one does not."""
    table, _ = simulated(300, seed=1, spread=0.0)
    lift = randomized.oracle_lift(randomized.read_tests(table), draws=10)
    assert lift["noisy"] > 0.1
    assert abs(lift["thinned"]) < 0.02


def test_srm_of_groups_fires_on_unequal_allocation_only():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 4)
    fair = rng.multinomial(12_000, [0.25] * 4, 400).ravel()
    tilted = rng.multinomial(12_000, [0.26, 0.25, 0.25, 0.24], 400).ravel()
    assert srm_of_groups(fair, groups)["ok"]
    doubled = fair.copy()
    doubled[::4] += rng.poisson(3000, 400)  # the first arm of every test is the sum of two
    assert not srm_of_groups(doubled, groups)["ok"]
    assert srm_of_groups(doubled, groups, pooled=True)["ok"]
    assert not srm_of_groups(tilted, groups)["ok"]


def test_srm_fires_in_the_broken_weeks_of_upworthy(data_home):
    table = pq.read_table(data_home / "upworthy" / "packages.parquet")
    table = table.filter(pc.greater(table["impressions"], 0))
    broken = randomized.week_in_broken_window(table["test_week"].cast(pa.int64()))
    assert 0 < broken.sum() < len(broken)
    groups = table["clickability_test_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    trials = table["impressions"].to_numpy()
    assert not srm_of_groups(trials[broken], groups[broken])["ok"]
    assert srm_of_groups(trials[~broken], groups[~broken])["ok"]
