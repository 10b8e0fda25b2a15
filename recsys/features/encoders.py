"""Columns of impressions to numbers: what is fitted on the training part and kept in the model folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError
from recsys.features import vocabulary
from recsys.features.dense import DenseColumn, DenseStatistics, read_numbers
from recsys.features.encoded import Encoded, Jagged
from recsys.features.vocabulary import Counter, Vocabulary, flatten

AD_TABLE = "ad_id"
CONTENT_TABLE = "__content__"  # not a name that a feature would have


@dataclass(frozen=True)
class FeatureEncoder:
    """Everything between an impression's columns and the model's numbers.

    Sequence features hold ad ids and share the table of ``ad_id``, so that what a user engaged with and what is
    shown meet in one space.

    Attributes:
        dense: numeric features.
        sparse: names of categorical features; each has the table of its own name.
        sequence: names of list features; all use the table ``ad_id``.
        tables: table name -> vocabulary, in the order of the embedding tables.
        content: ad id -> row of the content matrix (row 0: no content), or None.
        of_content: names among ``sparse`` that no input column holds, for they follow from the ad's content (semantic
            ids) -> int32 [content rows], the row of the feature's table.
        history_length: the latest so many items of each list become features ``NAME@0`` (the latest), ``NAME@1``, ...
            of at most one item, so that they can be attended over; 0: each list is one feature, pooled whole.
    """

    dense: tuple[DenseColumn, ...]
    sparse: tuple[str, ...]
    sequence: tuple[str, ...]
    tables: dict[str, Vocabulary]
    content: Vocabulary | None = None
    of_content: Mapping[str, np.ndarray] = field(default_factory=dict)
    history_length: int = 0

    @staticmethod
    def fit(tables: Iterable[pa.Table], *, file: str | Path | None = None, **settings: Any) -> FeatureEncoder:
        """Fit on a stream of training tables (and on nothing else); ``settings`` are :class:`Fit`'s."""
        fit, offset = Fit(file=file, **settings), 0
        for table in tables:
            fit.add(table, offset)
            offset += table.num_rows
        return fit.encoder()

    @property
    def columns(self) -> list[str]:
        """Input columns that :meth:`encode` needs."""
        names = [c.name for c in self.dense] + [n for n in self.sparse if n not in self.of_content]
        names += self.sequence
        return list(dict.fromkeys([*names, AD_TABLE] if self.content is not None else names))

    @property
    def kinds(self) -> dict[str, str]:
        """Input column -> what it holds: number | category | row (an id that is a row of its table) | list."""
        found = {c.name: "number" for c in self.dense} | dict.fromkeys(self.sequence, "list")
        return {n: found.get(n) or ("row" if n in self.tables and self.tables[n].kind == "identity" else "category")
                for n in self.columns}

    @property
    def dense_width(self) -> int:
        """Width of the encoded dense block."""
        return sum(c.width for c in self.dense)

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """Table name -> features that look rows up in it."""
        shared = {AD_TABLE: self.list_features} if self.sequence else {}
        return {t: ((t,) if t in self.sparse else ()) + shared.get(t, ()) for t in self.tables}

    @property
    def list_features(self) -> tuple[str, ...]:
        """Names under which list features reach the model, list by list."""
        if not self.history_length:
            return self.sequence
        return tuple(f"{name}@{j}" for name in self.sequence for j in range(self.history_length))

    @property
    def keys(self) -> list[str]:
        """Feature names of a batch's KeyedJaggedTensor: categorical features, then list features."""
        return [*self.sparse, *self.list_features]

    def encode(self, table: pa.Table, file: str | Path | None = None, offset: int = 0) -> Encoded:
        """Encode rows (training, test, or candidates never seen before).

        Args:
            table: n rows with at least :attr:`columns`.
            file: named in errors.
            offset: row number of the table's first row within ``file``.

        Raises:
            InputError: a missing column, one of the wrong type, or an infinite number.
        """
        require_columns(table, self.columns, file)
        n = table.num_rows
        # Feature-major while it is written, a column at a time: the views below have the shapes that are promised.
        dense, sparse = np.empty((self.dense_width, n), np.float32), np.empty((len(self.sparse), n), np.int32)
        at = 0
        for column in self.dense:
            column.encode_into(read_numbers(table, column.name, file, offset), dense[at : at + column.width])
            at += column.width
        content_row, history = np.zeros(n, np.int32), Jagged.empty(n)
        if self.content is not None:
            content_row = self.content.encode(table[AD_TABLE], AD_TABLE, file)
        for i, name in enumerate(self.sparse):
            if name in self.of_content:
                sparse[i] = self.of_content[name][content_row]
            else:
                with shifted(offset):
                    sparse[i] = self.tables[name].encode(table[name], name, file)
        lists = [_list(table, name, file) for name in self.sequence]
        with shifted(offset):
            sequences = [_jagged(c, self.tables[AD_TABLE], s, file)
                         for c, s in zip(lists, self.sequence, strict=True)]
        if self.content is not None and lists:
            history = _jagged(lists[0], self.content, self.sequence[0], file).without(0)
        return Encoded(np.ascontiguousarray(dense.T), sparse.T, content_row, tuple(sequences), history,
                       history_length=self.history_length)

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` needs besides the vocabulary table."""
        def spec(v: Vocabulary) -> dict[str, Any]:
            return {"kind": v.kind, "rows": v.rows}

        return {"dense": [vars(c) for c in self.dense], "sparse": list(self.sparse), "sequence": list(self.sequence),
                "tables": {n: spec(v) for n, v in self.tables.items()},
                "content": None if self.content is None else spec(self.content),
                "history_length": self.history_length}

    def vocabulary_table(self) -> pa.Table:
        """The listed values of all tables: (table, value, row)."""
        return vocabulary.to_table([*self.tables.values(), *([self.content] if self.content is not None else [])])

    @staticmethod
    def from_json(value: dict[str, Any], table: pa.Table, file: str | Path | None = None,
                  of_content: Mapping[str, np.ndarray] | None = None) -> FeatureEncoder:
        """The encoder that :meth:`to_json` and :meth:`vocabulary_table` wrote; the caller keeps ``of_content``."""
        specs = dict(value["tables"])
        if value["content"] is not None:
            specs[CONTENT_TABLE] = value["content"]
        found = vocabulary.from_table(table, specs, file)
        content = found.pop(CONTENT_TABLE) if value["content"] is not None else None
        return FeatureEncoder(tuple(DenseColumn(**c) for c in value["dense"]), tuple(value["sparse"]),
                              tuple(value["sequence"]), found, content, of_content or {},
                              value.get("history_length", 0))


class Fit:
    """One pass over training rows, in any number of tables, to a :class:`FeatureEncoder`.

    Args:
        dense, sparse, sequence: feature columns.
        min_count: values seen less often go to the out-of-vocabulary row.
        hash_buckets: a feature with more kept values than this is hashed to so many rows.
        id_rows: those of ``sparse`` that hold rows of their own table -> its number of rows; they are not counted here
            and need not be columns of the tables.
        content_ids: ads that have a content vector, in the order of the content matrix's rows 1, 2, ...
        content_values: further categorical features by name, string [len(content_ids)]: the value of each such ad.
        history_length: see :class:`FeatureEncoder`.
        file: named in errors.

    Raises:
        InputError: names that clash.
    """

    def __init__(self, *, dense: Iterable[str], sparse: Iterable[str], sequence: Iterable[str], min_count: int,
                 hash_buckets: int, id_rows: Mapping[str, int] | None = None, content_ids: list[str] | None = None,
                 content_values: Mapping[str, pa.Array] | None = None, history_length: int = 0,
                 file: str | Path | None = None) -> None:
        self._dense, self._sparse, self._sequence = tuple(dense), tuple(sparse), tuple(sequence)
        self._ids, self._values, self._file = dict(id_rows or {}), dict(content_values or {}), file
        self._limits = (min_count, hash_buckets)
        self._history_length = history_length if self._sequence else 0
        if taken := sorted(self._values.keys() & {*self._dense, *self._sparse, *self._sequence}):
            raise InputError("a feature column has the name of a semantic id", file=file, column=taken[0],
                             expected="another name")
        if stray := sorted(self._ids.keys() - set(self._sparse)):
            raise InputError("id_rows of a column that is no sparse feature", file=file, column=stray[0],
                             got=list(self._sparse), expected="a sparse feature")
        self._content = None
        if content_ids is not None:
            self._content = Vocabulary(CONTENT_TABLE, "vocabulary", len(content_ids) + 1,
                                       pa.array(content_ids, pa.string()))
        self._counted = [n for n in self._sparse if n not in self._ids]
        names = [*self._counted, *self._values]
        if self._sequence and AD_TABLE not in self._sparse:
            names.append(AD_TABLE)
        self._counters, self._statistics = {n: Counter() for n in names}, {n: DenseStatistics() for n in self._dense}

    @property
    def columns(self) -> list[str]:
        """Columns that :meth:`add` needs."""
        names = [*self._dense, *self._counted, *self._sequence]
        return list(dict.fromkeys([*names, AD_TABLE] if self._content is not None and self._values else names))

    def add(self, table: pa.Table, offset: int = 0) -> None:
        """Add rows; ``offset`` is the number of the first within the file.

        Raises:
            InputError: a missing column, one of the wrong type, or an infinite number.
        """
        require_columns(table, self.columns, self._file)
        for name in self._dense:
            self._statistics[name].add(read_numbers(table, name, self._file, offset))
        for name in self._counted:
            self._counters[name].add(table[name], name, self._file)
        for name in self._sequence:
            if AD_TABLE not in self._ids:
                self._counters[AD_TABLE].add(pc.list_flatten(_list(table, name, self._file)), name, self._file)
        if self._content is not None and self._values:
            rows = self._content.encode(table[AD_TABLE], AD_TABLE, self._file)
            for name, column in self._values.items():
                self._counters[name].add(column.take(pa.array(rows[rows > 0] - 1)), name, self._file)

    def encoder(self) -> FeatureEncoder:
        """What the rows so far make."""
        found = {n: c.vocabulary(n, *self._limits) for n, c in self._counters.items()}
        # Tables in the order of the features, whatever their kind.
        tables = {n: Vocabulary(n, "identity", self._ids[n]) if n in self._ids else found[n]
                  for n in dict.fromkeys([*self._sparse, *found])}
        # Row 0 is the ad without content: no value.
        of_content = {n: np.append(np.int32(0), tables[n].encode(v, n, self._file)) for n, v in self._values.items()}
        return FeatureEncoder(tuple(self._statistics[n].column(n) for n in self._dense),
                              (*self._sparse, *self._values), self._sequence, tables, self._content, of_content,
                              self._history_length)


@contextmanager
def shifted(rows: int | np.ndarray) -> Iterator[None]:
    """Raise an InputError again with the row of the file: so many further on, or that of ``rows[error.row]``."""
    try:
        yield
    except InputError as error:
        if error.row is None:
            raise
        row = int(rows[error.row]) if isinstance(rows, np.ndarray) else error.row + rows
        raise InputError(error.message, file=error.file, column=error.column, row=row, got=error.got,
                         expected=error.expected) from None


def require_columns(table: pa.Table, names: Iterable[str], file: str | Path | None = None) -> None:
    """Refuse a table that lacks a column.

    Raises:
        InputError: names the first missing column.
    """
    present = set(table.column_names)
    for name in names:
        if name not in present:
            raise InputError("missing column", file=file, column=name, got=sorted(present),
                             expected="a feature column of the model")


def _list(table: pa.Table, name: str, file: str | Path | None) -> pa.Array:
    column = flatten(table[name])
    if pa.types.is_null(column.type):
        return column.cast(pa.list_(pa.string()))
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise InputError("wrong type", file=file, column=name, got=str(column.type),
                         expected="a list of strings")
    return column


def _jagged(column: pa.Array, table: Vocabulary, name: str, file: str | Path | None) -> Jagged:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    with shifted(np.repeat(np.arange(len(lengths)), lengths)):  # an error names the list, not the item
        return Jagged(table.encode(pc.list_flatten(column), name, file), offsets)
