"""Pairwise dot products of feature vectors: the interaction of DLRM (Naumov et al. 2019, arXiv:1906.00091).

Cost, for x of shape [B, F, D] with P = F (F - 1) / 2 pairs and e bytes an element:

=========  ==========================  =====================================================
           FLOPs                       bytes moved, at the least
=========  ==========================  =====================================================
forward    2 B P D (bmm does 2 B F F D)  e B (F D + P): read x, write the pairs
backward   4 B P D                       e B (2 F D + P): read x and the gradient, write dx
=========  ==========================  =====================================================

The PyTorch version also writes and reads the whole F x F product, so it moves e B (2 F F) bytes more: that is what a
fused kernel saves. What it does not do is gather by index, which runs on one core and element by element: with pairs
ordered by diagonals they are strided views of the product (:func:`pair_order`), copied by all cores. This file holds
the reference; a Triton version joins it later and this module will choose by device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def pair_order(features: int) -> torch.Tensor:
    """Which two features each output column is the product of.

    Column i F/2 + k - 1 stands for the flat place i (F + 1) + k of the row-major F x F matrix (i from 0, k from 1 to
    F/2, rounded down): a run along row i from the diagonal on, which goes on in the next row where it leaves the first.
    For even F the runs hold every pair once; for odd F the pairs at distance (F + 1) / 2 are missing and come last.

    Returns:
        int64 [F (F - 1) / 2, 2].
    """
    if features < 2:
        return torch.zeros((0, 2), dtype=torch.int64)
    half = features // 2
    runs = torch.arange(features - 1)[:, None] * (features + 1) + torch.arange(1, half + 1)
    flat = runs.flatten()
    if features % 2:
        flat = torch.cat([flat, torch.arange(half) * (features + 1) + half + 1])
    return torch.stack([flat // features, flat % features], dim=1)


def _views(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # Of a contiguous [B, F, F]: the runs [B, F - 1, F // 2] and the rest [B, F // 2], which is empty for even F.
    batch, features, _ = matrix.shape
    half, step = features // 2, features + 1
    runs = matrix.as_strided((batch, features - 1, half), (features**2, step, 1), 1)
    return runs, matrix.as_strided((batch, half * (features % 2)), (features**2, step), half + features % 2)


def dot_interaction_reference(x: torch.Tensor) -> torch.Tensor:
    """The oracle of :func:`dot_interaction`: plain operations, differentiated by autograd."""
    left, right = pair_order(x.shape[1]).to(x.device).unbind(1)
    return torch.bmm(x, x.transpose(1, 2))[:, left, right]


class _DotInteraction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.input_dtype, kind = x.dtype, x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        ctx.save_for_backward(x)
        batch, features, _ = x.shape
        runs, rest = _views(torch.bmm(x, x.transpose(1, 2)))
        split = runs.shape[1] * runs.shape[2]
        pairs = x.new_empty((batch, features * (features - 1) // 2))
        pairs[:, :split].view(runs.shape).copy_(runs)
        pairs[:, split:].copy_(rest)
        return pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        batch, features, _ = x.shape
        matrix = x.new_zeros((batch, features, features))
        runs, rest = _views(matrix)
        split = runs.shape[1] * runs.shape[2]
        runs.copy_(grad[:, :split].reshape(runs.shape))
        rest.copy_(grad[:, split:])
        return torch.bmm(matrix, x).add_(torch.bmm(matrix.transpose(1, 2), x)).to(ctx.input_dtype)


def dot_interaction(x: torch.Tensor) -> torch.Tensor:
    """Dot products of all pairs of feature vectors.

    Args:
        x: [B, F, D], any floating dtype.

    Returns:
        [B, F (F - 1) / 2], dtype of ``x`` (under autocast, autocast's), columns as :func:`pair_order` says.
        Differentiable once.

    Raises:
        ValueError: ``x`` does not have three dimensions.
    """
    if x.dim() != 3:
        raise ValueError(f"dot_interaction takes [batch, features, dim], got {tuple(x.shape)}")
    if x.shape[1] < 2:
        return x.new_zeros((x.shape[0], 0))
    return _DotInteraction.apply(x)
