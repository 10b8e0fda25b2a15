"""Categorical values to table rows: a vocabulary with a frequency threshold, or a stable hash.

Row 0 of every table is the out-of-vocabulary row: unknown values, rare values and missing values share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError
from recsys.features.integers import BYTE_CODES, PRIME, IntegerIndex, finish_hash, hash_integers, plain_integers

OUT_OF_VOCABULARY = 0
_FEW = 256

def stable_hash(values: pa.Array) -> np.ndarray:
    """Hash strings, the same on every machine and in every run.

    A polynomial in the byte codes modulo 2^64, mixed by SplitMix64; no loop over strings.

    Args:
        values: string array [n] without nulls.

    Returns:
        uint64 [n].
    """
    if len(values) == 0:
        return np.zeros(0, np.uint64)
    binary = pa.array(values.cast(pa.large_binary()))
    offsets = np.frombuffer(binary.buffers()[1], np.int64)[binary.offset : binary.offset + len(binary) + 1]
    lengths = np.diff(offsets)
    data = binary.buffers()[2]
    text = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    codes = BYTE_CODES[text]
    starts = offsets[:-1] - offsets[0]
    powers = np.full(max(int(lengths.max()), 1), np.uint64(PRIME), np.uint64)
    powers[0] = 1
    powers = np.cumprod(powers, dtype=np.uint64)
    terms = codes * powers[np.arange(len(codes)) - np.repeat(starts, lengths)]
    # reduceat gives the element itself for an empty slice, and does not take a start at the very end.
    sums = np.add.reduceat(np.append(terms, np.uint64(0)), starts)
    sums[lengths == 0] = 0
    return finish_hash(sums, lengths.astype(np.uint64))


def as_strings(column: pa.Array, name: str, file: str | Path | None = None) -> pa.Array:
    """A categorical column as strings; null becomes "" (missing), whole-numbered floats lose their ".0".

    Raises:
        InputError: the column's type is not categorical (string, integer, whole-numbered float, boolean).
    """
    kind = column.type
    if pa.types.is_floating(kind):
        try:
            column = column.cast(pa.int64())  # an integer column with gaps, as other readers write it
        except pa.ArrowInvalid:
            raise InputError("wrong type", file=file, column=name, got=str(kind),
                             expected="a categorical column (string, integer or boolean)") from None
    elif pa.types.is_null(kind):
        return pa.array([""] * len(column), pa.string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
              or pa.types.is_boolean(kind)):
        raise InputError("wrong type", file=file, column=name, got=str(kind),
                         expected="a categorical column (string, integer or boolean)")
    return pc.fill_null(column.cast(pa.string()), "")


def _not_nested(column: pa.Array, name: str, file: str | Path | None) -> pa.Array:
    # Arrow cannot count lists, and would not say of which column.
    return as_strings(column, name, file) if pa.types.is_nested(column.type) else column


def merged(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array of a column's chunks."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.combine_chunks()


def flatten(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One plain (not chunked, not dictionary-encoded) array of a column."""
    column = merged(column)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


