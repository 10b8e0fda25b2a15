"""Search an index by text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys.config import EncoderConfig, parse_model
from recsys.content.encoders import make_encoder
from recsys.errors import InputError
from recsys.retrieval.filters import Where
from recsys.retrieval.index import Index


def search_text(folder: str | Path, text: str, k: int, where: Where = None) -> list[dict[str, Any]]:
    """The ``k`` ads nearest in meaning to a text, nearest first: [{"ad_id", "score"}], score a cosine.

    Args:
        folder: the index.
        text: not empty.
        k: how many ads.
        where: filter over the ads' columns (recsys.retrieval.filters).

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
    batch = make_encoder(parse_model(EncoderConfig, encoder, index.folder / "manifest.json")).encode([text])
    ad_ids, scores = index.search(batch.vectors, k, where)
    return [{"ad_id": str(a), "score": float(s)} for a, s in zip(ad_ids[0], scores[0], strict=True)]
