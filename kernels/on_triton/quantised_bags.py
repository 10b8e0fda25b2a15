"""Triton version of recsys.kernels.quantised_bags: a program some bags of one feature."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from recsys.kernels.on_triton.common import autotuned, on_its_device, power_of_2

# A row is a hundred bytes: several bags a program, so that many loads are in flight. Of 32 bags Triton 3.7 compiles
# nothing (benchmarks/gpu/compile.py); one stage, as each load waits for the one before.
_CONFIGS = [triton.Config({"BB": n}, num_warps=w, num_stages=1)
            for n, w in ((8, 2), (4, 1), (8, 1), (16, 2), (16, 4))]


@triton.jit
def _e4m3(code):
    # Sign, exponent and fraction moved to a half's places; the difference of the exponents' biases is a factor 2^8.
    bits = code.to(tl.int32)
    bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def _rows(tables, halves, words, row, has, d, D: tl.constexpr, BYTES: tl.constexpr, KIND: tl.constexpr,
          BD: tl.constexpr):
    # Rows as float32 [BB, BD]; row is int64, as tables are larger than 2^31 bytes
    mask = has[:, None] & (d < D)[None, :]
    if KIND == "fp32":
        return tl.load(words + row[:, None] * D + d[None, :], mask=mask, other=0.0)
    codes = tables + row[:, None] * BYTES + 4
    if KIND == "fp8":
        scale = tl.load(words + row * BYTES // 4, mask=has, other=0.0)
        return _e4m3(tl.load(codes + d[None, :], mask=mask, other=0)) * scale[:, None]
    at = halves + row * BYTES // 2
    scale = tl.load(at, mask=has, other=0.0).to(tl.float32)
    least = tl.load(at + 1, mask=has, other=0.0).to(tl.float32)
    if KIND == "int4":
        j = tl.arange(0, BD // 2)
        pair = tl.load(codes + j[None, :], mask=has[:, None] & (j < D // 2)[None, :], other=0)
        code = tl.interleave((pair & 15).to(tl.float32), (pair >> 4).to(tl.float32))
    else:
        code = tl.load(codes + d[None, :], mask=mask, other=0).to(tl.float32)
    return code * scale[:, None] + least[:, None]


@autotuned(_CONFIGS, key=["D", "KIND", "WEIGHTED"])
@triton.jit
def _bags(tables, halves, words, values, offsets, first_row, weights, beside, out, B, F, K, D: tl.constexpr,
          BYTES: tl.constexpr, KIND: tl.constexpr, MEAN: tl.constexpr, WEIGHTED: tl.constexpr, BD: tl.constexpr,
          BB: tl.constexpr):
    f = tl.program_id(1)
    b = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB)
    d = tl.arange(0, BD)
    inside = b < B
    to = out + (b[:, None] * (F + K) + f) * D + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    if f < F:
        at = f.to(tl.int64) * B + b
        start = tl.load(offsets + at, mask=inside, other=0)
        length = tl.load(offsets + at + 1, mask=inside, other=0) - start
        base = tl.load(first_row + f)
        total = tl.zeros((BB, BD), tl.float32)
        for i in range(0, tl.max(length, axis=0)):
            has = i < length
            row = tl.load(values + start + i, mask=has, other=0).to(tl.int64) + base
            found = _rows(tables, halves, words, row, has, d, D, BYTES, KIND, BD)
            if WEIGHTED:
                found *= tl.load(weights + start + i, mask=has, other=0.0)[:, None]
            total += found  # where there is nothing, codes, scale and least are 0
        if MEAN:
            total /= tl.maximum(length, 1).to(tl.float32)[:, None]
        tl.store(to, total.to(out.dtype.element_ty), mask=mask)
    else:
        copied = tl.load(beside + (b[:, None] * K + f - F) * D + d[None, :], mask=mask, other=0.0)
        tl.store(to, copied.to(out.dtype.element_ty), mask=mask)


@on_its_device
def forward(tables: torch.Tensor, kind: str, values: torch.Tensor, offsets: torch.Tensor, first_row: torch.Tensor,
            weights: torch.Tensor | None, mean: bool, beside: torch.Tensor) -> torch.Tensor:
    """[B, F + K, D], dtype of ``beside`` [B, K, D]."""
    tables, values, offsets, beside = (t.contiguous() for t in (tables, values, offsets, beside))
    batch, more, dim = beside.shape
    features = len(first_row)
    out = beside.new_empty((batch, features + more, dim))
    # What a kind does not read is handed over as bytes: an int4 row need not be a multiple of a float32.
    words = tables.view(torch.float32) if kind in ("fp8", "fp32") else tables
    halves = tables.view(torch.float16) if kind in ("int8", "int4") else tables
    if out.numel():
        _bags[lambda tuned: (triton.cdiv(batch, tuned["BB"]), features + more)](
            tables, halves, words, values, offsets, first_row.contiguous(),
            words if weights is None else weights.contiguous(), beside, out, batch, features, more, D=dim,
            BYTES=tables.shape[1], KIND=kind, MEAN=mean, WEIGHTED=weights is not None, BD=power_of_2(dim, 4))
    return out
