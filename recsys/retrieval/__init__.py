"""FAISS index over content vectors: built to a recall, filtered, updated, versioned.

The public names are imported on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {"Index": "index", "build_index": "index", "LiveIndex": "live", "rollback": "versions",
           "served_manifest": "versions", "search_text": "query"}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
