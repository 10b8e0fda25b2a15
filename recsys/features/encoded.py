"""Encoded rows as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Jagged:
    """Lists of different lengths laid end to end.

    Attributes:
        values: int32 [sum of lengths].
        offsets: int64 [n + 1]; row i is ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def empty(n: int) -> Jagged:
        """n empty lists."""
        return Jagged(np.zeros(0, np.int32), np.zeros(n + 1, np.int64))

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (int32) and lengths (int32 [len(rows)]) of the given rows, in their order."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = np.cumsum(lengths)
        at = np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)
        return self.values[at], lengths.astype(np.int32)

    def latest(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The last ``length`` items of the given rows as features of at most one item, the last item first.

        Returns:
            Values int32, item after item and within it row after row, and lengths int32 [length, len(rows)] of 0 or 1.
        """
        ends = self.offsets[rows + 1]
        item = np.arange(length)[:, None]
        there = item < (ends - self.offsets[rows])[None, :]
        return self.values[(ends[None, :] - 1 - item)[there]], there.astype(np.int32)

    @staticmethod
    def concatenate(parts: Sequence[Jagged]) -> Jagged:
        """The parts' lists, one part after the other."""
        ends = np.cumsum([0, *(p.offsets[-1] - p.offsets[0] for p in parts)])
        offsets = [p.offsets[1:] - p.offsets[0] + end for p, end in zip(parts, ends[:-1], strict=True)]
        values = [p.values[p.offsets[0] : p.offsets[-1]] for p in parts]
        return Jagged(np.concatenate(values), np.concatenate([[0], *offsets]).astype(np.int64))

    def without(self, value: int) -> Jagged:
        """The same lists with one value left out."""
        keep = self.values != value
        kept = np.concatenate([[0], np.cumsum(keep)])
        return Jagged(self.values[keep], kept[self.offsets])


@dataclass(frozen=True)
class Encoded:
    """Rows as the model reads them.

    Attributes:
        dense: float32 [n, width].
        sparse: int32 [n, categorical features], rows of each feature's table; laid out feature by feature
            (Fortran order) where an encoder made it, as batches are.
        content_row: int32 [n], row of the ad's content vector; 0 where it has none.
        sequences: one jagged int32 per list feature, rows of the table ``ad_id``.
        history: jagged content rows of what the user engaged with, ads without a vector left out.
        trials, successes: float32 [n, heads], or None where rows are only scored.
        weight: float32 [n], or None for 1.
        user: int64 [n], stable hash of the user, or None.
        surface: int8 [n], place of the surface in :data:`recsys.contracts.SURFACES`, -1 unknown; or None.
        history_length: items of each list that become features of one item; 0: lists are pooled whole.
    """

    dense: np.ndarray
    sparse: np.ndarray
    content_row: np.ndarray
    sequences: tuple[Jagged, ...]
    history: Jagged
    trials: np.ndarray | None = None
    successes: np.ndarray | None = None
    weight: np.ndarray | None = None
    user: np.ndarray | None = None
    surface: np.ndarray | None = None
    history_length: int = 0

    def __len__(self) -> int:
        return len(self.dense)

    def slice(self, start: int, stop: int) -> Encoded:
        """Rows [start, stop), sharing memory."""
        def cut(jagged: Jagged) -> Jagged:
            return Jagged(jagged.values, jagged.offsets[start : stop + 1])

        plain = {n: None if (a := getattr(self, n)) is None else a[start:stop] for n in _ARRAYS}
        return replace(self, sequences=tuple(cut(s) for s in self.sequences), history=cut(self.history),
                       **plain)  # type: ignore[arg-type]

    def take(self, rows: np.ndarray) -> Encoded:
        """The given rows (int64 [B]), in their order, as arrays of their own; ``sparse`` in Fortran order."""
        def pick(jagged: Jagged) -> Jagged:
            values, lengths = jagged.take(rows)
            return Jagged(values, np.concatenate([[0], np.cumsum(lengths)]))

        plain = {n: None if (a := getattr(self, n)) is None else a.take(rows, axis=0)
                 for n in _ARRAYS if n != "sparse"}
        return replace(self, sparse=self.sparse.T.take(rows, axis=1).T,
                       sequences=tuple(pick(s) for s in self.sequences), history=pick(self.history),
                       **plain)  # type: ignore[arg-type]

    @staticmethod
    def concatenate(parts: Sequence[Encoded]) -> Encoded:
        """The parts' rows, one part after the other; all must have the same features."""
        first = parts[0]
        if len(parts) == 1 and first.sparse.flags.f_contiguous:
            return first
        plain = {n: None if getattr(first, n) is None else np.concatenate([getattr(p, n) for p in parts])
                 for n in _ARRAYS if n != "sparse"}
        return replace(
            first, sparse=np.concatenate([p.sparse.T for p in parts], axis=1).T,
            sequences=tuple(Jagged.concatenate(s) for s in zip(*(p.sequences for p in parts), strict=True)),
            history=Jagged.concatenate([p.history for p in parts]), **plain)  # type: ignore[arg-type]


_ARRAYS = ("dense", "sparse", "content_row", "trials", "successes", "weight", "user", "surface")
