"""Content vectors of ads as the frozen matrix that the ranker looks them up in."""

from __future__ import annotations

import numpy as np

from recsys.content.vectors import CorpusTransform
from recsys.errors import InputError


def content_matrix(ids: list[str], vectors: np.ndarray, training_ids: set[str],
                   dim: int) -> tuple[np.ndarray, CorpusTransform]:
    """Centre, project and normalise the vectors by a transform fitted on the training part's ads alone.

    Args:
        ids: n ad ids, of training and test part.
        vectors: [n, d] their content vectors.
        training_ids: ads that occur in the training part.
        dim: principal components wanted; fewer are kept where there are fewer training ads.

    Returns:
        float32 [n + 1, k], row 0 zero (ads without a vector), row i + 1 the vector of ``ids[i]``, of length sqrt(k) so
        that its entries are of the size that network inputs should have; and the transform.

    Raises:
        InputError: shapes do not match, an id twice, a vector that is not finite, or no training ad has a vector.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise InputError("content vectors do not fit the ads", got=tuple(vectors.shape), expected=f"[{len(ids)}, d]")
    if len(set(ids)) != len(ids):
        raise InputError("an ad has two content vectors", got=f"{len(ids)} rows of {len(set(ids))} ads",
                         expected="one row an ad")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InputError("content vector is not finite", row=int(np.flatnonzero(~finite)[0]), expected="finite numbers")
    known = np.array([i in training_ids for i in ids], bool)
    if not known.any():
        raise InputError("no ad of the training part has a content vector", got=f"{len(ids)} vectors of other ads",
                         expected="vectors of the ads in train.parquet")
    transform = CorpusTransform.fit(np.unique(vectors[known], axis=0), dim, "l2")
    unit = transform.transform(vectors)
    k = unit.shape[1]
    return np.concatenate([np.zeros((1, k), np.float32), unit * np.float32(np.sqrt(k))]), transform
