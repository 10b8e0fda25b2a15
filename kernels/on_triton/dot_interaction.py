"""Triton version of recsys.kernels.dot_interaction: a program a row, whose F x F product stays in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from recsys.kernels.on_triton.common import autotuned, matmul, on_its_device, power_of_2

# The work of a program is small (27 x 128 numbers): few warps each, many programs in flight to hide the loads. Of two
# warps ptxas makes programs that spill (benchmarks/gpu/compile.py).
_CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((1, 1), (4, 1), (1, 2), (8, 1))]


@triton.jit
def pair_column(r, c, F: tl.constexpr):
    """Output column of the matrix's place (r, c), and whether it is one (dot_interaction.pair_order)."""
    half: tl.constexpr = F // 2
    step: tl.constexpr = F + 1
    flat = r * F + c - 1
    run = flat // step
    k = flat - run * step + 1
    inside = (r < F) & (c < F) & (flat >= 0)
    in_run = inside & (k <= half) & (run < F - 1)
    if F % 2 == 1:
        rest = inside & (k == half + 1) & (run < half)
        column = tl.where(rest, (F - 1) * half + run, run * half + k - 1)
        return column, in_run | rest
    return run * half + k - 1, in_run


@triton.jit
def _both(r, c, F: tl.constexpr):
    # Every pair has one place, (r, c) or (c, r): the column of either.
    column, here = pair_column(r, c, F)
    other, there = pair_column(c, r, F)
    return tl.where(here, column, other), here | there


@autotuned(_CONFIGS, key=["F", "D"])
@triton.jit
def _forward(x, out, stride, width, first, count, F: tl.constexpr, D: tl.constexpr, BF: tl.constexpr,
             BD: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    x += b * stride
    out += b * width
    f = tl.arange(0, BF)
    d = tl.arange(0, BD)
    products = tl.zeros((BF, BF), tl.float32)
    for start in tl.static_range(0, D, BD):
        at = start + d
        mask = (f < F)[:, None] & (at < D)[None, :]
        tile = tl.load(x + f[:, None] * D + at[None, :], mask=mask, other=0.0)
        products += matmul(tile, tl.trans(tile))
        beside = mask & ((f >= first) & (f < first + count))[:, None]
        tl.store(out + (f - first)[:, None] * D + at[None, :], tile, mask=beside)
    column, there = pair_column(f[:, None], f[None, :], F)
    tl.store(out + count * D + column, products.to(out.dtype.element_ty), mask=there)


@autotuned(_CONFIGS, key=["F", "D"])
@triton.jit
def _backward(x, grad, out, stride, width, first, count, F: tl.constexpr, D: tl.constexpr, BF: tl.constexpr,
              BD: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    x += b * stride
    grad += b * width
    out += b * F * D
    f = tl.arange(0, BF)
    d = tl.arange(0, BD)
    column, there = _both(f[:, None], f[None, :], F)
    symmetric = tl.load(grad + count * D + column, mask=there, other=0.0)
    for start in tl.static_range(0, D, BD):
        at = start + d
        mask = (f < F)[:, None] & (at < D)[None, :]
        tile = tl.load(x + f[:, None] * D + at[None, :], mask=mask, other=0.0)
        found = matmul(symmetric, tile)
        beside = mask & ((f >= first) & (f < first + count))[:, None]
        found += tl.load(grad + (f - first)[:, None] * D + at[None, :], mask=beside, other=0.0).to(tl.float32)
        tl.store(out + f[:, None] * D + at[None, :], found.to(out.dtype.element_ty), mask=mask)


def _blocks(features: int, dim: int) -> dict[str, int]:
    return {"F": features, "D": dim, "BF": power_of_2(features, 16), "BD": min(power_of_2(dim, 16), 128)}


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Rows apart by any stride (a slice of wider rows), each one contiguous."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


@on_its_device
def forward(x: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """[B, F, D] -> [B, (last - first) D + F (F - 1) / 2]."""
    batch, features, dim = x.shape
    x, count = _rows(x), last - first
    out = x.new_empty((batch, count * dim + features * (features - 1) // 2))
    if out.numel():
        _forward[(batch,)](x, out, x.stride(0), out.stride(0), first, count, **_blocks(features, dim))
    return out


@on_its_device
def backward(grad: torch.Tensor, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """The gradient of x, [B, F, D]."""
    batch, features, dim = x.shape
    x, grad = _rows(x), grad.contiguous()
    out = x.new_empty((batch, features, dim))
    if out.numel():
        _backward[(batch,)](x, grad, out, x.stride(0), grad.stride(0), first, last - first, **_blocks(features, dim))
    return out
