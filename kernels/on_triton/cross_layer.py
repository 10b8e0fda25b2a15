"""Triton version of recsys.kernels.cross_layer: the wide product with its epilogue, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from recsys.kernels.on_triton.common import autotuned, matmul, on_its_device


def _configs(*tiles: tuple[int, int, int, int, int]) -> list[triton.Config]:
    return [triton.Config({"BM": m, "BN": n, "BK": k, "GROUP": 8}, num_warps=w, num_stages=s)
            for m, n, k, w, s in ((64, 64, 32, 4, 3), (128, 64, 64, 4, 3), (64, 128, 64, 8, 3), (128, 64, 64, 8, 3),
                                  *tiles)]


# Only what spills nothing on 8.0 and 9.0 (benchmarks/gpu/compile.py): backward holds more at once, larger tiles spill.
_FORWARD, _BACKWARD = _configs((128, 128, 32, 8, 4), (128, 128, 32, 8, 3)), _configs((64, 128, 64, 4, 3))


@triton.jit
def _places(B, W, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    # Programs run in groups of GROUP blocks of rows over all columns: what they read of h and weight stays in L2.
    program = tl.program_id(0)
    rows, columns = tl.cdiv(B, BM), tl.cdiv(W, BN)
    group = program // (GROUP * columns)
    size = tl.minimum(rows - group * GROUP, GROUP)
    within = program % (GROUP * columns)
    return group * GROUP + within % size, within // size


@triton.jit
def _up(h, weight, bias, rows, columns, m, n, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    # Tile of h weight^T + bias, float32; all three point at the tile, of which rows and columns are there
    k = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, R, BK):
        at = start + k
        a = tl.load(h + m[:, None] * R + at[None, :], mask=(m < rows)[:, None] & (at < R)[None, :], other=0.0)
        b = tl.load(weight + n[None, :] * R + at[:, None], mask=(n < columns)[None, :] & (at < R)[:, None], other=0.0)
        total += matmul(a, b)
    return total + tl.load(bias + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]


@autotuned(_FORWARD, key=["W", "R"])
@triton.jit
def _forward(x0, x, h, weight, bias, out, B, W, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
             BK: tl.constexpr, GROUP: tl.constexpr):
    row, column = _places(B, W, BM, BN, GROUP)
    # Where the tile starts is int64, as B W may exceed 2^31; places in it are int32, which take half the registers.
    row_start, column_start = row.to(tl.int64) * BM, column.to(tl.int64) * BN
    corner = row_start * W + column_start
    rows, columns = B - row * BM, W - column * BN
    m, n = tl.arange(0, BM), tl.arange(0, BN)
    up = _up(h + row_start * R, weight + column_start * R, bias + column_start, rows, columns, m, n, R, BM, BN, BK)
    at, mask = m[:, None] * W + n[None, :], (m < rows)[:, None] & (n < columns)[None, :]
    first = tl.load(x0 + corner + at, mask=mask, other=0.0).to(tl.float32)
    found = first * up + tl.load(x + corner + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + corner + at, found.to(out.dtype.element_ty), mask=mask)


@autotuned(_BACKWARD, key=["W", "R"])
@triton.jit
def _backward(grad, x0, h, weight, bias, d_x0, d_up, d_bias, B, W, R: tl.constexpr, BM: tl.constexpr,
              BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):
    row, column = _places(B, W, BM, BN, GROUP)
    # Where the tile starts is int64, as B W may exceed 2^31; places in it are int32, which take half the registers.
    row_start, column_start = row.to(tl.int64) * BM, column.to(tl.int64) * BN
    corner = row_start * W + column_start
    rows, columns = B - row * BM, W - column * BN
    m, n = tl.arange(0, BM), tl.arange(0, BN)
    up = _up(h + row_start * R, weight + column_start * R, bias + column_start, rows, columns, m, n, R, BM, BN, BK)
    at, mask = m[:, None] * W + n[None, :], (m < rows)[:, None] & (n < columns)[None, :]
    g = tl.load(grad + corner + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(d_x0 + corner + at, (g * up).to(d_x0.dtype.element_ty), mask=mask)
    change = g * tl.load(x0 + corner + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(d_up + corner + at, change.to(d_up.dtype.element_ty), mask=mask)
    # One program has this column of this block of rows: sums without atomics, the same in every run.
    for half in tl.static_range(BM // 64):
        part = tl.where((tl.arange(0, BM) // 64 == half)[:, None], change, 0.0)
        block = row.to(tl.int64) * (BM // 64) + half
        tl.store(d_bias + block * W + column_start + n, tl.sum(part, axis=0),
                 mask=(n < columns) & (block < tl.cdiv(B, 64)))


def _grid(batch: int, width: int) -> Any:
    return lambda tuned: (triton.cdiv(batch, tuned["BM"]) * triton.cdiv(width, tuned["BN"]),)


@on_its_device
def forward(x0: torch.Tensor, x: torch.Tensor, h: torch.Tensor, weight: torch.Tensor,
            bias: torch.Tensor) -> torch.Tensor:
    """x0 * (h weight^T + bias) + x, [B, W]."""
    x0, x, h, weight, bias = (t.contiguous() for t in (x0, x, h, weight, bias))
    out = torch.empty_like(x)
    if out.numel():
        _forward[_grid(*x.shape)](x0, x, h, weight, bias, out, *x.shape, h.shape[1])
    return out


@on_its_device
def backward(grad: torch.Tensor, x0: torch.Tensor, h: torch.Tensor, weight: torch.Tensor,
             bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x0, of h weight^T + bias (both [B, W]) and of bias."""
    grad, x0, h, weight, bias = (t.contiguous() for t in (grad, x0, h, weight, bias))
    batch, width = x0.shape
    d_x0, d_up = torch.empty_like(x0), torch.empty_like(x0)
    parts = torch.empty((triton.cdiv(batch, 64), width), dtype=torch.float32, device=x0.device)
    if x0.numel():
        _backward[_grid(batch, width)](grad, x0, h, weight, bias, d_x0, d_up, parts, batch, width, h.shape[1])
    return d_x0, d_up, parts.sum(0).to(bias.dtype)
