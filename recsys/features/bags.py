"""Ids of many features in bags, without TorchRec: what a process that only scores makes of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bags:
    """A TorchRec KeyedJaggedTensor as far as a lookup reads it. Importing TorchRec takes a second, half of what it
    takes to start a scoring process, and nothing else of it is used there.

    Attributes:
        names: F feature names.
        ids: int32, bag after bag: all bags of the first feature, then those of the next.
        counts: int32 [F B], ids of each bag.
        rows: B.
    """

    names: list[str]
    ids: torch.Tensor
    counts: torch.Tensor
    rows: int

    def keys(self) -> list[str]:
        """Feature names."""
        return self.names

    def values(self) -> torch.Tensor:
        """Ids, feature after feature."""
        return self.ids

    def lengths(self) -> torch.Tensor:
        """Of the bags, [F B]."""
        return self.counts

    def offsets(self) -> torch.Tensor:
        """Where each bag begins, and the last one ends: int32 [F B + 1]."""
        found = self.counts.new_zeros(len(self.counts) + 1)
        torch.cumsum(self.counts, 0, dtype=self.counts.dtype, out=found[1:])
        return found

    def stride(self) -> int:
        """Bags of a feature."""
        return self.rows

    def permute(self, order: Sequence[int]) -> Bags:
        """The features in another order."""
        ends = self.offsets()[:: self.rows].tolist() if self.rows else [0] * (len(self.names) + 1)
        parts = [self.ids[ends[i] : ends[i + 1]] for i in order]
        return Bags([self.names[i] for i in order], torch.cat(parts) if parts else self.ids,
                    self.counts.view(len(self.names), -1)[list(order)].flatten(), self.rows)

    def to(self, device: torch.device, non_blocking: bool = False) -> Bags:
        """On a device."""
        return Bags(self.names, self.ids.to(device, non_blocking=non_blocking),
                    self.counts.to(device, non_blocking=non_blocking), self.rows)
