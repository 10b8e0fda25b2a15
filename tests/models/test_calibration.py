from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from recsys.models.calibration import Calibration


def log_loss(z: np.ndarray, y: np.ndarray) -> float:
    return float((np.logaddexp(0, z) - y * z).mean())


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_overconfident_odds_are_brought_back(kind: str) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(-1.5, 1, (40_000, 2))
    won = (rng.random(truth.shape) < expit(truth)).astype(float)
    said = 2 * truth + np.array([1.0, -0.5])  # too sure, and each head off by its own
    half = slice(0, 20_000), slice(20_000, None)
    fitted = Calibration.fit(kind, said[half[0]], np.ones((20_000, 2)), won[half[0]])  # type: ignore[arg-type]
    again = Calibration.from_json(fitted.to_json())
    for head in range(2):
        mended = again.apply(said[half[1]])[:, head]
        best, before = log_loss(truth[half[1], head], won[half[1], head]), log_loss(said[half[1], head],
                                                                                  won[half[1], head])
        assert log_loss(mended, won[half[1], head]) - best < 0.02 * (before - best)
        order = np.argsort(said[half[1], head])
        assert (np.diff(mended[order]) >= 0).all()
    assert np.isfinite(again.apply(np.array([[-1e9, 1e9]]))).all()


def test_rows_of_many_trials_count_as_many_rows() -> None:
    z = logit(np.array([[0.2], [0.4]]))
    fitted = Calibration.fit("platt", z, np.array([[1e6], [1e6]]), np.array([[1e5], [4e5]]))
    np.testing.assert_allclose(expit(fitted.apply(z)), [[0.1], [0.4]], atol=1e-3)


def test_none_is_the_identity() -> None:
    z = np.random.default_rng(0).normal(size=(5, 1))
    assert Calibration.fit("none", z, z, z).apply(z) is z
