"""FAISS index over content vectors: built to a recall, filtered, updated, versioned.

The public names are imported on first use, so that importing the package costs nothing.
"""

from recsys.lazy import on_first_use

_PUBLIC = {"Index": "index", "build_index": "index", "LiveIndex": "live", "rollback": "versions",
           "served_manifest": "versions", "search_text": "query"}
__getattr__ = on_first_use(__name__, _PUBLIC)
