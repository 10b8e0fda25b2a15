"""Raw rows to validated contract rows: what is read, kept, made, joined, and blamed when it is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.contracts import ADS, IMPRESSIONS, Column, Contract, validate
from recsys.datasets.columns import build_columns, is_text, keep_rows
from recsys.datasets.reader import read_raw
from recsys.datasets.recipe import ColumnRule, Recipe
from recsys.datasets.text import content_hashes
from recsys.errors import InputError

T = TypeVar("T")


def refuse_empty(rows: int, raw: Path) -> None:
    """Raise an InputError where nothing is left of a raw file."""
    if rows == 0:
        raise InputError("no rows", file=raw, got="0 rows that the recipe keeps", expected="at least one")


def recipe_contract(plan: Recipe) -> Contract:
    """IMPRESSIONS with the recipe's features (and without nulls in its labels) as further typed columns."""
    labels = {n for label in plan.label.values() for n in (label.column, label.trials, label.successes) if n}
    columns = [Column(c.name, c.type, c.required or c.name in labels, c.nullable and c.name not in labels, c.bad,
                      c.expected) for c in IMPRESSIONS.columns]
    known = {c.name for c in columns}
    for names, kind in ((plan.features.dense, pa.float64()), (plan.features.sequence, pa.list_(pa.string()))):
        columns += [Column(n, kind, required=n not in (*plan.joined, *plan.past)) for n in names if n not in known]
    columns += [sparse_column(plan, n) for n in plan.features.sparse if n not in known]
    return Contract(IMPRESSIONS.name, tuple(columns), IMPRESSIONS.rules)


def sparse_column(plan: Recipe, name: str) -> Column:
    """A categorical feature: a string or, where the recipe says so, an integer that is a row of its table."""
    required, rows = name not in plan.joined, plan.features.id_rows.get(name)
    if rows is None:
        return Column(name, pa.string(), required)
    return Column(name, pa.int64(), required, nullable=False, expected=f"an integer in [0, {rows})",
                  bad=lambda a: pc.or_(pc.less(a, 0), pc.greater_equal(a, rows)))


def fingerprint(path: Path) -> str:
    """Eight hex digits of a file's size and first 64 KiB: makes row ids of different files differ."""
    with path.open("rb") as handle:
        head = handle.read(1 << 16)
    return hashlib.sha256(head + str(path.stat().st_size).encode()).hexdigest()[:8]


class ImpressionReader:
    """Raw impressions to validated batches; collects what was dropped and the ads met on the way."""

    def __init__(self, plan: Recipe, path: Path, ads: pa.Table | None) -> None:
        self.plan, self.path, self.ads = plan, path, ads
        self.rules, self.contract = plan.feature_rules(), recipe_contract(plan)
        self.derive = plan.ads if plan.tables.ads is None else {}
        self.ad_ids = ads.column("ad_id").to_pylist() if ads is not None else None
        self.rows_read, self.dropped = 0, {k.why or k.column: 0 for k in plan.keep}
        self.found: list[pa.Table] = []

    def batches(self) -> Iterator[pa.Table]:
        """Validated batches in the order of the raw file, without the rows that the recipe does not keep."""
        reads = {n for rule in (*self.rules.values(), *self.derive.values()) for n in rule.reads()}
        reads |= {k.column for k in self.plan.keep}
        mark = fingerprint(self.path)
        for raw in read_raw(self.plan.tables.impressions, self.path, reads):
            rows = np.arange(self.rows_read, self.rows_read + raw.num_rows)
            self.rows_read += raw.num_rows
            for keep in self.plan.keep:
                mask = _located(self.path, rows, {}, partial(keep_rows, raw, keep))
                self.dropped[keep.why or keep.column] += int((~mask).sum())
                raw, rows = raw.filter(pa.array(mask)), rows[mask]
            if raw.num_rows:
                yield self._batch(raw, rows, mark)

    def _batch(self, raw: pa.Table, rows: np.ndarray, mark: str) -> pa.Table:
        table = _make(raw, self.rules, rows, mark, self.ad_ids, self.contract, self.path)
        if self.derive:
            self.found.append(_first_of_each(_make_ads(raw, self.derive, rows, mark, self.path)))
            if len(self.found) > 64:
                self.found = [_first_of_each(pa.concat_tables(self.found))]
        return self._join(table, rows) if self.plan.joined else table

    def _join(self, table: pa.Table, rows: np.ndarray) -> pa.Table:
        assert self.ads is not None
        at = pc.index_in(table.column("ad_id"), value_set=self.ads.column("ad_id").combine_chunks())
        if at.null_count:
            row = pc.index(pc.is_null(at), True).as_py()
            raise InputError("ad without a row in the ads file", file=self.path, column="ad_id", row=int(rows[row]),
                             got=table.column("ad_id")[row].as_py(), expected="an ad_id of the ads file")
        joined = pa.table({name: self.ads.column(name).take(at) for name in self.plan.joined})
        for name in self.plan.joined:
            if name not in self.plan.features.id_rows:
                kind = pa.float64() if name in self.plan.features.dense else pa.string()
                joined = joined.set_column(joined.column_names.index(name), name, joined[name].cast(kind))
        contract = Contract("ads", tuple(sparse_column(self.plan, n) for n in self.plan.joined
                                         if n in self.plan.features.sparse))
        joined = _located(self.path, rows, {}, lambda: validate(joined, contract))
        for name in self.plan.joined:
            table = table.append_column(joined.schema.field(name), joined[name])
        return table

    def derived_ads(self, impressions: Path) -> pa.Table | None:
        """The distinct ads of the impressions that were written."""
        if not self.found:
            return None
        ads = _first_of_each(pa.concat_tables(self.found))
        kept = pc.unique(pq.read_table(impressions, columns=["ad_id"]).column("ad_id"))
        return ads.filter(pc.is_in(ads.column("ad_id"), value_set=kept))


