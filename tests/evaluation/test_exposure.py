from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.evaluation import offpolicy
from recsys.evaluation.exposure import exposure_rows
from tests.evaluation.bandit import Bandit


def shelf(probability: list[list[float]], bids: list[float] | None = None, reserve: float = 0.0) -> dict:
    """Requests with the same three ads."""
    n = len(probability)
    names = [f"r{i}" for i in range(n)]
    log = pa.table({"impression_id": names, "request_id": names, "ad_id": ["a", "b", "c"] * (n // 3) + ["a"] * (n % 3),
                    "user_id": names, "propensity": np.linspace(0.2, 0.7, n), "click": pa.array([1] * n, pa.int8())})
    policy = pa.table({"request_id": np.repeat(names, 3), "slot": pa.array(np.zeros(3 * n), pa.int32()),
                       "ad_id": ["a", "b", "c"] * n, "probability": np.ravel(probability)})
    if bids is not None:
        policy = policy.append_column("bid", pa.array(bids * n))
    return exposure_rows(offpolicy.read_log(log), policy, reserve)[0]


def test_diversity_is_the_effective_number_of_ads_shown() -> None:
    assert shelf([[1 / 3] * 3] * 4)["diversity"].mean() == pytest.approx(3)
    assert shelf([[1.0, 0, 0]] * 4)["diversity"].mean() == pytest.approx(1)
    # Each request is certain, but not of the same ad: the shelf as a whole holds two.
    assert shelf([[1.0, 0, 0], [0, 1.0, 0]] * 2)["diversity"].mean() == pytest.approx(2)
    mixed = shelf([[0.5, 0.5, 0], [0.2, 0.2, 0.6], [1.0, 0, 0]])["diversity"]
    shares = np.array([1.7, 0.7, 0.6]) / 3
    assert mixed.mean() == pytest.approx(1 / (shares**2).sum())


def test_the_rows_spread_is_the_bootstraps() -> None:
    """The linearised rows' standard error beside that of drawing requests anew."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.6, 0.3, 0.2], 3000)
    rows = shelf(p.tolist())["diversity"]
    draws = [1 / ((p[rng.integers(0, 3000, 3000)].mean(axis=0)) ** 2).sum() for _ in range(400)]
    assert rows.std() / 3000**0.5 == pytest.approx(np.std(draws), rel=0.12)


def test_fill_counts_ads_at_or_above_the_reserve() -> None:
    made = shelf([[0.5, 0.3, 0.2]] * 3, [1.0, 0.05, 0.01], 0.05)
    assert made["fill"].tolist() == pytest.approx([0.8] * 3)
    assert "fill" not in shelf([[0.5, 0.3, 0.2]] * 3)


def test_requests_outside_the_log_do_not_count() -> None:
    bandit = Bandit.make()
    log, context = bandit.log(50, 0)
    policy = bandit.policy("good", context)
    seen = offpolicy.read_log(log)
    more = pa.concat_tables([policy, pa.table({
        "request_id": ["x"] * 2, "slot": pa.array([0, 0], pa.int32()), "ad_id": ["a0", "a9"], "probability": [0.5, 0.5],
        "price_per_click": [1.0, 1.0], "expected_click": [0.1, 0.1]})])
    with_them, without = (exposure_rows(seen, p, 0.0)[0]["diversity"] for p in (more, policy))
    assert with_them == pytest.approx(without)
