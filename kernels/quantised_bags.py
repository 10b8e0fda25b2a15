"""Embedding bags from quantised tables, for serving: jagged ids in, the interaction's [B, F, D] out.

All tables of a model are one matrix of bytes, a row D numbers and what they are decoded with. ``int8`` and ``int4`` are
in the layout of PyTorch's own operators (``torch.ops.quantized.embedding_bag_{byte,4bit}_prepack``), which serve them
on a CPU:

======  =================================================================  ==========  =====================
kind    a row                                                              bytes       largest error
======  =================================================================  ==========  =====================
int8    D codes, float32 scale, float32 least: least + scale * code        D + 8       (max - min) / 510
int4    D / 2 bytes of two codes, float16 scale, float16 least             D / 2 + 4   (max - min) / 30
fp8     D numbers e4m3, float32 scale: the row's largest is 448            D + 4       1/16 of each number
======  =================================================================  ==========  =====================

FLOPs: 2 D a looked-up row. Bytes moved, at the least: a row and its id (8) a looked-up row, an offset (8) and D e
written a bag, e bytes an element of the output. Bound by memory bandwidth and latency: rows are read at random, in
sectors of 32 bytes, of which a row of D = 128 touches 5 (int8) or 3 (int4).
"""

from __future__ import annotations

from typing import Literal

import torch
from recsys.kernels.dispatch import uses_triton

Kind = Literal["int8", "int4", "fp8"]
_LARGEST = 448.0  # of e4m3


