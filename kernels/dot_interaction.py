"""Pairwise dot products of feature vectors: the interaction of DLRM (Naumov et al. 2019, arXiv:1906.00091).

Cost, for x of shape [B, F, D] with P = F (F - 1) / 2 pairs, K vectors kept beside them, and e bytes an element:

=========  ============================  ==============================================================
           FLOPs                         bytes moved, at the least
=========  ============================  ==============================================================
forward    2 B P D (bmm does 2 B F F D)  e B (F D + K D + P): read x, write the vectors and the pairs
backward   4 B P D                       e B (2 F D + K D + P): read x and the gradient, write dx
=========  ============================  ==============================================================

The PyTorch version also writes and reads the whole F x F product, so it moves e B (2 F F) bytes more: that is what a
fused kernel saves. What it does not do is gather by index, which runs on one core and element by element: with pairs
ordered by diagonals they are strided views of the product (:func:`pair_order`), copied by all cores. Where
it was built, a C++ version (``native/``) keeps a row's products in the first cache instead. On a GPU the
Triton version (``on_triton/``) keeps the product in registers: it is bound by memory bandwidth, as 2 F operations for
each number read are far below what a GPU can do.
"""

from __future__ import annotations

from typing import Any

import torch
from recsys.kernels import native
from recsys.kernels.dispatch import autocast_dtype, uses_triton, wants_op


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


def dot_interaction_reference(x: torch.Tensor, first: int = 0, last: int = 0) -> torch.Tensor:
    """The oracle of :func:`dot_interaction`: plain operations, differentiated by autograd."""
    left, right = pair_order(x.shape[1]).to(x.device).unbind(1)
    pairs = torch.bmm(x, x.transpose(1, 2))[:, left, right]
    return torch.cat([x[:, first:last].flatten(1), pairs], dim=1)


def _forward(x: torch.Tensor, first: int, last: int, kernels: str) -> torch.Tensor:
    if uses_triton(kernels, x):
        from recsys.kernels.on_triton import dot_interaction as on_triton

        return on_triton.forward(x, first, last)
    if native.takes(x):
        return native.forward(x, first, last)
    batch, features, dim = x.shape
    runs, rest = _views(torch.bmm(x, x.transpose(1, 2)))
    start = (last - first) * dim
    split = start + runs.shape[1] * runs.shape[2]
    out = x.new_empty((batch, start + features * (features - 1) // 2))
    out[:, :start].unflatten(1, (last - first, dim)).copy_(x[:, first:last])
    out[:, start:split].unflatten(1, runs.shape[1:]).copy_(runs)
    out[:, split:].copy_(rest)
    return out


_dot_interaction = torch.library.custom_op("recsys::dot_interaction", _forward, mutates_args=())


@_dot_interaction.register_fake
def _(x: torch.Tensor, first: int, last: int, kernels: str) -> torch.Tensor:
    batch, features, dim = x.shape
    return x.new_empty((batch, (last - first) * dim + features * (features - 1) // 2))


@torch.library.custom_op("recsys::dot_interaction_backward", mutates_args=())
def _dot_interaction_backward(grad: torch.Tensor, x: torch.Tensor, first: int, last: int, kernels: str) -> torch.Tensor:
    if uses_triton(kernels, x):
        from recsys.kernels.on_triton import dot_interaction as on_triton

        return on_triton.backward(grad, x, first, last)
    if native.takes(x):
        return native.backward(grad, x, first, last)
    batch, features, dim = x.shape
    matrix = x.new_zeros((batch, features, features))
    runs, rest = _views(matrix)
    start = (last - first) * dim
    split = start + runs.shape[1] * runs.shape[2]
    runs.copy_(grad[:, start:split].unflatten(1, runs.shape[1:]))
    rest.copy_(grad[:, split:])
    found = torch.bmm(matrix, x).add_(torch.bmm(matrix.transpose(1, 2), x))
    found[:, first:last] += grad[:, :start].unflatten(1, (last - first, dim))
    return found


@_dot_interaction_backward.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, first: int, last: int, kernels: str) -> torch.Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, *ctx.choices = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return _dot_interaction_backward(grad, *ctx.saved_tensors, *ctx.choices), None, None, None


_dot_interaction.register_autograd(_gradient, setup_context=_keep)


def dot_interaction(x: torch.Tensor, first: int = 0, last: int = 0, kernels: str = "auto") -> torch.Tensor:
    """Dot products of all pairs of feature vectors, behind some of the vectors themselves.

    Args:
        x: [B, F, D], any floating dtype.
        first, last: the vectors ``x[:, first:last]`` stand before the products; none by default.
        kernels: ``auto`` | ``reference`` | ``triton`` (:mod:`recsys.kernels.dispatch`).

    Returns:
        [B, (last - first) D + F (F - 1) / 2], dtype of ``x`` (under autocast, autocast's), pairs as :func:`pair_order`
        says. Differentiable once.

    Raises:
        ValueError: ``x`` does not have three dimensions, or not those vectors.
        InputError: Triton is asked for where it cannot run.
    """
    if x.dim() != 3:
        raise ValueError(f"dot_interaction takes [batch, features, dim], got {tuple(x.shape)}")
    if not 0 <= first <= last <= x.shape[1]:
        raise ValueError(f"vectors {first} to {last} of {x.shape[1]}")
    x = x.to(autocast_dtype(x))
    if x.shape[1] < 2:
        return x[:, first:last].flatten(1)
    if kernels == "reference":
        return dot_interaction_reference(x, first, last)
    return (_dot_interaction if wants_op(x) else _forward)(x, first, last, kernels)
