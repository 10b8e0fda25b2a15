"""Columns of impressions to numbers: what is fitted on the training part and kept in the model folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError
from recsys.features import vocabulary
from recsys.features.encoded import Encoded, Jagged
from recsys.features.vocabulary import Counter, Vocabulary, flatten

AD_TABLE = "ad_id"
CONTENT_TABLE = "__content__"  # not a name that a feature would have
_CLIP = 10.0  # standard deviations; a stray value must not blow up a layer


def _numbers(table: pa.Table, name: str, file: str | Path | None, offset: int) -> np.ndarray:
    """A numeric column as float64 with NaN where missing; infinite values are refused."""
    column = flatten(table[name])
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
            or pa.types.is_null(kind)):
        raise InputError("wrong type", file=file, column=name, got=str(kind),
                         expected="a numeric column")
    values = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    infinite = np.isinf(values)
    if infinite.any():
        at = int(np.flatnonzero(infinite)[0])
        raise InputError("value not allowed", file=file, column=name,
                         row=at + offset, got=float(values[at]), expected="a finite number or null")
    return values


def signed_log1p(x: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + abs(x)): heavy tails become bearable, small values stay as they are."""
    return np.sign(x) * np.log1p(np.abs(x))


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

    def encode(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] with NaN for missing -> float32 [n, width]."""
        missing = np.isnan(values)
        scaled = np.clip((signed_log1p(values) - self.mean) / self.scale, -_CLIP, _CLIP)
        scaled[missing] = 0.0
        columns = [scaled, missing] if self.indicator else [scaled]
        return np.stack(columns, axis=1).astype(np.float32)


class _DenseStatistics:
    """Streaming mean and deviation (Chan, Golub, LeVeque 1979) of one column's signed log."""

    def __init__(self) -> None:
        self.n, self.mean, self.m2, self.missing = 0, 0.0, 0.0, 0

    def add(self, values: np.ndarray) -> None:
        known = signed_log1p(values[~np.isnan(values)])
        self.missing += len(values) - len(known)
        if len(known) == 0:
            return
        mean, total = float(known.mean()), self.n + len(known)
        shift = mean - self.mean
        self.m2 += float(((known - mean) ** 2).sum()) + shift**2 * self.n * len(known) / total
        self.mean += shift * len(known) / total
        self.n = total

    def column(self, name: str) -> DenseColumn:
        deviation = (self.m2 / self.n) ** 0.5 if self.n else 0.0
        return DenseColumn(name, self.mean, deviation if deviation > 1e-9 else 1.0, self.missing > 0)


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
    """

    dense: tuple[DenseColumn, ...]
    sparse: tuple[str, ...]
    sequence: tuple[str, ...]
    tables: dict[str, Vocabulary]
    content: Vocabulary | None = None
    of_content: Mapping[str, np.ndarray] = field(default_factory=dict)

    @staticmethod
    def fit(tables: Iterable[pa.Table], *, dense: Iterable[str], sparse: Iterable[str], sequence: Iterable[str],
            min_count: int, hash_buckets: int, content_ids: list[str] | None = None,
            content_values: Mapping[str, pa.Array] | None = None, file: str | Path | None = None) -> FeatureEncoder:
        """Fit on a stream of training tables (and on nothing else).

        Args:
            tables: training rows.
            dense, sparse, sequence: feature columns.
            min_count: values seen less often go to the out-of-vocabulary row.
            hash_buckets: a feature with more kept values than this is hashed to so many rows.
            content_ids: ads that have a content vector, in the order of the content matrix's rows 1, 2, ...
            content_values: further categorical features by name, string [len(content_ids)]: the value of each such ad.
            file: named in errors.

        Raises:
            InputError: a missing column, one of the wrong type, or an infinite number.
        """
        dense, sparse, sequence = tuple(dense), tuple(sparse), tuple(sequence)
        values = dict(content_values or {})
        if taken := sorted(values.keys() & {*dense, *sparse, *sequence}):
            raise InputError("a feature column has the name of a semantic id", file=file, column=taken[0],
                             expected="another name")
        content = None
        if content_ids is not None:
            content = Vocabulary(CONTENT_TABLE, "vocabulary", len(content_ids) + 1, pa.array(content_ids, pa.string()))
        names = [*sparse, *values] + ([AD_TABLE] if sequence and AD_TABLE not in sparse else [])
        counters, statistics = {n: Counter() for n in names}, {n: _DenseStatistics() for n in dense}
        offset = 0
        for table in tables:
            require_columns(table, [*dense, *sparse, *sequence], file)
            for name in dense:
                statistics[name].add(_numbers(table, name, file, offset))
            for name in sparse:
                counters[name].add(table[name], name, file)
            for name in sequence:
                counters[AD_TABLE].add(pc.list_flatten(_list(table, name, file)), name, file)
            if content is not None and values:
                rows = content.encode(table[AD_TABLE], AD_TABLE, file)
                for name, column in values.items():
                    counters[name].add(column.take(pa.array(rows[rows > 0] - 1)), name, file)
            offset += table.num_rows
        vocabularies = {n: c.vocabulary(n, min_count, hash_buckets) for n, c in counters.items()}
        # Row 0 is the ad without content: no value.
        of_content = {n: np.append(np.int32(0), vocabularies[n].encode(v, n, file)) for n, v in values.items()}
        return FeatureEncoder(tuple(statistics[n].column(n) for n in dense), (*sparse, *values), sequence,
                              vocabularies, content, of_content)

    @property
    def columns(self) -> list[str]:
        """Input columns that :meth:`encode` needs."""
        names = [c.name for c in self.dense] + [n for n in self.sparse if n not in self.of_content]
        names += self.sequence
        return list(dict.fromkeys([*names, AD_TABLE] if self.content is not None else names))

    @property
    def dense_width(self) -> int:
        """Width of the encoded dense block."""
        return sum(c.width for c in self.dense)

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """Table name -> features that look rows up in it."""
        shared = {AD_TABLE: self.sequence} if self.sequence else {}
        return {t: ((t,) if t in self.sparse else ()) + shared.get(t, ()) for t in self.tables}

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
        dense = np.zeros((n, self.dense_width), np.float32)
        at = 0
        for column in self.dense:
            dense[:, at : at + column.width] = column.encode(_numbers(table, column.name, file, offset))
            at += column.width
        sparse = np.zeros((n, len(self.sparse)), np.int32)
        content_row, history = np.zeros(n, np.int32), Jagged.empty(n)
        if self.content is not None:
            content_row = self.content.encode(table[AD_TABLE], AD_TABLE, file)
        for i, name in enumerate(self.sparse):
            if name in self.of_content:
                sparse[:, i] = self.of_content[name][content_row]
            else:
                sparse[:, i] = self.tables[name].encode(table[name], name, file)
        lists = [_list(table, name, file) for name in self.sequence]
        sequences = [_jagged(c, self.tables[AD_TABLE], s, file) for c, s in zip(lists, self.sequence, strict=True)]
        if self.content is not None and lists:
            history = _jagged(lists[0], self.content, self.sequence[0], file).without(0)
        return Encoded(dense, sparse, content_row, tuple(sequences), history)

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` needs besides the vocabulary table."""
        def spec(v: Vocabulary) -> dict[str, Any]:
            return {"kind": v.kind, "rows": v.rows}

        return {"dense": [vars(c) for c in self.dense], "sparse": list(self.sparse), "sequence": list(self.sequence),
                "tables": {n: spec(v) for n, v in self.tables.items()},
                "content": None if self.content is None else spec(self.content)}

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
                              tuple(value["sequence"]), found, content, of_content or {})


def require_columns(table: pa.Table, names: Iterable[str], file: str | Path | None = None) -> None:
    """Refuse a table that lacks a column.

    Raises:
        InputError: names the first missing column.
    """
    for name in names:
        if name not in table.column_names:
            raise InputError("missing column", file=file, column=name,
                             got=sorted(table.column_names), expected="a feature column of the model")


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
    return Jagged(table.encode(pc.list_flatten(column), name, file), np.concatenate([[0], np.cumsum(lengths)]))
