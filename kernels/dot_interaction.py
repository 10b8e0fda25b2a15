"""Pairwise dot products of feature vectors: the interaction of DLRM (Naumov et al. 2019, arXiv:1906.00091).

Cost, for x of shape [B, F, D] with P = F (F - 1) / 2 pairs and e bytes an element:

=========  ==========================  =====================================================
           FLOPs                       bytes moved, at the least
=========  ==========================  =====================================================
forward    2 B P D (bmm does 2 B F F D)  e B (F D + P): read x, write the pairs
backward   4 B P D                       e B (2 F D + P): read x and the gradient, write dx
=========  ==========================  =====================================================

The PyTorch version also writes and reads the whole F x F product, so it moves e B (2 F F) bytes more:
that is what a fused kernel saves. This file holds the reference; a Triton version joins it later and
this module will choose by device.
"""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache(maxsize=64)
def _triangle(features: int, device: torch.device) -> torch.Tensor:
    # Flat positions i * F + j of the pairs j < i in a row-major F x F matrix, row by row.
    rows, columns = torch.tril_indices(features, features, offset=-1, device=device)
    return rows * features + columns


def dot_interaction_reference(x: torch.Tensor) -> torch.Tensor:
    """PyTorch version of :func:`dot_interaction`: one batched product, one flat gather.

    A gather by two index tensors would send its backward through ``index_put`` with accumulation, which is several
    times slower on a CPU than the ``index_add`` of one flat ``index_select``.
    """
    batch, features, _ = x.shape
    products = torch.bmm(x, x.transpose(1, 2)).view(batch, features * features)
    return products.index_select(1, _triangle(features, x.device))


def dot_interaction(x: torch.Tensor) -> torch.Tensor:
    """Dot products of all pairs of feature vectors.

    Args:
        x: [B, F, D], any floating dtype.

    Returns:
        [B, F (F - 1) / 2], dtype of ``x``: the strictly lower triangle of ``x @ x.T`` row by row, that is the pairs
        (1,0), (2,0), (2,1), (3,0), ... Differentiable.

    Raises:
        ValueError: ``x`` does not have three dimensions.
    """
    if x.dim() != 3:
        raise ValueError(f"dot_interaction takes [batch, features, dim], got {tuple(x.shape)}")
    return dot_interaction_reference(x)
