"""Encoded rows as plain arrays, in memory or mapped from files, and gathering any rows of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
        sparse: int32 [n, categorical features], rows of each feature's table.
        content_row: int32 [n], row of the ad's content vector; 0 where it has none.
        sequences: one jagged int32 per list feature, rows of the table ``ad_id``.
        history: jagged content rows of what the user engaged with, ads without a vector left out.
        trials, successes: float32 [n, heads], or None where rows are only scored.
        weight: float32 [n], or None for 1.
    """

    dense: np.ndarray
    sparse: np.ndarray
    content_row: np.ndarray
    sequences: tuple[Jagged, ...]
    history: Jagged
    trials: np.ndarray | None = None
    successes: np.ndarray | None = None
    weight: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.dense)


_ARRAYS = ("dense", "sparse", "content_row", "trials", "successes", "weight")


def write_encoded(parts: Iterable[Encoded], folder: Path) -> Encoded:
    """Write a stream of encoded parts to raw files and map them back.

    The mapped arrays live in the page cache: memory that the system takes back when it needs it, so that a data set
    larger than memory trains, and one that fits is as fast as arrays.

    Args:
        parts: labelled parts, all of the same widths.
        folder: scratch folder; emptied of nothing, files of an earlier try are overwritten.

    Returns:
        The whole, mapped read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handles: dict[str, object] = {}
    shapes: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    lengths: dict[str, list[np.ndarray]] = {}
    rows, sequences = 0, 0

    def append(name: str, array: np.ndarray) -> None:
        if name not in handles:
            handles[name] = (folder / name).open("wb")
            shapes[name] = (array.dtype, array.shape[1:])
        np.ascontiguousarray(array).tofile(handles[name])  # type: ignore[arg-type]

    try:
        for part in parts:
            rows, sequences = rows + len(part), len(part.sequences)
            for name in _ARRAYS:
                if (array := getattr(part, name)) is not None:
                    append(name, array)
            for name, jagged in _jagged_of(part):
                append(name, jagged.values)
                lengths.setdefault(name, []).append(np.diff(jagged.offsets))
    finally:
        for handle in handles.values():
            handle.close()  # type: ignore[attr-defined]

    def mapped(name: str, n: int) -> np.ndarray:
        dtype, inner = shapes[name]
        if n == 0 or 0 in inner:  # an empty file cannot be mapped
            return np.zeros((n, *inner), dtype)
        return np.memmap(folder / name, dtype, "r", shape=(n, *inner))

    def mapped_jagged(name: str) -> Jagged:
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths[name]))]).astype(np.int64)
        return Jagged(mapped(name, int(offsets[-1])), offsets)

    arrays = {name: mapped(name, rows) if name in shapes else None for name in _ARRAYS}
    return Encoded(sequences=tuple(mapped_jagged(f"sequence{i}") for i in range(sequences)),
                   history=mapped_jagged("history"),
                   **arrays)  # type: ignore[arg-type]


def _jagged_of(part: Encoded) -> list[tuple[str, Jagged]]:
    return [(f"sequence{i}", s) for i, s in enumerate(part.sequences)] + [("history", part.history)]
