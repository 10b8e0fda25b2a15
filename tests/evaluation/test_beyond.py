"""What metrics leave open beyond the log's support: bounds hold the truth whatever the unseen ads do."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import Refused
from recsys.evaluation.beyond import reaches
from recsys.evaluation.comparison import ArmRows
from recsys.evaluation.economics import economics_rows
from recsys.evaluation.offpolicy import METRICS, join_policy, pseudo_outcomes, read_log
from tests.evaluation.bandit import Bandit
from tests.evaluation.test_lift import GAP, ghostly

BANDIT = Bandit.make()


def made(wrong: float = 0.8) -> tuple:
    table, context = BANDIT.log(1500, 3)
    table = table.append_column("hide", pa.array((np.random.default_rng(0).random(table.num_rows) < 0.05) * 1.0))
    policy = ghostly(BANDIT.policy("good", context, wrong=wrong))
    policy = policy.append_column("bid", pa.array(1.5 * policy["price_per_click"].to_numpy()))
    log = read_log(table)
    arm = join_policy(log, policy)
    rows = {m: pseudo_outcomes(log, arm, m) for m in METRICS}
    rows |= economics_rows(table, log, policy, arm, rows)[0]
    return rows, reaches(table, log, policy, arm, rows, "dr", ("diversity",))


@pytest.mark.parametrize("clicked", [0.0, 1.0])
def test_bounds_are_what_the_unseen_ads_could_earn_at_the_least_and_at_the_most(clicked: float) -> None:
    """The value that rows without the model's guess of such ads have, and the ads earning nothing or everything."""
    rows, found = made()
    model = {"ctr": 0.3, "revenue_per_mille": 600.0, "welfare_per_mille": 900.0}
    best = {"ctr": 1.0, "revenue_per_mille": 2000.0, "welfare_per_mille": 3000.0}
    truth = {m: float(rows[m].mean()) + GAP * (clicked * best[m] - model[m]) for m in model}
    truth["surplus_per_mille"] = truth["welfare_per_mille"] - truth["revenue_per_mille"]
    truth["cost_per_click"] = truth["revenue_per_mille"] / truth["ctr"] / 1000
    for name, value in truth.items():
        low, high = (float(np.mean(x)) for x in (found[name].least(rows[name]), found[name].most(rows[name])))
        assert low - 1e-9 <= value <= high + 1e-9, name
        if name in best:
            assert (high if clicked else low) == pytest.approx(value), name
    hides = found["hide"]
    assert float(np.mean(hides.above - hides.below)) == pytest.approx(GAP)
    assert found["diversity"].exact


def test_a_metric_without_a_bound_is_refused() -> None:
    rows, found = made()
    arm = ArmRows(rows, 1e4, {}, {}, gap=GAP, reach=found)
    assert arm.reach_of("ctr") is found["ctr"]
    with pytest.raises(Refused, match="not bounded"):
        arm.reach_of("dwell")
