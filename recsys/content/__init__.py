"""Content encoders and the content store.

The public names are imported on first use, so that importing the package costs nothing.
"""

from recsys.lazy import on_first_use

_PUBLIC = {
    "EncodedBatch": "encoders", "Encoder": "encoders", "make_encoder": "encoders",
    "ad_text": "store", "embed_texts": "store", "read_usage": "store",
    "SemanticIds": "semantic_ids", "make_semantic_ids": "semantic_ids",
    "ContentVectors": "vectors", "CorpusTransform": "vectors", "block_widths": "vectors", "for_ads": "vectors",
    "joined_for_ads": "vectors", "load_vectors": "vectors",
}
__getattr__ = on_first_use(__name__, _PUBLIC)
