"""Pairwise dot products of feature vectors: the interaction of DLRM (Naumov et al. 2019, arXiv:1906.00091).

Cost, for x of shape [B, F, D] with P = F (F - 1) / 2 pairs and e bytes an element:

=========  ==========================  =====================================================
           FLOPs                       bytes moved, at the least
=========  ==========================  =====================================================
forward    2 B P D (bmm does 2 B F F D)  e B (F D + P): read x, write the pairs
backward   4 B P D                       e B (2 F D + P): read x and the gradient, write dx
=========  ==========================  =====================================================

The PyTorch version also writes and reads the whole F x F product, so it moves e B (2 F F) bytes more:
that is what a fused kernel saves. Its backward is written by hand: of the product's symmetry follows
dx = (G + G^T) x with G the lower triangle's gradient, so one batched product does what autograd does with two, and the
symmetric matrix is gathered from the gradient instead of being scattered and added. This file holds the reference; a
Triton version joins it later and this module will choose by device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable


@lru_cache(maxsize=64)
def _triangle(features: int, device: torch.device) -> torch.Tensor:
    # Flat positions i * F + j of the pairs j < i in a row-major F x F matrix, row by row; int32 gathers faster.
    rows, columns = torch.tril_indices(features, features, offset=-1, device=device)
    return (rows * features + columns).int()


@lru_cache(maxsize=64)
def _mirror(features: int, device: torch.device) -> torch.Tensor:
    # For each place of a row-major F x F matrix, its pair's number in the triangle; the diagonal: one past the last.
    rows, columns = torch.tril_indices(features, features, offset=-1, device=device)
    pairs = rows.shape[0]
    places = torch.full((features, features), pairs, dtype=torch.int32, device=device)
    places[rows, columns] = places[columns, rows] = torch.arange(pairs, dtype=torch.int32, device=device)
    return places.view(-1)


def _select(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    # A CPU gathers columns of 32-bit numbers with vector instructions, of 16-bit ones element by element.
    if x.device.type == "cpu" and x.element_size() < 4:
        return x.float().index_select(1, columns).to(x.dtype)
    return x.index_select(1, columns)


def dot_interaction_reference(x: torch.Tensor) -> torch.Tensor:
    """The oracle of :func:`dot_interaction`: plain operations, differentiated by autograd."""
    batch, features, _ = x.shape
    products = torch.bmm(x, x.transpose(1, 2)).view(batch, features * features)
    return products.index_select(1, _triangle(features, x.device))


class _DotInteraction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.input_dtype, kind = x.dtype, x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        ctx.save_for_backward(x)
        batch, features, _ = x.shape
        products = torch.bmm(x, x.transpose(1, 2)).view(batch, features * features)
        return _select(products, _triangle(features, x.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        batch, features, _ = x.shape
        padded = torch.cat([grad, grad.new_zeros(batch, 1)], dim=1)
        both = _select(padded, _mirror(features, x.device)).view(batch, features, features)
        return torch.bmm(both.to(x.dtype), x).to(ctx.input_dtype)


def dot_interaction(x: torch.Tensor) -> torch.Tensor:
    """Dot products of all pairs of feature vectors.

    Args:
        x: [B, F, D], any floating dtype.

    Returns:
        [B, F (F - 1) / 2], dtype of ``x`` (under autocast, autocast's): the strictly lower triangle of ``x @ x.T`` row
        by row, that is the pairs (1,0), (2,0), (2,1), (3,0), ... Differentiable once.

    Raises:
        ValueError: ``x`` does not have three dimensions.
    """
    if x.dim() != 3:
        raise ValueError(f"dot_interaction takes [batch, features, dim], got {tuple(x.shape)}")
    return _DotInteraction.apply(x)
