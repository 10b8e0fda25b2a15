from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from recsys.training.metrics import StreamingMetrics


def _stream(z: np.ndarray, t: np.ndarray, s: np.ndarray, parts: int = 7) -> dict:
    metrics = StreamingMetrics()
    for rows in np.array_split(np.arange(len(z)), parts):
        metrics.update(z[rows], t[rows], s[rows])
    return metrics.result()


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
def test_equals_scikit_learn_on_binary_labels(spread: float) -> None:
    r = np.random.default_rng(0)
    z = r.normal(size=20_000) * spread - 2
    y = (r.random(20_000) < 1 / (1 + np.exp(-z))).astype(float)
    found, p = _stream(z, np.ones_like(y), y), 1 / (1 + np.exp(-z))
    assert found["auc"] == pytest.approx(roc_auc_score(y, z), abs=1e-4)
    assert found["log_loss"] == pytest.approx(log_loss(y, p), rel=1e-9)
    assert found["calibration_ratio"] == pytest.approx(p.sum() / y.sum(), rel=1e-9)
    assert found["normalized_entropy"] == pytest.approx(log_loss(y, p) / log_loss(y, np.full(len(y), y.mean())))
    assert found["n"] == 20_000


def test_binomial_labels_are_weights() -> None:
    r = np.random.default_rng(1)
    z, t = r.normal(size=300), r.integers(0, 9, 300)
    s = r.binomial(t, 1 / (1 + np.exp(-z)))
    rows = np.concatenate([np.repeat(z, s), np.repeat(z, t - s)])
    y = np.concatenate([np.ones(s.sum()), np.zeros((t - s).sum())])
    found = _stream(z, t, s)
    assert found["auc"] == pytest.approx(roc_auc_score(y, rows), abs=1e-4)
    assert found["log_loss"] == pytest.approx(log_loss(y, 1 / (1 + np.exp(-rows))), rel=1e-9)


def test_constant_base_rate_has_normalized_entropy_one_and_auc_one_half() -> None:
    y = np.array([1.0] * 3 + [0.0] * 17)
    found = _stream(np.full(20, np.log(3 / 17)), np.ones(20), y)
    assert found["normalized_entropy"] == pytest.approx(1, abs=1e-12)
    assert found["auc"] == pytest.approx(0.5, abs=1e-12)
    assert found["calibration_ratio"] == pytest.approx(1, abs=1e-12)


def test_perfect_and_worst_order() -> None:
    y = np.array([0.0, 0, 1, 1])
    assert _stream(np.array([-3.0, -2, 2, 3]), np.ones(4), y)["auc"] == 1.0
    assert _stream(np.array([3.0, 2, -2, -3]), np.ones(4), y)["auc"] == 0.0


def test_undefined_is_none_not_a_number() -> None:
    found = _stream(np.zeros(4), np.ones(4), np.zeros(4))
    assert found["auc"] is None
    assert found["normalized_entropy"] is None
    assert found["calibration_ratio"] is None
    assert found["log_loss"] == pytest.approx(np.log(2))
    assert StreamingMetrics().result()["log_loss"] is None


def test_extreme_log_odds_stay_finite() -> None:
    found = _stream(np.array([-1e4, 1e4, 0.0]), np.ones(3), np.array([0.0, 1, 1]))
    assert np.isfinite(found["log_loss"])
    assert found["auc"] == 1.0
