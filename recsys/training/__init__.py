"""The training loop. Names are loaded on first use, so that importing this package costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.training.metrics import StreamingMetrics
    from recsys.training.trainer import train_model

__all__ = ["StreamingMetrics", "train_model"]

_HOME = {"StreamingMetrics": "metrics", "train_model": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
