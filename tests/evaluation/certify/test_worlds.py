from __future__ import annotations

import numpy as np
import pytest

from recsys.evaluation.certify.worlds import REGIMES, LiftWorld, ValueWorld
from recsys.evaluation.intervals import cluster_sums, effective, t_interval


@pytest.mark.parametrize("kind", ["iid", "clustered", "drifting"])
@pytest.mark.parametrize("overlap", ["good", "soft", "poor"])
def test_the_truth_is_the_truth(kind, overlap):
    """A large log's estimate within four clustered standard errors of it; weights average to 1."""
    world = ValueWorld(0.02, overlap, kind, seed=3)
    log = world.draw(200_000, np.random.default_rng(1))
    assert len(log.weight) == len(log.click) == len(log.unit) == 200_000
    assert log.weight.max() <= world.bound
    found = t_interval(cluster_sums(log.weight * log.click, 1.0, log.unit))
    assert abs(found.estimate - world.value) < 4 * found.se
    weight = t_interval(cluster_sums(log.weight, 1.0, log.unit))
    assert abs(weight.estimate - 1) < 4 * weight.se


def test_overlap_and_click_rate_are_what_they_say():
    shares = {o: effective(ValueWorld(0.004, o, "iid", 2).draw(100_000, np.random.default_rng(0)).weight) / 1e5
              for o in ("good", "soft", "poor")}
    assert shares["good"] > 0.6 > 0.4 > shares["soft"] > 0.2 > 0.1 > shares["poor"] > 0.03
    assert ValueWorld(0.004, "soft", "drifting", 2).rate.mean() == pytest.approx(0.004, rel=0.05)


def test_rows_of_a_user_depend_on_each_other_only_where_they_should():
    for kind, alike in (("iid", False), ("clustered", True)):
        log = ValueWorld(0.02, "soft", kind, 2).draw(100_000, np.random.default_rng(0))
        runs = log.click.reshape(-1, 5).sum(axis=1)
        inflation = runs.var() / (5 * log.click.var())
        assert (inflation > 2) == alike


def test_a_null_world_has_no_lift():
    for regime in (2, 5, 8):
        assert LiftWorld(REGIMES[regime], 4).true_lift != pytest.approx(0, abs=1e-3)
        null = LiftWorld(REGIMES[regime], 4, null=True)
        assert null.true_lift == pytest.approx(0, abs=1e-12)
        assert all(np.allclose(a.sum(axis=1), 1) and (a >= 0).all() for a in null.arms)
        assert not np.allclose(*null.arms)
