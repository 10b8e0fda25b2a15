"""Embedding bags from packed tables, for serving: jagged ids in, the interaction's [B, F, D] out.

All tables of a model are one matrix of bytes, a row D numbers and, in front, what they are decoded with. ``int8``,
``int4`` and ``fp32`` are in the layout of FBGEMM's inference operator, which serves them on a CPU:

======  =================================================================  ==========  ==========================
kind    a row                                                              bytes       error of a number, at most
======  =================================================================  ==========  ==========================
int8    float16 scale, float16 least, D codes: least + scale * code        D + 4       scale / 2 + rounding
int4    the same, two codes a byte, the lower half first                   D / 2 + 4   scale / 2 + rounding
fp8     float32 scale, D numbers e4m3: the row's largest is 448            D + 4       1/16 of the number
fp32    D numbers                                                          4 D         0
======  =================================================================  ==========  ==========================

where scale is (max - min) / 255 or / 15, and rounding that of scale and least to half precision: 2^-11 of each, so
2^-11 (max - min) and 2^-11 |min|.

FLOPs: 2 D a looked-up row. Bytes moved, at the least: a row and its id (8) a looked-up row, an offset (8) and D e
written a bag, e bytes an element of the output. Bound by memory bandwidth and latency: rows are read at random, in
sectors of 32 bytes, of which a row of D = 128 touches 5 (int8) or 3 (int4).
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any, Literal

import torch
from recsys.kernels.dispatch import uses_triton, wants_op

Kind = Literal["int8", "int4", "fp8", "fp32"]
HEADER = 4
"""Bytes in front of a row's codes."""
_LARGEST = 448.0  # of e4m3
_CODES = {"int8": 255, "int4": 15}
_HAS_FBGEMM = importlib.util.find_spec("fbgemm_gpu") is not None


def row_bytes(kind: str, dim: int) -> int:
    """Bytes of a row; ValueError for an unknown kind or a dimension that is no multiple of 4."""
    if dim % 4:
        raise ValueError(f"packed rows need a multiple of 4 numbers, not {dim}")
    found = {"int8": HEADER + dim, "int4": HEADER + dim // 2, "fp8": HEADER + dim, "fp32": 4 * dim}
    if kind not in found:
        raise ValueError(f"no such kind: {kind}; {' | '.join(found)}")
    return found[kind]


def quantise(table: torch.Tensor, kind: Kind) -> torch.Tensor:
    """A table's rows as bytes: row-wise, rounded to the nearest code.

    Args:
        table: floating [R, D], finite and within float16's range (fp8, fp32: float32's); D a multiple of 4.

    Returns:
        uint8 [R, row_bytes(kind, D)], on the table's device.
    """
    rows, dim = table.shape
    size = row_bytes(kind, dim)
    if not rows:
        return table.new_empty((0, size), dtype=torch.uint8)
    table = table.detach().float().contiguous()
    if kind == "fp32":
        return table.view(torch.uint8)
    if kind == "fp8":
        scale = table.abs().amax(1, keepdim=True).clamp_min(1e-30) / _LARGEST
        return torch.cat([scale.view(torch.uint8), (table / scale).to(torch.float8_e4m3fn).view(torch.uint8)], dim=1)
    low, high = table.aminmax(dim=1, keepdim=True)
    least = low.half()
    scale = ((high - least.float()).clamp_min(0) / _CODES[kind]).half()
    # A scale of half precision that was rounded down would leave the largest number out of reach: one step up.
    short = scale.float() * _CODES[kind] + least.float() < high
    scale = torch.where(short, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    step = scale.float().clamp_min(torch.finfo(torch.float32).tiny)
    codes = ((table - least.float()) / step).round().clamp(0, _CODES[kind]).to(torch.uint8)
    if kind == "int4":
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return torch.cat([torch.cat([scale, least], dim=1).view(torch.uint8), codes], dim=1)


def dequantise(packed: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Rows that :func:`quantise` made, uint8 [..., row_bytes], as float32 [..., D]; of plain operations, so that it
    exports."""
    if kind == "fp32":
        return packed.contiguous().view(torch.float32)
    decoding, codes = packed[..., :HEADER].contiguous(), packed[..., HEADER:]
    if kind == "fp8":
        return codes.contiguous().view(torch.float8_e4m3fn).float() * decoding.view(torch.float32)
    scale, least = decoding.view(torch.float16).float().split(1, dim=-1)
    if kind == "int4":
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    return codes.float() * scale + least


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


def _forward(tables: torch.Tensor, kind: str, values: torch.Tensor, offsets: torch.Tensor, first_row: torch.Tensor,
             beside: torch.Tensor, weights: torch.Tensor | None, mean: bool, kernels: str) -> torch.Tensor:
    if uses_triton(kernels, beside):
        from recsys.kernels.on_triton import quantised_bags as on_triton

        return on_triton.forward(tables, kind, values, offsets, first_row, weights, mean, beside)
    if kind == "fp8" or tables.device.type != "cpu" or not _HAS_FBGEMM or not beside.shape[0]:
        return quantised_bags_reference(tables, kind, values, offsets, first_row, beside, weights, mean)  # type: ignore
    return _by_fbgemm(tables, kind, values, offsets, first_row, beside, weights, mean)


def _by_fbgemm(tables: torch.Tensor, kind: str, values: torch.Tensor, offsets: torch.Tensor, first_row: torch.Tensor,
               beside: torch.Tensor, weights: torch.Tensor | None, mean: bool) -> torch.Tensor:
    """FBGEMM's operator for CPUs: all tables in one call."""
    batch, more, dim = beside.shape
    features = len(first_row)
    operator, fixed = _fbgemm(kind, features, dim, mean, beside.dtype)
    found = operator(dev_weights=tables.reshape(-1), weights_offsets=first_row * tables.shape[1], indices=values.int(),
                     offsets=offsets.int(), indice_weights=weights, **fixed).view(batch, features, dim)
    return torch.cat([found, beside], dim=1) if more else found


@lru_cache(32)  # small tensors cost as much as the lookup of a request
def _fbgemm(kind: str, features: int, dim: int, mean: bool, output: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The operator, and the arguments that no call changes."""
    import fbgemm_gpu  # noqa: F401  (registers it)
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode

    names = {"max_int2_D": "", "max_int4_D": "int4", "max_int8_D": "int8", "max_float8_D": "", "max_float16_D": "",
             "max_float32_D": "fp32"}
    return torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function, {
        **{name: dim if of == kind else 0 for name, of in names.items()},
        "uvm_weights": torch.zeros(0, dtype=torch.uint8), "total_D": features * dim,
        "weights_placements": torch.full((features,), EmbeddingLocation.HOST.value, dtype=torch.int32),
        "weights_tys": torch.full((features,), SparseType[kind.upper()].as_int(), dtype=torch.uint8),
        "D_offsets": torch.arange(features + 1, dtype=torch.int32) * dim, "row_alignment": 1,
        "pooling_mode": int((PoolingMode.MEAN if mean else PoolingMode.SUM).value),
        "output_dtype": SparseType.from_dtype(output).as_int(), "lxu_cache_weights": None,
        "lxu_cache_locations": None, "fp8_exponent_bits": -1, "fp8_exponent_bias": -1}


_quantised_bags = torch.library.custom_op("recsys::quantised_bags", _forward, mutates_args=())


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
        kind: ``int8`` | ``int4`` | ``fp8`` | ``fp32``.
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
    call = _quantised_bags if wants_op(tables, beside) else _forward
    return call(tables, kind, values, offsets, first_row, beside, weights, mean, kernels)
