"""Propensities that are rounded, unbalanced or a model's are refused, honest ones pass."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import Refused
from recsys.evaluation.certify.worlds import softmax
from recsys.evaluation.offpolicy import fitted
from recsys.evaluation.offpolicy.propensity import Cells


def softmax_log(seed: int, rows: int = 4000, ads: int = 6,
                floor: float = 0.0) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """A log of a softmax policy of two numbers and a segment; the shown ads' codes, and the features."""
    rng = np.random.default_rng(seed)
    x, segment = rng.normal(size=(rows, 2)), rng.integers(0, 3, rows)
    features = np.hstack([x, np.eye(3)[segment]])
    policy = softmax(features @ rng.normal(0, 0.5, (5, ads)), floor=floor)
    ad = np.minimum((rng.random((rows, 1)) > policy.cumsum(axis=1)).sum(axis=1), ads - 1)
    return pa.table({"ad_id": [f"a{a}" for a in ad], "propensity": policy[np.arange(rows), ad], "x": x[:, 0],
                     "z": x[:, 1], "user_segment": [f"s{s}" for s in segment]}), ad, features


def said_to_be(table: pa.Table, p: np.ndarray) -> pa.Table:
    return table.set_column(1, "propensity", pa.array(p))


def check(table: pa.Table) -> None:
    """All checks, as a log of any length gets them: in two batches."""
    cells = Cells()
    for batch in (table.slice(0, table.num_rows // 2), table.slice(table.num_rows // 2)):
        cells.add(batch)
    cells.require_not_reconstructed()
    cells.require_exact()
    fitted.require_not_fitted(table, fitted.context(table.schema))


@pytest.mark.parametrize("penalty", [1.0, 1e6])
def test_propensities_of_a_logistic_model_are_refused_and_the_policys_own_pass(penalty: float) -> None:
    from sklearn.linear_model import LogisticRegression

    for seed in range(4):
        table, ad, features = softmax_log(seed)
        check(table)
        model = LogisticRegression(C=penalty, max_iter=500).fit(features, ad)
        with pytest.raises(Refused, match=r"logistic model of x, z, user_segment.*log the probability"):
            check(said_to_be(table, model.predict_proba(features)[np.arange(len(ad)), ad]))


def test_honest_propensities_are_not_taken_for_a_models() -> None:
    """Within the model, beyond it (mixed with a uniform choice), and in short logs."""
    for seed in range(12):
        check(softmax_log(100 + seed, (300, 2000)[seed % 2], floor=0.3 * (seed % 3))[0])


@pytest.mark.parametrize(("decimals", "refused"), [(2, True), (3, False), (5, False)])
def test_rounding_is_refused_where_it_moves_weights(decimals: int, refused: bool) -> None:
    table, _, _ = softmax_log(1)
    made = said_to_be(table, np.maximum(np.round(table["propensity"].to_numpy(), decimals), 10.0**-decimals))
    if refused:
        with pytest.raises(Refused, match=r"rounded to 2 decimals .*off by up to 3\.\d % on average; log .*unrounded"):
            check(made)
    else:
        check(made)


def test_designed_round_propensities_pass() -> None:
    """Percentages that somebody set, by segment, are exact however round they are; and so is epsilon-greedy."""
    rng = np.random.default_rng(2)
    percent = np.array([[13, 87, 0, 0], [21, 9, 47, 23], [31, 33, 35, 1], [2, 5, 50, 43], [17, 19, 60, 4]]) / 100
    segment = rng.integers(0, 5, 20_000)
    ad = (rng.random((20_000, 1)) > percent[segment].cumsum(axis=1)).sum(axis=1)
    table = pa.table({"ad_id": [f"a{a}" for a in ad], "propensity": percent[segment, ad],
                      "user_segment": [f"s{s}" for s in segment]})
    assert len(np.unique(percent)) >= 12
    check(table)
    with pytest.raises(Refused, match="rounded to 2 decimals"):
        check(table.drop_columns(["user_segment"]))
    best = rng.random(5000) < 0.91
    check(pa.table({"ad_id": np.where(best, "best", "other"), "propensity": np.where(best, 0.91, 0.09)}))


def test_ads_shown_more_often_than_their_propensities_allow() -> None:
    table, _, _ = softmax_log(3)
    p = table["propensity"].to_numpy()
    first = np.array(table["ad_id"].to_pylist()) == "a0"
    with pytest.raises(Refused, match=r"ad_id a0 was shown \d+\.\d% more often than its propensities say"):
        check(said_to_be(table, np.where(first, p / 2, p)))
    # Twice as large is not: an ad that is no candidate in half of the requests looks the same.
    check(said_to_be(table, np.where(first, np.minimum(1.0, 1.3 * p), p)))


def test_an_ad_that_tells_its_segment_is_no_imbalance() -> None:
    """A column of the shown ad is no context: within it, ads are always shown more often than they say."""
    table, ad, _ = softmax_log(4)
    check(table.append_column("ad_kind", pa.array(["even" if a % 2 == 0 else "odd" for a in ad])))
