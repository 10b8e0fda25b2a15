"""Embedding tables behind one interface: dense, fused, sharded (docs/decisions/0002-embedding-backends.md)."""

from recsys.models.embeddings.base import Embeddings, SparseOptions, Table, plan_lines, write_tensor
from recsys.models.embeddings.make import make_embeddings

__all__ = ["Embeddings", "SparseOptions", "Table", "make_embeddings", "plan_lines", "write_tensor"]
