"""Two towers as a retriever: the ads' vectors in an index, the user's made at query time.

    publish_ads(towers, ads, "runs/mine/retrievers/towers/index", config.index, users)
    retriever = TwoTowerRetriever.load("runs/mine/retrievers/towers")
    retriever.retrieve(Query("u1", {"history": ["a1", "a2"]}, "feed"), k=200, where="language=en")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.config import IndexConfig
from recsys.content.vectors import CorpusTransform
from recsys.errors import InputError
from recsys.models.towers import Towers, load_towers
from recsys.retrieval.filters import Where
from recsys.retrieval.index import filter_columns, write_index
from recsys.retrieval.live import LiveIndex
from recsys.retrieval.retriever import Query, Retrieved


def publish_ads(towers: Towers, ads: pa.Table, out: str | Path, config: IndexConfig,
                queries: np.ndarray | None = None) -> dict[str, Any]:
    """Index the ads' vectors as a new version in ``out``; returns its manifest.

    Args:
        towers: what makes the vectors.
        ads: ``ad_id``, the ad's features, and columns to filter on.
        out: the index.
        config: recall and size of the index.
        queries: user vectors float32 [q, D] that the index is tuned on; None: the ads' own.
    """
    dim = towers.config.dim
    unit = CorpusTransform(np.zeros(dim, np.float32), np.zeros((dim, 0), np.float32), np.ones(dim, np.float32), "l2")
    return write_index(out, filter_columns(ads), towers.ad_vectors(ads), unit, {"model_id": towers.model_id}, config,
                       queries)


class TwoTowerRetriever:
    """As :class:`recsys.retrieval.retriever.Retriever`; ads that training never saw are found by their content.

    Args:
        towers: of the users.
        index: of the ads' vectors by the same towers; :meth:`upsert` keeps it up to date.

    Raises:
        InputError: the index was made by other towers.
    """

    def __init__(self, towers: Towers, index: LiveIndex) -> None:
        made = index.snapshot.main.manifest["facts"]["origin"].get("model_id")
        if made != towers.model_id:
            raise InputError("the index was made by another model", file=index.folder, got=made,
                             expected=towers.model_id)
        self.towers, self.index = towers, index

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> TwoTowerRetriever:
        """Open a retriever's folder: ``model/`` and ``index/``."""
        folder = Path(folder)
        return cls(load_towers(folder / "model", device), LiveIndex(folder / "index"))

    def retrieve(self, query: Query, k: int, where: Where = None) -> Retrieved:
        """As :class:`Retriever`; nothing for a request that says nothing of its user, surface aside."""
        values = {**query.features, "user_id": query.user_id}
        if not any(values.get(n) not in (None, [], ()) for n in self.towers.user_columns if n != "surface"):
            return Retrieved([], np.empty(0, np.float32), "two_tower")
        values["surface"] = query.surface
        table = pa.table({n: _column(values.get(n), n in self.towers.encoder.sequence)
                          for n in self.towers.user_columns})
        ids, scores = self.search(table, k, where)
        return Retrieved(ids[0].tolist(), scores[0], "two_tower")

    def search(self, requests: pa.Table, k: int, where: Where = None) -> tuple[np.ndarray, np.ndarray]:
        """The best ``k`` ads of each request, best first: ids object [n, k] and cosines float32 [n, k].

        Args:
            requests: n rows with the towers' ``user_columns``.
            k: at least 1; cut to how many ads pass the filter.
            where: filter over the ads' columns.
        """
        return self.index.search(self.towers.user_vectors(requests), k, where)

    def upsert(self, ads: pa.Table, content: np.ndarray | None = None) -> None:
        """Add ads, or replace those of the same id.

        Args:
            ads: ``ad_id``, the ad's features, and columns to filter on.
            content: their raw content vectors [n, d], where the towers read content.
        """
        towers = self.towers
        if content is not None:
            towers = self.towers = towers.with_ads(ads["ad_id"].to_pylist(), content)
        self.index.upsert(filter_columns(ads), towers.ad_vectors(ads))


def _column(value: Any, is_list: bool) -> pa.Array:
    return pa.array([list(value) if value is not None else []], pa.list_(pa.string())) if is_list else pa.array([value])
