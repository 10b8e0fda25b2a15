"""A small ranker of any kind and a batch for it."""

from __future__ import annotations

import numpy as np
import torch

from recsys.config import ModelConfig
from recsys.features.batches import Batch, gather
from recsys.features.encoded import Encoded, Jagged
from recsys.models.build import KINDS
from recsys.models.embeddings import SparseOptions, Table, make_embeddings
from recsys.models.ranker import Inputs, Ranker

CONFIG = ModelConfig(embedding_dim=4, bottom=(8,), top=(16, 8), streams=((16, 8), (12, 4)), gates=(8,),
                     cross_rank=8)
TABLES = [Table("ad_id", 20, ("ad_id", "history")), Table("site", 5, ("site",))]
DENSE, CONTENT = 3, 6


def batch(n: int = 6, rows: np.ndarray | None = None) -> Batch:
    r = np.random.default_rng(0)
    history = Jagged(r.integers(0, 9, 2 * n).astype(np.int32), np.arange(n + 1) * 2)
    data = Encoded(r.normal(size=(n, DENSE)).astype(np.float32), r.integers(0, 5, (n, 2)).astype(np.int32),
                   r.integers(0, 9, n).astype(np.int32), (history,), history, np.ones((n, 1), np.float32),
                   np.ones((n, 1), np.float32))
    return gather(data, np.arange(n) if rows is None else rows, ["ad_id", "site", "history"])


def ranker(content: bool = True, tables: list[Table] = TABLES, dense: int = DENSE, **config: object) -> Ranker:
    settings = ModelConfig(**CONFIG.model_dump() | config)
    matrix = torch.cat([torch.zeros(1, CONTENT), torch.randn(8, CONTENT)]) if content else None
    embeddings = None
    if tables:
        embeddings = make_embeddings(settings.embeddings, tables, settings.embedding_dim, SparseOptions(),
                                     torch.device("cpu"))
    inputs = Inputs(embeddings, tuple(f for t in tables for f in t.features), dense, matrix, content)
    return KINDS[settings.kind](inputs, settings)
