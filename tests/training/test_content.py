from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import InputError
from recsys.training.content import content_matrix


def test_matrix_has_a_zero_row_and_rows_of_one_length() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    matrix, transform = content_matrix([str(i) for i in range(50)], vectors, {str(i) for i in range(50)}, 4)
    assert matrix.shape == (51, 4)
    assert matrix.dtype == np.float32
    assert not matrix[0].any()
    np.testing.assert_allclose(np.linalg.norm(matrix[1:], axis=1), 2.0, rtol=1e-5)
    np.testing.assert_allclose(matrix[1:] / 2.0, transform.transform(vectors), atol=1e-6)


def test_transform_is_fitted_on_training_ads_alone() -> None:
    r = np.random.default_rng(0)
    ids, vectors = [str(i) for i in range(50)], r.normal(size=(50, 8)).astype(np.float32)
    training = set(ids[:30])
    matrix, _ = content_matrix(ids, vectors, training, 4)
    vectors[30:] = r.normal(size=(20, 8)) * 100
    again, _ = content_matrix(ids, vectors, training, 4)
    np.testing.assert_array_equal(matrix[:31], again[:31])
    assert not np.allclose(matrix[31:], again[31:])


def test_bad_vectors_are_refused() -> None:
    good = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="do not fit the ads"):
        content_matrix(["a"], good, {"a"}, 2)
    with pytest.raises(InputError, match="two content vectors"):
        content_matrix(["a", "a"], good, {"a"}, 2)
    with pytest.raises(InputError, match="row 1: content vector is not finite"):
        content_matrix(["a", "b"], np.array([[1.0], [np.nan]]), {"a"}, 2)
    with pytest.raises(InputError, match="no ad of the training part"):
        content_matrix(["a", "b"], good, {"c"}, 2)