@dataclass(frozen=True)
class Vocabulary:
    """Rows of one embedding table.

    Args:
        name: table name.
        kind: ``vocabulary`` (listed values, row i + 1 for ``values[i]``), ``hash``, or ``identity`` (the values are
            rows; there is no out-of-vocabulary row).
        rows: rows of the table, row 0 included.
        values: the listed values, most frequent first; empty but for ``vocabulary``.
    """

    name: str
    kind: Literal["vocabulary", "hash", "identity"]
    rows: int
    values: pa.Array = field(repr=False, compare=False, default_factory=lambda: pa.array([], pa.string()))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {value: row for row, value in enumerate(self.values.to_pylist(), 1)}

    @cached_property
    def _integers(self) -> IntegerIndex:
        return IntegerIndex.of(self.values)

    def _integer_rows(self, values: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
        if self.kind == "hash":
            hashes, buckets = hash_integers(values), np.uint64(self.rows - 1)
            rows = (hashes % buckets).astype(np.int32) + np.int32(1)
        else:
            rows = self._integers.find(values)
        if missing is not None:
            rows[missing] = OUT_OF_VOCABULARY
        return rows

    def encode_integers(self, values: np.ndarray, name: str) -> np.ndarray:
        """:meth:`encode` of a column without nulls that is there as int64 [n].

        Raises:
            InputError: ``identity``: the first integer outside [0, rows), with its row.
        """
        if self.kind == "identity":
            return identity_rows(values, self.rows, name)
        return self._integer_rows(values, None)

    def _unique_rows(self, values: pa.Array) -> np.ndarray:
        if self.kind == "hash":
            rows = (stable_hash(values) % np.uint64(self.rows - 1)).astype(np.int32) + 1
            rows[pc.equal(values, "").to_numpy(zero_copy_only=False)] = OUT_OF_VOCABULARY
            return rows
        if len(values) <= _FEW:  # a request's: a kept dictionary answers at once
            index = self._index
            return np.array([index.get(v, OUT_OF_VOCABULARY) for v in values.to_pylist()], np.int32)
        if self._hashes is None:
            found = pc.fill_null(pc.index_in(values, value_set=self.values), -1)
            return found.to_numpy(zero_copy_only=False).astype(np.int32) + 1
        hashes, rows = self._hashes
        asked = stable_hash(values)
        at = np.minimum(np.searchsorted(hashes, asked), len(hashes) - 1)
        same = pc.equal(values, self.values.take(pa.array(rows[at] - 1))).to_numpy(zero_copy_only=False)
        return np.where(same, rows[at], np.int32(OUT_OF_VOCABULARY))

    @cached_property
    def _hashes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Sorted hashes of the listed values and their rows; None where there are none, or two share a hash."""
        hashes = stable_hash(self.values)
        order = np.argsort(hashes)
        hashes = hashes[order]
        if not len(hashes) or (hashes[1:] == hashes[:-1]).any():
            return None
        return hashes, (order + 1).astype(np.int32)

    def encode(self, column: pa.ChunkedArray | pa.Array, name: str, file: str | Path | None = None) -> np.ndarray:
        """Table rows of a column.

        Args:
            column: [n] strings, integers or booleans; nulls are missing values.
            name: named in errors.
            file: named in errors.

        Returns:
            int32 [n], each in [0, rows).

        Raises:
            InputError: a column of another type; ``identity``: a null or an integer outside [0, rows), with its row.
        """
        if self.kind == "identity":
            return identity_rows(flatten(column), self.rows, name, file)
        raw = _not_nested(merged(column), name, file)
        if len(raw) == 0:
            return np.zeros(0, np.int32)
        if (found := plain_integers(raw)) is not None:
            return self._integer_rows(*found)
        coded = raw if pa.types.is_dictionary(raw.type) and not raw.dictionary.null_count \
            else flatten(raw).dictionary_encode()
        rows = np.append(self._unique_rows(as_strings(coded.dictionary, name, file)), np.int32(OUT_OF_VOCABULARY))
        indices = coded.indices
        if indices.null_count:  # a null is the value missing, the row behind the last
            indices = indices.cast(pa.int64()).fill_null(len(rows) - 1)
        return check_rows(rows.take(indices.to_numpy(zero_copy_only=False)), self.rows, name, file)


def identity_rows(column: pa.Array | np.ndarray, rows: int, name: str, file: str | Path | None = None) -> np.ndarray:
    """Integers in [0, rows) as they are, int32 [n].

    Raises:
        InputError: a type that holds no integers; the first null or value out of range, with its row.
    """
    expected = f"an integer in [0, {rows})"
    if isinstance(column, np.ndarray):
        return _within(column, rows, name, file, expected)
    if not pa.types.is_integer(column.type):
        try:
            column = column.cast(pa.int64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError("wrong type", file=file, column=name, got=str(column.type),
                             expected=f"{expected} in every row") from None
    if column.null_count:
        raise InputError("null id", file=file, column=name, row=pc.index(pc.is_null(column), True).as_py(), got="null",
                         expected=expected)
    return _within(column.to_numpy(zero_copy_only=False), rows, name, file, expected)


def _within(values: np.ndarray, rows: int, name: str, file: str | Path | None, expected: str) -> np.ndarray:
    if len(values) and (values.min() < 0 or values.max() >= rows):
        at = int(np.flatnonzero((values < 0) | (values >= rows))[0])
        raise InputError("id out of range", file=file, column=name, row=at, got=int(values[at]), expected=expected)
    return np.asarray(values.astype(np.int32))


def check_rows(rows: np.ndarray, limit: int, name: str, file: str | Path | None = None, offset: int = 0) -> np.ndarray:
    """Refuse a row outside its table: the embedding kernels would silently read row 0 instead.

    Raises:
        InputError: with the first offending position.
    """
    if len(rows) and (rows.min() < 0 or rows.max() >= limit):
        at = int(np.flatnonzero((rows < 0) | (rows >= limit))[0])
        raise InputError("id out of range", file=file, column=name, row=at + offset,
                         got=int(rows[at]), expected=f"a row in [0, {limit})")
    return rows


class Counter:
    """Counts the values of one table over a stream of columns."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._pending = 0

    def add(self, column: pa.ChunkedArray | pa.Array, name: str, file: str | Path | None = None) -> None:
        """Count the values of one column."""
        column = _not_nested(merged(column), name, file)
        coded = column if pa.types.is_dictionary(column.type) else None
        counts = pc.value_counts(column if coded is None else coded.indices)
        if len(counts) == 0:
            return
        found = counts.field("values") if coded is None else coded.dictionary.take(counts.field("values"))
        values = as_strings(found, name, file)
        self._parts.append(pa.table({"value": values, "count": counts.field("counts")}))
        self._pending += len(values)
        if self._pending > 1 << 20:  # keep memory at the number of distinct values, not of chunks
            self._parts = [self._merged()]
            self._pending = 0

    def _merged(self) -> pa.Table:
        merged = pa.concat_tables(self._parts).group_by("value").aggregate([("count", "sum")])
        return pa.table({"value": merged["value"], "count": merged["count_sum"]})

    def vocabulary(self, name: str, min_count: int, hash_buckets: int) -> Vocabulary:
        """Values seen at least ``min_count`` times, or a hash table where those exceed ``hash_buckets``."""
        if not self._parts:
            return Vocabulary(name, "vocabulary", 1)
        merged = self._merged()
        kept = merged.filter(pc.and_(pc.greater_equal(merged["count"], min_count), pc.not_equal(merged["value"], "")))
        if kept.num_rows > hash_buckets:
            return Vocabulary(name, "hash", hash_buckets + 1)
        kept = kept.sort_by([("count", "descending"), ("value", "ascending")])
        return Vocabulary(name, "vocabulary", kept.num_rows + 1, flatten(kept["value"]).cast(pa.string()))


def to_table(vocabularies: Iterable[Vocabulary]) -> pa.Table:
    """All listed values as one table: (table string, value string, row int32)."""
    names: list[pa.Array] = []
    values: list[pa.Array] = []
    rows: list[np.ndarray] = []
    for v in vocabularies:
        names.append(pa.array([v.name] * len(v.values), pa.string()))
        values.append(v.values)
        rows.append(np.arange(1, len(v.values) + 1, dtype=np.int32))
    schema = pa.schema([("table", pa.string()), ("value", pa.string()), ("row", pa.int32())])
    if not names:
        return schema.empty_table()
    columns = [pa.concat_arrays(names), pa.concat_arrays(values), pa.array(np.concatenate(rows))]
    return pa.table(columns, schema=schema)


def from_table(table: pa.Table, specs: Mapping[str, Mapping[str, Any]],
               file: str | Path | None = None) -> dict[str, Vocabulary]:
    """Vocabularies from :func:`to_table`'s table and their specifications (name -> kind, rows).

    Raises:
        InputError: the table does not hold the number of values that a specification says.
    """
    found = {}
    for name, spec in specs.items():
        part = table.filter(pc.equal(table["table"], name)).sort_by("row")
        values = flatten(part["value"])
        want = spec["rows"] - 1 if spec["kind"] == "vocabulary" else 0
        if len(values) != want:
            raise InputError("vocabulary does not fit model.json", file=file,
                             column=name, got=f"{len(values)} values", expected=f"{want}")
        found[name] = Vocabulary(name, spec["kind"], spec["rows"], values)
    return found
