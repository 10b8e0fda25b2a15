"""Triton version of recsys.kernels.lookup_interaction: a program a row; what is looked up never leaves registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from recsys.kernels.on_triton.common import autotuned, matmul, on_its_device, power_of_2
from recsys.kernels.on_triton.dot_interaction import pair_column

_CONFIGS = [triton.Config({}, num_warps=w, num_stages=1) for w in (2, 1, 4, 8)]


@autotuned(_CONFIGS, key=["F", "D"])
@triton.jit
def _forward(tables, ids, first_row, dense, out, B, width, F: tl.constexpr, D: tl.constexpr, BF: tl.constexpr,
             BD: tl.constexpr):
    # F vectors: F - 1 looked up, and the dense one last
    b = tl.program_id(0).to(tl.int64)
    out += b * width
    f = tl.arange(0, BF)
    d = tl.arange(0, BD)
    looked_up = f < F - 1
    row = tl.load(ids + f.to(tl.int64) * B + b, mask=looked_up, other=0).to(tl.int64)
    row += tl.load(first_row + f, mask=looked_up, other=0)
    products = tl.zeros((BF, BF), tl.float32)
    for start in tl.static_range(0, D, BD):
        at = start + d
        inside = at < D
        tile = tl.load(tables + row[:, None] * D + at[None, :], mask=looked_up[:, None] & inside[None, :], other=0.0)
        own = tl.load(dense + b * D + at, mask=inside, other=0.0).to(tile.dtype)
        tl.store(out + at, own, mask=inside)
        tile = tl.where((f == F - 1)[:, None], own[None, :], tile)
        products += matmul(tile, tl.trans(tile))
    column, there = pair_column(f[:, None], f[None, :], F)
    tl.store(out + D + column, products.to(out.dtype.element_ty), mask=there)


@on_its_device
def forward(tables: torch.Tensor, ids: torch.Tensor, first_row: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """[B, D + F (F - 1) / 2] of F - 1 features and the dense vector."""
    tables, ids, first_row, dense = (t.contiguous() for t in (tables, ids, first_row, dense))
    batch, dim = dense.shape
    features = len(ids) + 1
    out = tables.new_empty((batch, dim + features * (features - 1) // 2))
    if out.numel():
        _forward[(batch,)](tables, ids, first_row, dense, out, batch, out.shape[1], F=features, D=dim,
                           BF=power_of_2(features, 16), BD=min(power_of_2(dim, 16), 128))
    return out
