"""Content encoders and the content store.

The public names are imported on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "EncodedBatch": "encoders", "Encoder": "encoders", "make_encoder": "encoders",
    "ad_text": "store", "embed_texts": "store", "read_usage": "store",
    "SemanticIds": "semantic_ids", "make_semantic_ids": "semantic_ids",
    "ContentVectors": "vectors", "CorpusTransform": "vectors", "for_ads": "vectors", "joined_for_ads": "vectors",
    "load_vectors": "vectors",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
