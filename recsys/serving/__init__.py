"""Scoring: a trained model over Parquet in bulk (:func:`score_batch`) or over HTTP (:func:`make_app`, :func:`serve`).

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.lazy import on_first_use

if TYPE_CHECKING:
    from recsys.serving.batch import read_scores, score_batch
    from recsys.serving.http import ServeOptions, make_app, serve
    from recsys.serving.protocol import ScorerLike, load_scorer

__all__ = ["ScorerLike", "ServeOptions", "load_scorer", "make_app", "read_scores", "score_batch", "serve"]

_HOME = {"read_scores": "batch", "score_batch": "batch", "ServeOptions": "http", "make_app": "http", "serve": "http",
         "ScorerLike": "protocol", "load_scorer": "protocol"}
__getattr__ = on_first_use(__name__, _HOME)
