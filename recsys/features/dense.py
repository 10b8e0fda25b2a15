"""Numeric columns: what is fitted on the training part, and how values become network inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError
from recsys.features.vocabulary import flatten

_CLIP = 10.0  # standard deviations; a stray value must not blow up a layer
_FLOAT32 = float(np.finfo(np.float32).max)


def not_finite(column: pa.Array | pa.ChunkedArray) -> Any:
    """Which values of a floating column are NaN, infinite, or beyond float32, in which models compute.

    Returns:
        bool [n], as Arrow; false for a null.
    """
    return pc.fill_null(pc.invert(pc.is_finite(column.cast(pa.float32(), safe=False))), False)


def read_numbers(table: pa.Table, name: str, file: str | Path | None, offset: int) -> np.ndarray:
    """A numeric column with NaN where missing: float32 where it is stored so, else float64.

    Raises:
        InputError: a column of another type, or a value that is infinite or beyond float32, with its row.
    """
    column = flatten(table[name])
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
            or pa.types.is_null(kind)):
        raise InputError("wrong type", file=file, column=name, got=str(kind),
                         expected="a numeric column")
    if not pa.types.is_float32(kind):
        column = column.cast(pa.float64())
    values = column.to_numpy(zero_copy_only=False)
    # What is NaN, infinite or too large makes the sum of squares so, too: one pass instead of a mask a column.
    # The narrowed values decide, as in not_finite: 3.4028235e38, as float32's largest is printed, is a bit above it.
    with np.errstate(all="ignore"):
        suspect = not float(np.dot(values, values)) <= _FLOAT32**2
        beyond = np.isinf(values.astype(np.float32)) if suspect else None
    if beyond is not None and beyond.any():
        at = int(np.flatnonzero(beyond)[0])
        raise InputError("value not allowed", file=file, column=name, row=at + offset, got=float(values[at]),
                         expected="a finite number that float32 can hold, or null")
    return np.asarray(values)


def signed_log1p(x: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + abs(x)): heavy tails become bearable, small values stay as they are; keeps the dtype."""
    return np.asarray(np.copysign(np.log1p(np.abs(x)), x))


@dataclass(frozen=True)
class DenseColumn:
    """One numeric feature: signed log1p, then standardised by the training part's mean and deviation.

    A missing value becomes 0, the mean. Where values were missing in training, an indicator joins as a feature.
    """

    name: str
    mean: float
    scale: float
    indicator: bool

    @property
    def width(self) -> int:
        """Encoded features of this column."""
        return 1 + self.indicator

    @staticmethod
    def scale_block(values: np.ndarray, mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """(signed_log1p(values) - mean) factor, cut off at 10 deviations; NaN stays; keeps the dtype."""
        scaled = signed_log1p(values)
        scaled -= mean
        scaled *= factor
        return np.clip(scaled, -_CLIP, _CLIP, out=scaled)

    def encode_into(self, values: np.ndarray, out: np.ndarray) -> None:
        """Write float [n] with NaN for missing into float32 [width, n]."""
        kind = values.dtype.type
        scaled = self.scale_block(values, kind(self.mean), kind(1.0 / self.scale))
        missing = np.isnan(scaled)
        if self.indicator:
            out[1] = missing
        if missing.any():
            scaled[missing] = 0.0
        out[0] = scaled


class DenseStatistics:
    """Streaming mean and deviation (Chan, Golub, LeVeque 1979) of one column's signed log."""

    def __init__(self) -> None:
        self.n, self.mean, self.m2, self.missing = 0, 0.0, 0.0, 0

    def add(self, values: np.ndarray) -> None:
        """Add values, NaN where missing."""
        logs = signed_log1p(values)
        missing = np.isnan(logs)
        known = logs[~missing] if missing.any() else logs
        self.missing += len(values) - len(known)
        if len(known) == 0:
            return
        mean, total = float(known.mean(dtype=np.float64)), self.n + len(known)
        shift = mean - self.mean
        apart = known - known.dtype.type(mean)
        self.m2 += float(np.square(apart, out=apart).sum(dtype=np.float64)) + shift**2 * self.n * len(known) / total
        self.mean += shift * len(known) / total
        self.n = total

    def column(self, name: str) -> DenseColumn:
        """The fitted column."""
        deviation = (self.m2 / self.n) ** 0.5 if self.n else 0.0
        return DenseColumn(name, self.mean, deviation if deviation > 1e-9 else 1.0, self.missing > 0)
