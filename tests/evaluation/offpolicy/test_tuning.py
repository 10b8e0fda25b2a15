from __future__ import annotations

import numpy as np

from recsys.evaluation.offpolicy.answer import answer
from recsys.evaluation.offpolicy.estimators import Outcomes
from recsys.evaluation.offpolicy.totals import Totals
from recsys.evaluation.offpolicy.tuning import slope


def test_stops_before_the_first_contradiction():
    assert slope([1.0, 1.0, 1.0], [0.3, 0.2, 0.1]) == 2  # nothing speaks against the narrowest
    assert slope([1.0, 0.9, 0.0], [0.3, 0.2, 0.1]) == 1
    assert slope([1.0, 0.0, 0.95], [0.1, 0.05, 0.01]) == 0  # what follows a contradiction is not looked at
    assert slope([0.5], [9.0]) == 0


def test_widths_are_made_non_increasing():
    assert slope([1.0, 1.35], [0.1, 5.0]) == 0
    assert slope([1.0, 1.15], [0.1, 5.0]) == 1


def test_chooses_clipping_where_variance_rules_and_none_where_bias_does():
    """Two worlds with the same heavy weights: few rows (variance rules), and very many (bias rules)."""
    def chosen(n: int) -> float | None:
        rng = np.random.default_rng(0)
        heavy = rng.random(n) < 0.01  # weight 60.4 on 1 % of rows, 0.4 elsewhere: mean 1
        reward = (rng.random(n) < np.where(heavy, 0.5, 0.05)).astype(float)
        weight = np.where(heavy, 60.4, 0.4)
        weight /= weight.mean()
        totals = Totals(["clipped_ips"], n)
        totals.add(Outcomes(weight, reward), np.arange(n))
        return answer(totals, draws=100)["estimators"]["clipped_ips"]["level"]

    assert chosen(400_000) is None or chosen(400_000) >= 100
    assert chosen(3_000) is not None
    assert chosen(3_000) <= 50

