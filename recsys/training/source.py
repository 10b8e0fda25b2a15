"""Rows of a Parquet file, by row group, encoded and labelled: what training and evaluation stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.contracts import SURFACES, open_parquet
from recsys.datasets.info import Label
from recsys.errors import InputError
from recsys.features.encoded import Encoded
from recsys.features.encoders import FeatureEncoder, shifted
from recsys.features.integers import hash_integers, plain_integers
from recsys.features.vocabulary import as_strings, flatten, merged, stable_hash
from recsys.training.labels import GROUPS, IDENTITY, read_counts, read_labels, sampling_mask, validation_mask

KEPT_ROWS = 1 << 18
"""A source of at most so many rows is encoded once and kept; a larger one is read anew in every epoch."""


@dataclass(frozen=True)
class Selection:
    """Which rows of a file count.

    Attributes:
        part: all, those outside the validation slice, or those in it.
        validation_share: what the slice is cut by.
        negative_keep: share of the success-free rows that are kept (of ``training`` only).
    """

    part: Literal["all", "training", "validation"] = "all"
    validation_share: float = 0.0
    negative_keep: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that :meth:`mask` reads, where the file has them."""
        if self.part == "all":
            return ()
        return (*(GROUPS if self.validation_share > 0 else ()),
                *((IDENTITY,) if self.part == "training" and self.negative_keep < 1 else ()))

    def mask(self, table: pa.Table, successes: np.ndarray, offset: int) -> np.ndarray:
        """True for the rows that count; ``offset`` is the number of the table's first row within the file."""
        if self.part == "all":
            return np.ones(table.num_rows, bool)
        held_out = validation_mask(table, self.validation_share)
        if self.part == "validation":
            return held_out
        return ~held_out & sampling_mask(table, successes, self.negative_keep, offset)


@dataclass(frozen=True)
class ParquetSource:
    """Rows of a Parquet file, by row group.

    Attributes:
        file: path or address.
        encoder: of the features.
        labels: one a head.
        selection: which rows count.
        groups: int64 [G], the file's row groups that are part of this source.
        counts: int64 [G], rows of each that count.
        people: also give each row's user and surface, where the file has them.
    """

    file: str | Path
    encoder: FeatureEncoder
    labels: tuple[Label, ...]
    selection: Selection
    groups: np.ndarray
    counts: np.ndarray
    people: bool = False
    _kept: dict[int, Encoded] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Rows that count."""
        return int(self.counts.sum())

    @cached_property
    def _open(self) -> GroupReader:
        wanted = [*self.encoder.columns, *label_columns(self.labels), "weight", *self.selection.columns]
        return GroupReader(self.file, [*wanted, "user_id", "surface"] if self.people else wanted, self.encoder.sparse)

    def read(self, group: int) -> Encoded:
        """Rows that count of the ``group``-th row group of this source, encoded and labelled.

        Raises:
            InputError: a damaged file, a bad value, an id out of range; with the row's number within the file.
        """
        if group in self._kept:
            return self._kept[group]
        table, offset = self._open.read(int(self.groups[group]))
        encoded = self._encode(table, offset)
        if self.rows <= KEPT_ROWS:
            self._kept[group] = encoded
        return encoded

    def _encode(self, table: pa.Table, offset: int) -> Encoded:
        trials, successes = read_labels(table, self.labels, self.file, offset)
        mask = self.selection.mask(table, successes, offset)
        if not mask.all():
            table, trials, successes = table.filter(pa.array(mask)), trials[mask], successes[mask]
        weight = user = surface = None
        if "weight" in table.column_names:
            weight = np.nan_to_num(read_counts(table, "weight", self.file), nan=1.0).astype(np.float32)
        if self.people:
            user = user_hashes(table, self.file) if "user_id" in table.column_names else None
            surface = surface_codes(table) if "surface" in table.column_names else None
        with shifted(np.flatnonzero(mask) + offset):
            encoded = self.encoder.encode(table, self.file)
        return replace(encoded, trials=trials, successes=successes, weight=weight, user=user, surface=surface)

    def sample(self, rows: int) -> ParquetSource:
        """About so many of the rows: whole row groups, evenly spaced; itself where it has no more."""
        if self.rows <= rows:
            return self
        wanted = max(int(len(self.counts) * rows / self.rows), 1)
        chosen = np.unique(np.linspace(0, len(self.counts) - 1, wanted).round().astype(np.int64))
        return replace(self, groups=self.groups[chosen], counts=self.counts[chosen], _kept={})


class GroupReader:
    """A Parquet file that gives some columns of one row group at a time; ``categories`` as dictionaries."""

    def __init__(self, file: str | Path, columns: list[str], categories: Sequence[str] = ()) -> None:
        self._name, self._file = file, open_parquet(file, categories)
        self.schema: pa.Schema = self._file.schema_arrow
        self.columns = [n for n in dict.fromkeys(columns) if n in self.schema.names]
        metadata: pq.FileMetaData = self._file.metadata
        self.metadata = metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.offsets = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)

    def read(self, group: int) -> tuple[pa.Table, int]:
        """The row group, and the number of its first row."""
        try:
            return self._file.read_row_group(group, self.columns), int(self.offsets[group])
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError("damaged Parquet file", file=self._name, got=str(error).splitlines()[0],
                             expected="a complete Parquet file") from None

    def __iter__(self) -> Iterator[tuple[pa.Table, int]]:
        return (self.read(g) for g in range(len(self.offsets) - 1))


def label_columns(labels: tuple[Label, ...]) -> list[str]:
    """Columns that the labels stand in."""
    return [str(c) for label in labels for c in (label.column, label.trials, label.successes) if c]


def user_hashes(table: pa.Table, file: str | Path) -> np.ndarray:
    """Stable hash of ``user_id``, int64 [n]; integers hash as their decimal text."""
    column = merged(table["user_id"])
    found = plain_integers(column)
    if found is not None and found[1] is None:
        return hash_integers(found[0]).view(np.int64)
    coded = flatten(column).dictionary_encode(null_encoding="encode")
    hashes = stable_hash(as_strings(coded.dictionary, "user_id", file)).view(np.int64)
    return hashes.take(coded.indices.to_numpy(zero_copy_only=False))


def surface_codes(table: pa.Table) -> np.ndarray:
    """Place of ``surface`` in :data:`recsys.contracts.SURFACES`, int8 [n]; -1 where it is none of them."""
    found = pc.index_in(flatten(table["surface"]).cast(pa.string()), value_set=pa.array(SURFACES))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int8))
