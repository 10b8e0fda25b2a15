"""The training loop. Names are loaded on first use, so that importing this package costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.lazy import on_first_use

if TYPE_CHECKING:
    from recsys.training.metrics import StreamingMetrics
    from recsys.training.trainer import train_model

__all__ = ["StreamingMetrics", "train_model"]

_HOME = {"StreamingMetrics": "metrics", "train_model": "trainer"}
__getattr__ = on_first_use(__name__, _HOME)
