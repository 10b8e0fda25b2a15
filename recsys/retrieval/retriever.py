"""The first step of a decision: from a user to the few hundred ads that are worth ranking.

A :class:`Retriever` proposes; whether an ad may be shown is checked again by who serves it. Here is the one that needs
no training: what is near in meaning to the ads that the user engaged with. A two-tower model is another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from recsys.retrieval.filters import Where
from recsys.retrieval.live import LiveIndex


@dataclass(frozen=True)
class Query:
    """Who asks, and where.

    Attributes:
        user_id: None for somebody unknown.
        features: column -> value: of the user (``history``, a list of ad ids, among them) and of the request.
        surface: where the ad will stand.
    """

    user_id: str | None
    features: Mapping[str, Any] = field(default_factory=dict)
    surface: str | None = None


@dataclass(frozen=True)
class Retrieved:
    """Candidates, best first.

    Attributes:
        ad_ids: n distinct ids.
        scores: float32 [n], falling; comparable within one answer only.
        source: which retriever they are from; it goes into the log.
    """

    ad_ids: list[str]
    scores: np.ndarray
    source: str


class Retriever(Protocol):
    """Candidates for a user; called from several threads at once."""

    def retrieve(self, query: Query, k: int, where: Where = None) -> Retrieved:
        """The best ``k`` ads that pass a filter over the ads' columns; fewer where there are fewer.

        Nothing is returned for a user that the retriever knows nothing of.
        """


class HistoryRetriever:
    """Ads whose content is near to the mean of what the user's latest ads say.

    Args:
        index: content vectors of the ads (``recsys index``).
        vectors: ad id -> vector as the encoder gave it; the index centres and normalises the mean.
        column: the feature that holds the user's ad ids, latest last.
        length: how many of the latest count.
    """

    def __init__(self, index: LiveIndex, vectors: tuple[Sequence[str], np.ndarray], column: str = "history",
                 length: int = 20) -> None:
        self._index, self._column, self._length = index, column, length
        self._rows = {ad: row for row, ad in enumerate(vectors[0])}
        self._matrix = vectors[1]

    def retrieve(self, query: Query, k: int, where: Where = None) -> Retrieved:
        """As :class:`Retriever`: nothing for a user without a history of known ads."""
        history = query.features.get(self._column) or ()
        rows = [self._rows[ad] for ad in list(history)[-self._length:] if ad in self._rows]
        if not rows:
            return Retrieved([], np.empty(0, np.float32), "history")
        ids, scores = self._index.search(self._matrix[rows].mean(axis=0, keepdims=True), k, where)
        return Retrieved(ids[0].tolist(), scores[0], "history")
