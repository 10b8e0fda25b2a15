from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

from recsys.errors import InputError
from recsys.evaluation.offpolicy.nuisance import Nuisance, context_columns, embedding_clusters, folds_of


def shown(n: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    age, place, ad = rng.normal(40, 10, n), rng.integers(0, 3, n), rng.integers(0, 4, n)
    rate = 1 / (1 + np.exp(1.5 - 0.05 * (age - 40) - 0.7 * (place == 1) - 0.4 * ad))
    return pa.table({
        "request_id": [f"r{k}" for k in range(n)], "slot": pa.array(np.zeros(n), pa.int32()),
        "user_id": [f"u{k % 300}" for k in range(n)], "ad_id": [f"a{a}" for a in ad], "age": age,
        "place": [f"p{p}" for p in place], "click": pa.array(rng.random(n) < rate).cast(pa.int8()),
        "candidates": [["a0"]] * n})


def test_logistic_model_is_scikit_learns_on_the_same_features():
    """Look-ups per feature against a dense one-hot matrix, rows of two folds."""
    log = shown(3000)
    fold = folds_of(log["user_id"], 2)
    made = Nuisance("logistic", ["age", "place"], folds=2).fit(log, fold).predict(log, log, fold)
    age = log["age"].to_numpy()
    dense = np.column_stack([(age - age.mean()) / age.std()] + [
        np.array(log[c].to_pylist()) == v for c in ("place", "ad_id") for v in sorted(set(log[c].to_pylist()))])
    y = log["click"].to_numpy()
    for f in (0, 1):
        model = LogisticRegression(max_iter=1000, tol=1e-8).fit(dense[fold != f], y[fold != f])
        assert made[fold == f] == pytest.approx(model.predict_proba(dense[fold == f])[:, 1], abs=3e-3)


@pytest.mark.usefixtures("one_thread")
def test_no_row_is_predicted_by_a_model_that_saw_its_unit():
    """Turning one unit's clicks around changes predictions of other units only."""
    log = shown(1500)
    fold = folds_of(log["user_id"], 3)
    units = np.array(log["user_id"].to_pylist())
    assert all(len(set(fold[units == u])) == 1 for u in set(units))
    turned = log["click"].to_numpy().copy()
    mine = units == units[0]
    turned[mine] = 1 - turned[mine]
    other = log.set_column(log.column_names.index("click"), "click", pa.array(turned, pa.int8()))
    before, after = (Nuisance("boosting", ["age", "place"]).fit(t, fold).predict(t, t, fold) for t in (log, other))
    assert (before[mine] == after[mine]).all()
    assert (before[~mine] != after[~mine]).any()


def test_candidates_are_predicted_in_the_context_of_their_request():
    log = shown(2000)
    fold = folds_of(log["user_id"], 3)
    model = Nuisance("logistic", ["age", "place"]).fit(log, fold)
    policy = pa.table({"request_id": ["r5", "r5", "r7", "nowhere"], "slot": pa.array([0, 0, 0, 0], pa.int32()),
                       "ad_id": ["a0", "a3", log["ad_id"][7].as_py(), "a1"], "probability": [0.5, 0.5, 1.0, 1.0]})
    made = model.predict(log, policy, fold)
    assert made[1] > made[0]  # ad 3 is the better one
    assert made[2] == pytest.approx(model.predict(log, log.slice(7, 1), fold)[0])
    assert made[3] == 0


def test_one_kind_of_outcome_is_a_constant_model():
    log = shown(200)
    none = log.set_column(log.column_names.index("click"), "click", pa.array(np.zeros(200), pa.int8()))
    fold = folds_of(log["user_id"], 3)
    assert (Nuisance("logistic", ["age"]).fit(none, fold).predict(none, none, fold) == 0).all()


def test_context_is_what_stands_outside_the_contract():
    assert context_columns(shown(3).schema) == ["age", "place"]
    with pytest.raises(InputError, match="column income"):
        Nuisance("logistic", ["income"]).fit(shown(50), np.zeros(50, dtype=np.int64))


def test_clusters_of_content_hold_what_is_alike():
    rng = np.random.default_rng(0)
    centre = np.repeat(rng.normal(size=(3, 16)), 10, axis=0)
    made = embedding_clusters(pa.array([f"a{k}" for k in range(30)]), centre + rng.normal(0, 0.05, (30, 16)), 3)
    code = made["cluster"].to_numpy().reshape(3, 10)
    assert (code == code[:, :1]).all()
    assert len(set(code[:, 0])) == 3
