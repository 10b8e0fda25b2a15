"""Does retrieval find what was clicked? Recall at k of held-out clicks among all ads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ROWS = 1024  # users whose scores of all ads are in memory at once


def click_recall(users: np.ndarray, ads: np.ndarray, clicked: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Share of clicks whose ad is among the user's k highest inner products with all ads.

    Among equal scores the order is taken to be random: an ad that ties with others across the k-th place counts by its
    chance of being above it.

    Args:
        users: float [n, D], of the requests that led to a click.
        ads: float [N, D].
        clicked: int64 [n], row of the clicked ad.
        ks: lengths of the list.

    Returns:
        k -> recall; NaN for no clicks.
    """
    hits = dict.fromkeys(ks, 0.0)
    for start in range(0, len(users), _ROWS):
        scores = users[start : start + _ROWS] @ ads.T
        own = np.take_along_axis(scores, clicked[start : start + _ROWS, None], 1)
        above, same = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
        for k in ks:
            hits[k] += float(np.clip((k - above) / same, 0.0, 1.0).sum())
    return {k: hits[k] / len(users) if len(users) else float("nan") for k in ks}
