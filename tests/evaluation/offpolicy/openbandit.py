"""The recipes of obp's published examples (0.4.1), written again from its source; obp itself is never imported.

Only the data files and the prior that the wheel carries are read (a test-only dependency, installed --no-deps).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

SEED = 12345


def wheel() -> Path:
    """Folder of the obp package's files, or skip."""
    spec = find_spec("obp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the obp wheel is not installed (pip install --no-deps obp==0.4.1): its data files are the fixture")
    return Path(next(iter(spec.submodule_search_locations)))


def prior(campaign: str) -> dict[str, list[float]]:
    """alpha and beta of the campaign's Thompson sampling."""
    return yaml.safe_load((wheel() / "policy" / "conf" / "prior_bts.yaml").read_text())[campaign]


def one_hot(columns: list[pa.ChunkedArray]) -> np.ndarray:
    """pandas.get_dummies(drop_first=True) of string columns."""
    parts = []
    for column in columns:
        values, code = np.unique(np.array(column.to_pylist()), return_inverse=True)
        parts.append(np.eye(len(values))[code][:, 1:])
    return np.concatenate(parts, axis=1)


def action_context(ads: pa.Table) -> np.ndarray:
    """Label-encoded categorical features of the item, then item_feature_0: OpenBanditDataset.pre_process.

    Its code encodes every column but item_feature_0; the published numbers are those without the item's id.
    """
    coded = [np.unique(np.array(ads[f"item_feature_{k}"].to_pylist()), return_inverse=True)[1] for k in (1, 2, 3)]
    return np.column_stack([*coded, ads["item_feature_0"].to_numpy()])


def cross_fit(context: np.ndarray, actions: np.ndarray, action: np.ndarray, slot: np.ndarray,
              reward: np.ndarray, tol: float = 1e-4) -> np.ndarray:
    """RegressionModel.fit_predict(n_folds=3, random_state=12345) with one logistic regression per slot: q[n, K]."""
    q = np.zeros((len(action), len(actions)))
    for train, test in KFold(3, shuffle=True, random_state=SEED).split(context):
        for position in np.unique(slot):
            fit, rows = train[slot[train] == position], test[slot[test] == position]
            model = LogisticRegression(max_iter=10_000, tol=tol, random_state=SEED)
            model.fit(np.c_[context[fit], actions[action[fit]]], reward[fit])
            d = context.shape[1]
            score = (context[rows] @ model.coef_[0, :d])[:, None] + actions @ model.coef_[0, d:] + model.intercept_
            q[rows] = 1 / (1 + np.exp(-score))
    return q