def row_bytes(kind: str, dim: int) -> int:
    """Bytes of a row; ValueError for an unknown kind or a dimension that is no multiple of 4."""
    if dim % 4:
        raise ValueError(f"quantised rows need a multiple of 4 numbers, not {dim}")
    found = {"int8": dim + 8, "int4": dim // 2 + 4, "fp8": dim + 4}
    if kind not in found:
        raise ValueError(f"no such kind: {kind}; {' | '.join(found)}")
    return found[kind]


def quantise(table: torch.Tensor, kind: Kind) -> torch.Tensor:
    """A table's rows as bytes.

    Args:
        table: floating [R, D], finite; D a multiple of 4.

    Returns:
        uint8 [R, row_bytes(kind, D)], on the table's device.
    """
    rows, dim = table.shape
    size = row_bytes(kind, dim)
    if not rows:
        return table.new_empty((0, size), dtype=torch.uint8)
    table = table.detach().float()
    if kind == "fp8":
        scale = table.abs().amax(1, keepdim=True).clamp_min(1e-30) / _LARGEST
        codes = (table / scale).to(torch.float8_e4m3fn).view(torch.uint8)
        return torch.cat([codes, scale.view(torch.uint8)], dim=1)
    prepack = {"int8": torch.ops.quantized.embedding_bag_byte_prepack,
               "int4": torch.ops.quantized.embedding_bag_4bit_prepack}[kind]
    return prepack(table.cpu().contiguous()).to(table.device)


def dequantise(packed: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Rows that :func:`quantise` made, float32 [R, D]."""
    if kind == "fp8":
        dim = packed.shape[1] - 4
        codes = packed[:, :dim].contiguous().view(torch.float8_e4m3fn).float()
        return codes * packed[:, dim:].contiguous().view(torch.float32)
    if kind == "int8":
        dim = packed.shape[1] - 8
        codes, decoding = packed[:, :dim], packed[:, dim:].contiguous().view(torch.float32)
    else:
        half = packed.shape[1] - 4
        codes = torch.stack([packed[:, :half] & 15, packed[:, :half] >> 4], dim=2).flatten(1)
        decoding = packed[:, half:].contiguous().view(torch.float16).float()
    return codes.float() * decoding[:, :1] + decoding[:, 1:]


def _rows_of_bags(values: torch.Tensor, offsets: torch.Tensor, first_row: torch.Tensor,
                  batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # The rows in the one matrix, the bag of each, and the bags' lengths.
    lengths = offsets.diff()
    bag = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
    return values.long() + first_row[bag // max(batch, 1)], bag, lengths


def quantised_bags_reference(tables: torch.Tensor, kind: Kind, values: torch.Tensor, offsets: torch.Tensor,
                             first_row: torch.Tensor, beside: torch.Tensor, weights: torch.Tensor | None = None,
                             mean: bool = False) -> torch.Tensor:
    """The oracle of :func:`quantised_bags`: rows decoded, then summed."""
    batch, _, dim = beside.shape
    rows, bag, lengths = _rows_of_bags(values, offsets, first_row, batch)
    found = dequantise(tables[rows], kind)
    if weights is not None:
        found = found * weights.unsqueeze(1)
    total = found.new_zeros((len(lengths), dim)).index_add_(0, bag, found)
    if mean:
        total /= lengths.clamp_min(1).unsqueeze(1)
    return torch.cat([total.view(len(first_row), batch, dim).transpose(0, 1).to(beside.dtype), beside], dim=1)


@torch.library.custom_op("recsys::quantised_bags", mutates_args=())
def _quantised_bags(tables: torch.Tensor, kind: str, values: torch.Tensor, offsets: torch.Tensor,
                    first_row: torch.Tensor, beside: torch.Tensor, weights: torch.Tensor | None, mean: bool,
                    kernels: str) -> torch.Tensor:
    if uses_triton(kernels, beside):
        from recsys.kernels.on_triton import quantised_bags as on_triton

        return on_triton.forward(tables, kind, values, offsets, first_row, weights, mean, beside)
    batch, more, dim = beside.shape
    if kind == "fp8" or tables.device.type != "cpu" or not len(values):
        return quantised_bags_reference(tables, kind, values, offsets, first_row, beside, weights, mean)  # type: ignore
    features = len(first_row)
    lookup = {"int8": torch.ops.quantized.embedding_bag_byte_rowwise_offsets,
              "int4": torch.ops.quantized.embedding_bag_4bit_rowwise_offsets}[kind]
    out = beside.new_empty((batch, features + more, dim))
    # A feature at a time: its vectors are still in the cache when they are put in their place.
    for f in range(features):
        own = offsets[f * batch : (f + 1) * batch + 1].long()
        first, last = int(own[0]), int(own[-1])
        found = lookup(tables, values[first:last].long() + first_row[f], own - first, False, 0, False,
                       None if weights is None else weights[first:last], None, True)
        out[:, f] = found / own.diff().clamp_min(1).unsqueeze(1) if mean else found
    out[:, features:] = beside
    return out


@_quantised_bags.register_fake
def _(tables: torch.Tensor, kind: str, values: torch.Tensor, offsets: torch.Tensor, first_row: torch.Tensor,
      beside: torch.Tensor, weights: torch.Tensor | None, mean: bool, kernels: str) -> torch.Tensor:
    batch, more, dim = beside.shape
    return beside.new_empty((batch, first_row.shape[0] + more, dim))


def quantised_bags(tables: torch.Tensor, kind: Kind, values: torch.Tensor, offsets: torch.Tensor,
                   first_row: torch.Tensor, beside: torch.Tensor, weights: torch.Tensor | None = None,
                   mean: bool = False, kernels: str = "auto") -> torch.Tensor:
    """Pooled rows of quantised tables, in front of vectors that stand beside them at the interaction.

    Args:
        tables: uint8 [R, row_bytes(kind, D)], the tables below each other (:func:`quantise`).
        kind: ``int8`` | ``int4`` | ``fp8``.
        values: int32 or int64 [N], ids within their tables; not checked.
        offsets: int32 or int64 [F B + 1]: the bag of feature f and row b is ``values[offsets[f B + b]`` to
            ``offsets[f B + b + 1]]``, as in a KeyedJaggedTensor.
        first_row: int64 [F], where each feature's table begins.
        beside: [B, K, D], K may be 0: written behind the features (the dense features' vector); its dtype is the
            result's.
        weights: float32 [N], of each id; None: 1.
        mean: divide by the number of ids (as FBGEMM does, also where they are weighted); else the sum.
        kernels: ``auto`` | ``reference`` | ``triton`` (:mod:`recsys.kernels.dispatch`).

    Returns:
        [B, F + K, D]; an empty bag is zeros. Without gradients.

    Raises:
        ValueError: ``tables`` does not have the bytes of such rows.
        InputError: Triton is asked for where it cannot run.
    """
    if tables.shape[1] != row_bytes(kind, beside.shape[2]):
        raise ValueError(f"{kind} rows of {beside.shape[2]} numbers have {row_bytes(kind, beside.shape[2])} bytes, "
                         f"got {tables.shape[1]}")
    if kernels == "reference":
        return quantised_bags_reference(tables, kind, values, offsets, first_row, beside, weights, mean)
    return _quantised_bags(tables, kind, values, offsets, first_row, beside, weights, mean, kernels)
