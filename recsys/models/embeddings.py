"""Embedding backends behind one interface (docs/decisions/0002-embedding-backends.md).

``fused``: TorchRec's FusedEmbeddingBagCollection on one device; the row-wise Adagrad update runs inside backward.
``dense``: one ``nn.EmbeddingBag`` a table and TorchRec's RowWiseAdagrad; slow, any PyTorch: the oracle of ``fused``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

EPS = 1e-8
# torchrec 1.8 asks torch 2.13 a deprecated question at the first lookup; the warning says nothing to our users.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Table:
    """One embedding table.

    Args:
        name: table name.
        rows: number of rows; row 0 is the out-of-vocabulary row.
        features: keys of the KeyedJaggedTensor that look rows up in it.
    """

    name: str
    rows: int
    features: tuple[str, ...]


class Embeddings(Protocol):
    """What the model and the loop need of a backend."""

    def __call__(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """Mean-pooled embeddings [B, F, D], features in the order of the tables' ``features``; empty bag: zeros."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Table name -> weights [rows, D], sharing memory with the backend."""

    def state(self) -> dict[str, torch.Tensor]:
        """Table name -> row-wise Adagrad's sums of squares, shaped as the backend keeps them, sharing its memory."""

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""

    def step(self) -> None:
        """Apply the optimizer (nothing to do where backward has done so)."""


def _initialise(weights: Mapping[str, torch.Tensor], dim: int) -> None:
    # Small beside the first Adagrad steps, so that rare rows stay near zero; row 0 starts without an opinion.
    bound = 0.1 / math.sqrt(dim)
    with torch.no_grad():
        for weight in weights.values():
            start = torch.empty(weight.shape).uniform_(-bound, bound)
            start[0] = 0.0
            weight.copy_(start)


class FusedEmbeddings(nn.Module):
    """FusedEmbeddingBagCollection with row-wise Adagrad (Duchi et al. 2011, one accumulator a row) in backward."""

    def __init__(self, tables: list[Table], dim: int, lr: float, device: torch.device) -> None:
        super().__init__()
        self._bags = FusedEmbeddingBagCollection(
            [EmbeddingBagConfig(name=t.name, embedding_dim=dim, num_embeddings=t.rows, feature_names=list(t.features),
                                pooling=PoolingType.MEAN) for t in tables],
            optimizer_type=RowWiseAdagrad, optimizer_kwargs={"lr": lr, "eps": EPS}, device=device,
        )
        self._names, self._dim = [t.name for t in tables], dim
        _initialise(self.weights(), dim)

    def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """See :class:`Embeddings`."""
        values = self._bags(sparse).values()
        return values.view(values.shape[0], -1, self._dim)

    def weights(self) -> dict[str, torch.Tensor]:
        """See :class:`Embeddings`."""
        return {n: self._bags.embedding_bags[n].weight.data for n in self._names}

    def state(self) -> dict[str, torch.Tensor]:
        """See :class:`Embeddings`."""
        state = self._bags.fused_optimizer().state_dict()["state"]
        return {n: state[f"{n}.weight"][f"{n}.weight.momentum_1"] for n in self._names}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: gradients never leave backward."""

    def step(self) -> None:
        """Nothing: backward has updated the rows."""


class DenseEmbeddings(nn.Module):
    """``nn.EmbeddingBag`` a table; gradients of whole tables, so only for small ones and for tests."""

    def __init__(self, tables: list[Table], dim: int, lr: float, device: torch.device) -> None:
        super().__init__()
        self._tables, self._dim = tables, dim
        self._bags = nn.ModuleList(nn.EmbeddingBag(t.rows, dim, mode="mean", device=device) for t in tables)
        _initialise(self.weights(), dim)
        self._optimizer = RowWiseAdagrad(self._bags.parameters(), lr=lr, eps=EPS)

    def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """See :class:`Embeddings`."""
        bags = sparse.to_dict()
        found = []
        for table, bag in zip(self._tables, self._bags, strict=True):
            for feature in table.features:
                jagged = bags[feature]
                offsets = torch.cumsum(jagged.lengths(), 0) - jagged.lengths()
                found.append(bag(jagged.values().long(), offsets.long()))
        return torch.stack(found, dim=1)

    def weights(self) -> dict[str, torch.Tensor]:
        """See :class:`Embeddings`."""
        return {t.name: p.data for t, p in zip(self._tables, self._bags.parameters(), strict=True)}

    def state(self) -> dict[str, torch.Tensor]:
        """See :class:`Embeddings`; [rows, D], all columns alike."""
        return {t.name: self._optimizer.state[p]["sum"]
                for t, p in zip(self._tables, self._bags.parameters(), strict=True)}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See :class:`Embeddings`."""
        self._optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """See :class:`Embeddings`."""
        self._optimizer.step()


def make_embeddings(backend: str, tables: list[Table], dim: int, lr: float,
                    device: torch.device) -> FusedEmbeddings | DenseEmbeddings:
    """The backend of that name (``fused`` | ``dense``)."""
    kind = DenseEmbeddings if backend == "dense" else FusedEmbeddings
    return kind(tables, dim, lr, device)