def _located(path: Path, rows: np.ndarray, blame: dict[str, str], work: Callable[[], T]) -> T:
    """Run ``work``; an InputError of it is raised again with raw file, raw column and raw row."""
    try:
        return work()
    except InputError as error:
        row = None if error.row is None else int(rows[error.row])
        column = blame.get(error.column, error.column) if error.column else None
        raise InputError(error.message, file=error.file or path, column=column, row=row, got=error.got,
                         expected=error.expected) from None


def _make(raw: pa.Table, rules: dict[str, ColumnRule], rows: np.ndarray, mark: str, ad_ids: list[str] | None,
          contract: Contract, path: Path) -> pa.Table:
    table, blame = _located(path, rows, {}, lambda: build_columns(raw, rules, rows, mark, ad_ids))
    return _located(path, rows, blame, lambda: validate(table, contract))


def _make_ads(raw: pa.Table, rules: dict[str, ColumnRule], rows: np.ndarray, mark: str, path: Path) -> pa.Table:
    for name in ("title", "body"):
        source = rules[name].source if name in rules else None
        for column in source or ():
            if column in raw.column_names and not is_text(raw.schema.field(column).type):
                raise InputError("wrong type", file=path, column=column, row=int(rows[0]),
                                 got=raw.column(column)[0].as_py(), expected="a text")
    table, blame = _located(path, rows, {}, lambda: build_columns(raw, rules, rows, mark, None))
    if "title" in table.column_names:
        body = table.column("body") if "body" in table.column_names else None
        table = table.append_column("content_hash", content_hashes(table.column("title"), body))
    return _located(path, rows, blame, lambda: validate(table, ADS))


def read_ads(plan: Recipe, path: Path) -> pa.Table:
    """Read a recipe's ads file whole into ADS columns.

    Raises:
        InputError: as of the impressions, or an ad that stands in the file twice.
    """
    assert plan.tables.ads is not None
    reads = {n for rule in plan.ads.values() for n in rule.reads()}
    parts, offset, mark = [], 0, fingerprint(path)
    for raw in read_raw(plan.tables.ads, path, reads):
        parts.append(_make_ads(raw, plan.ads, np.arange(offset, offset + raw.num_rows), mark, path))
        offset += raw.num_rows
    refuse_empty(offset, path)
    ads = pa.concat_tables(parts)
    first = first_rows(ads.column("ad_id"))
    if len(first) < ads.num_rows:
        row = int(np.setdiff1d(np.arange(ads.num_rows), first)[0])
        raise InputError("ad listed twice", file=path, column="ad_id", row=row, got=ads.column("ad_id")[row].as_py(),
                         expected="every ad once")
    return ads


def first_rows(column: pa.ChunkedArray) -> np.ndarray:
    """Row numbers, ascending, at which each distinct value is first met."""
    codes = column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return np.sort(np.unique(codes, return_index=True)[1])


def _first_of_each(ads: pa.Table) -> pa.Table:
    return ads.take(pa.array(first_rows(ads.column("ad_id"))))
