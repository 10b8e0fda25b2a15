"""Tables for scoring only: rows of 8 or 4 bits (or float32) in one block of bytes that processes can share.

The layout is that of :mod:`recsys.kernels.quantised_bags`, which looks all tables up in one call, on a CPU or a GPU.
The block may lie in a mapped file: nothing writes to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import torch

from recsys.errors import InputError
from recsys.kernels.dispatch import Kernels
from recsys.kernels.quantised_bags import HEADER, dequantise, quantise, quantised_bags, row_bytes
from recsys.models.embeddings.base import Embeddings, Table

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from recsys.features.bags import Bags

Bits = Literal["int8", "int4", "fp32"]


def padded_dim(dim: int) -> int:
    """Width of a row in the block: a multiple of 8."""
    return -(-dim // 8) * 8


@dataclass(frozen=True)
class Packed:
    """All tables of a ranker in one block.

    Attributes:
        block: uint8 [bytes], the tables end to end.
        bits: how a row is kept.
        dim: numbers of a row; it is stored with its last repeated up to :func:`padded_dim`.
    """

    block: torch.Tensor
    bits: Bits
    dim: int

    @classmethod
    def of(cls, tables: Mapping[str, torch.Tensor], dim: int, bits: Bits) -> Packed:
        """Pack float tables [rows, D], in their order.

        Raises:
            InputError: int8 or int4 of numbers that half precision cannot hold.
        """
        wide = padded_dim(dim) - dim  # a number that is there already asks for no wider range of codes
        parts = [quantise(torch.cat([w.detach(), w.detach()[:, -1:].expand(-1, wide)], dim=1), bits).flatten()
                 for w in tables.values()]
        for name, part in zip(tables, parts, strict=True):
            if bits != "fp32" and not part.view(-1, row_bytes(bits, padded_dim(dim)))[:, :HEADER].contiguous().view(
                    torch.float16).isfinite().all():
                raise InputError("numbers beyond half precision", column=f"table {name}",
                                 got=float(tables[name].abs().max()), expected="at most 65504, or --embeddings fp32")
        return cls(torch.cat(parts) if parts else torch.zeros(0, dtype=torch.uint8), bits, dim)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return row_bytes(self.bits, padded_dim(self.dim))

    def tables(self, tables: list[Table]) -> dict[str, torch.Tensor]:
        """Table name -> uint8 [rows, row_bytes], views of the block.

        Raises:
            RuntimeError: the block is not as long as the tables ask for.
        """
        width, at, found = self.row_bytes, 0, {}
        if len(self.block) != (need := sum(t.rows for t in tables) * width):
            raise RuntimeError(f"tables of {len(self.block)} bytes, expected {need}")
        for table in tables:
            found[table.name] = self.block[at : at + table.rows * width].view(table.rows, width)
            at += table.rows * width
        return found

    def decoded(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows uint8 [..., row_bytes] as float32 [..., dim]."""
        return dequantise(rows, self.bits)[..., : self.dim]


class QuantisedEmbeddings(Embeddings):
    """Looks packed tables up; cannot be trained. Sums where no bag holds more than one row, else means.

    Args:
        tables: as the ranker was built with; their features in that order are the output's.
        packed: the tables' rows, on the device that looks them up.
        output: dtype of the looked-up vectors.
        kernels: ``ModelConfig.kernels``.
    """

    def __init__(self, tables: list[Table], packed: Packed, output: torch.dtype = torch.float32,
                 kernels: Kernels = "auto") -> None:
        super().__init__(tables, packed.dim)
        self.packed, self.output, self.kernels = packed, output, kernels
        self._features = [f for t in tables for f in t.features]
        self._mean = any(t.lists for t in tables)
        packed.tables(tables)  # the block is as long as they ask for
        self._matrix = packed.block.view(-1, packed.row_bytes)
        first = accumulate((t.rows for t in tables), initial=0)
        self._first_row = torch.tensor([n for n, t in zip(first, tables, strict=False) for _ in t.features],
                                       dtype=torch.int64, device=packed.block.device)

    @property
    def as_matrix(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """float32 [R, D] and each feature's first row int64 [F], where every bag is one row of plain numbers: what
        :func:`recsys.kernels.lookup_interaction.lookup_interaction` takes."""
        if self.packed.bits != "fp32" or self._mean or padded_dim(self.dim) != self.dim:
            return None
        return self._matrix.view(torch.float32), self._first_row

    def ids(self, sparse: KeyedJaggedTensor | Bags) -> torch.Tensor:
        """[F, B], where every bag is one row."""
        return self._in_order(sparse).values().view(len(self._features), -1)

    def forward(self, sparse: KeyedJaggedTensor | Bags) -> torch.Tensor:
        """See :class:`Embeddings`."""
        return self.joined(sparse, [])

    def joined(self, sparse: KeyedJaggedTensor | Bags, others: Sequence[torch.Tensor]) -> torch.Tensor:
        """See :class:`Embeddings`; one call writes all of it, where rows are stored as wide as they are."""
        sparse, wide = self._in_order(sparse), padded_dim(self.dim)
        apart = wide != self.dim or any(x.dtype != self.output for x in others)
        beside = torch.empty(sparse.stride(), 0, wide, dtype=self.output, device=self._matrix.device)
        if others and not apart:
            beside = others[0] if len(others) == 1 else torch.cat(list(others), dim=1)
        found = quantised_bags(self._matrix, self.packed.bits, sparse.values(), sparse.offsets(), self._first_row,
                               beside, mean=self._mean, kernels=self.kernels)[..., : self.dim]
        return torch.cat([found, *others], dim=1) if others and apart else found

    def _in_order(self, sparse: KeyedJaggedTensor | Bags) -> KeyedJaggedTensor | Bags:
        keys = sparse.keys()
        return sparse if keys == self._features else sparse.permute([keys.index(f) for f in self._features])

    def weights(self) -> dict[str, torch.Tensor]:
        """Dequantised tables, copies."""
        return {n: self.packed.decoded(rows) for n, rows in self.packed.tables(self.tables).items()}
