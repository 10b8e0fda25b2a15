"""Search an index by text, and measure its recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recsys.config import EncoderConfig, parse_model
from recsys.content.encoders import make_encoder
from recsys.content.vectors import load_vectors
from recsys.errors import InputError
from recsys.retrieval.index import Index, recall_at_k
from recsys.stage import read_manifest


def search_text(folder: str | Path, text: str, k: int) -> list[dict[str, Any]]:
    """The ``k`` ads nearest in meaning to a text, nearest first: [{"ad_id", "score"}], score a cosine.

    Raises:
        InputError: no index there, a tampered one, or one that does not say what encoded it.
    """
    if not text.strip():
        raise InputError("nothing to search for", file="search", got=text, expected="a text")
    index = Index.open(folder)
    encoder = index.manifest["facts"].get("encoder")
    if encoder is None:
        raise InputError("the index does not say which encoder made its vectors", file=folder,
                         expected="an index made from a content store's folder")
    batch = make_encoder(parse_model(EncoderConfig, encoder, Path(folder) / "manifest.json")).encode([text])
    ad_ids, scores = index.search(batch.vectors, k)
    return [{"ad_id": str(a), "score": float(s)} for a, s in zip(ad_ids[0], scores[0], strict=True)]


def measured_recall(folder: str | Path, store: str | Path, k: int = 100, queries: int = 256) -> dict[str, float]:
    """Recall@k of an index on a sample of its own corpus, against exact search: {"k", "queries", "recall"}."""
    index, matrix = Index.open(folder), load_vectors(store).matrix
    if read_manifest(store) is None:
        raise InputError("not a content store", file=store)
    at = np.random.default_rng(0).permutation(len(matrix))[:queries]
    k = min(k, len(index))
    return {"k": k, "queries": len(at), "recall": recall_at_k(index, matrix[at], k)}
