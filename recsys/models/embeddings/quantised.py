"""Tables for scoring only: rows of 8 or 4 bits (or float32) in one block of bytes that processes can share.

A row of int8 or int4 is half-precision scale and bias (4 bytes), then its codes: w = code * scale + bias, the layout of
FBGEMM's inference kernel (``int_nbit_split_embedding_codegen_lookup_function``), which looks all tables up in one call.
The block may lie in a mapped file: nothing writes to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import fbgemm_gpu  # noqa: F401  (registers the operators)
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.models.embeddings.base import Embeddings, Table

Bits = Literal["int8", "int4", "fp32"]
_CODES = {"int8": 255, "int4": 15}
_TYPES = {"int8": SparseType.INT8, "int4": SparseType.INT4, "fp32": SparseType.FP32}
_HEADER = 4  # scale and bias, float16 each


def padded_dim(dim: int) -> int:
    """Width of a row in the kernel: a multiple of 8."""
    return -(-dim // 8) * 8


def row_bytes(dim: int, bits: Bits) -> int:
    """Bytes of a row of ``dim`` numbers."""
    wide = padded_dim(dim)
    return {"fp32": 4 * wide, "int8": _HEADER + wide, "int4": _HEADER + wide // 2}[bits]


def quantise(weights: torch.Tensor, bits: Bits) -> torch.Tensor:
    """A table's rows as the kernel reads them: row-wise, asymmetric, rounded to the nearest code.

    Args:
        weights: float32 [rows, D].

    Returns:
        uint8 [rows, row_bytes]. The error of a number is at most half a code's width and the rounding of scale and bias
        to half precision.
    """
    rows, dim = weights.shape
    wide = torch.zeros(rows, padded_dim(dim))
    wide[:, :dim] = weights
    if bits == "fp32":
        return wide.view(torch.uint8).reshape(rows, -1)
    low, high = weights.aminmax(dim=1, keepdim=True)
    bias = low.half()
    scale = ((high - bias.float()).clamp_min(0) / _CODES[bits]).half()
    # A scale of half precision that was rounded down would leave the largest number out of reach: one step up.
    short = scale.float() * _CODES[bits] + bias.float() < high
    scale = torch.where(short, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    step = scale.float().clamp_min(torch.finfo(torch.float32).tiny)
    codes = ((wide - bias.float()) / step).round().clamp(0, _CODES[bits]).to(torch.uint8)
    if bits == "int4":
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return torch.cat([torch.cat([scale, bias], dim=1).view(torch.uint8), codes], dim=1)


def dequantise(packed: torch.Tensor, dim: int, bits: Bits) -> torch.Tensor:
    """What the kernel makes of :func:`quantise`'s rows: float32 [rows, D]. Plain operations, so that they export."""
    if bits == "fp32":
        return packed.contiguous().view(torch.float32)[..., :dim]
    scale, bias = packed[..., :_HEADER].contiguous().view(torch.float16).float().split(1, dim=-1)
    codes = packed[..., _HEADER:]
    if bits == "int4":
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    return codes[..., :dim].float() * scale + bias


@dataclass(frozen=True)
class Packed:
    """All tables of a ranker in one block.

    Attributes:
        block: uint8 [bytes], the tables end to end.
        bits: how a row is kept.
        dim: numbers of a row.
    """

    block: torch.Tensor
    bits: Bits
    dim: int

    @classmethod
    def of(cls, tables: Mapping[str, torch.Tensor], dim: int, bits: Bits) -> Packed:
        """Pack float tables [rows, D], in their order."""
        parts = [quantise(w.detach().float(), bits).reshape(-1) for w in tables.values()]
        return cls(torch.cat(parts) if parts else torch.zeros(0, dtype=torch.uint8), bits, dim)

    def tables(self, tables: list[Table]) -> dict[str, torch.Tensor]:
        """Table name -> uint8 [rows, row_bytes], views of the block.

        Raises:
            RuntimeError: the block is not as long as the tables ask for.
        """
        width, at, found = row_bytes(self.dim, self.bits), 0, {}
        if len(self.block) != (need := sum(t.rows for t in tables) * width):
            raise RuntimeError(f"tables of {len(self.block)} bytes, expected {need}")
        for table in tables:
            found[table.name] = self.block[at : at + table.rows * width].view(table.rows, width)
            at += table.rows * width
        return found


class QuantisedEmbeddings(Embeddings):
    """Looks packed tables up on the CPU; cannot be trained. Sums where no bag holds more than one row, else means.

    Args:
        tables: as the ranker was built with; their features in that order are the output's.
        packed: the tables' rows.
        output: dtype of the looked-up vectors.
    """

    def __init__(self, tables: list[Table], packed: Packed, output: torch.dtype = torch.float32) -> None:
        super().__init__(tables, packed.dim)
        self.packed = packed
        self._features = [f for t in tables for f in t.features]
        wide, places = padded_dim(packed.dim), {t.name: i for i, t in enumerate(tables)}
        of_feature = [places[t.name] for t in tables for _ in t.features]
        starts = [0]
        for name, rows in packed.tables(tables).items():
            assert name in places
            starts.append(starts[-1] + rows.numel())
        kind = _TYPES[packed.bits]
        f = len(self._features)
        self._wide, self._arguments = wide, {
            "uvm_weights": torch.zeros(0, dtype=torch.uint8),
            "weights_placements": torch.full((f,), EmbeddingLocation.HOST.value, dtype=torch.int32),
            "weights_offsets": torch.tensor([starts[i] for i in of_feature], dtype=torch.int64),
            "weights_tys": torch.full((f,), kind.as_int(), dtype=torch.uint8),
            "D_offsets": torch.arange(f + 1, dtype=torch.int32) * wide, "total_D": f * wide,
            "max_int2_D": 0, "max_int4_D": wide if packed.bits == "int4" else 0,
            "max_int8_D": wide if packed.bits == "int8" else 0, "max_float16_D": 0,
            "max_float32_D": wide if packed.bits == "fp32" else 0,
            "pooling_mode": int((PoolingMode.MEAN if any(t.lists for t in tables) else PoolingMode.SUM).value),
            "output_dtype": {torch.float32: SparseType.FP32, torch.bfloat16: SparseType.BF16}[output].as_int(),
            "row_alignment": 1, "indice_weights": None, "lxu_cache_weights": None, "lxu_cache_locations": None,
            "max_float8_D": 0, "fp8_exponent_bits": -1, "fp8_exponent_bias": -1,
        }

    def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """See :class:`Embeddings`."""
        keys = sparse.keys()
        if keys != self._features:
            sparse = sparse.permute([keys.index(f) for f in self._features])
        found = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function(
            dev_weights=self.packed.block, indices=sparse.values().int(), offsets=sparse.offsets().int(),
            **self._arguments)
        return found.view(found.shape[0], len(self._features), self._wide)[..., : self.dim]

    def weights(self) -> dict[str, torch.Tensor]:
        """Dequantised tables, copies."""
        return {n: dequantise(rows, self.dim, self.packed.bits) for n, rows in self.packed.tables(self.tables).items()}
