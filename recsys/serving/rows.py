"""From input rows to (request, ad) pairs that a model can score, and to rejected ones with a reason.

Nothing is dropped silently: every pair of the input comes out either as a pair to score or as a row
of REJECTED. Types are the file's business (a wrong one refuses the whole file); values are the row's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.contracts import ADS, IMPRESSIONS, SCORES, Column, Contract, open_parquet, read_parquet, validate
from recsys.datasets.candidates import AD_SIDE, OUTCOMES, expand_candidates
from recsys.datasets.info import DATASET_FILE, DatasetInfo, load_dataset_info
from recsys.errors import InputError
from recsys.features.dense import not_finite

ROW = "__row"
"""Internal column: zero-based row of the pair in its input file."""

_s = pa.string()
REJECTED = Contract(
    "REJECTED",
    (
        Column("file", _s, required=True, nullable=False),
        Column("row", pa.int64(), required=True, nullable=False),
        Column("request_id", _s, required=True),
        Column("user_id", _s, required=True),
        Column("ad_id", _s, required=True),
        Column("column", _s, required=True, nullable=False),
        Column("reason", _s, required=True, nullable=False),
    ),
)
_INPUT = Contract(
    "scoring input",
    tuple(Column(n, IMPRESSIONS[n].type, required=n == "request_id")
          for n in ("request_id", "user_id", "ad_id", "bid", "candidates")),
)
_CANDIDATE_ADS = Contract("candidate ads", (ADS["ad_id"], ADS["advertiser_id"], ADS["bid"]))


def load_ads(path: Path, columns: Sequence[str]) -> tuple[pa.Table, tuple[str, ...]]:
    """The candidates' ads: id, bid and the model's columns that are there.

    Args:
        path: ads.parquet; a ``dataset.json`` beside it says which features belong to the ad.
        columns: input columns of the model.

    Returns:
        The table, and the model's columns that every candidate must bring of its own.

    Raises:
        InputError: unreadable, an ad_id that is null or there twice, a bid that is no amount.
    """
    present = open_parquet(path).schema_arrow.names
    wanted = [n for n in dict.fromkeys(["ad_id", *AD_SIDE, *columns]) if n in present]
    ads = read_parquet(path, _CANDIDATE_ADS, wanted)
    counts = pc.value_counts(ads["ad_id"].combine_chunks())
    twice = pc.index(pc.greater(counts.field("counts"), 1), True).as_py()
    if twice >= 0:
        raise InputError("ad twice", file=path, column="ad_id", got=counts.field("values")[twice].as_py(),
                         expected="one row per ad")
    declared = load_dataset_info(path.parent).ad_features if (path.parent / DATASET_FILE).is_file() else ()
    own = {*AD_SIDE, *declared, *present} - {"ad_id"}
    return ads, tuple(c for c in columns if c in own)


class Pairs:
    """Makes the pairs of one job's input.

    Args:
        columns: input columns of the model.
        keep: further input columns to carry through to the output.
        max_pairs: most pairs of one table, so that long candidate lists cannot fill the memory.
        ads: ads.parquet of the candidates, or None.
    """

    def __init__(self, columns: Sequence[str], keep: Sequence[str], max_pairs: int, ads: Path | None) -> None:
        self.columns, self.keep, self._max_pairs, self._file = list(columns), list(keep), max_pairs, ads
        self._ads: pa.Table | None = None
        own: tuple[str, ...] = ()
        if ads is not None:
            self._ads, own = load_ads(ads, columns)
        self._info = DatasetInfo(name="scoring", ad_features=own)

    def wanted(self, present: Sequence[str], file: str | Path) -> list[str]:
        """Columns to read of a file that has the columns ``present``.

        Raises:
            InputError: one that is needed is in neither the file nor the ads table.
        """
        lost = OUTCOMES if self._ads is not None and "candidates" in present else ()
        for name in self.keep:
            if name in lost or name in {c.name for c in SCORES.columns} or name == "candidates":
                raise InputError("cannot be kept", file="--keep", column=name,
                                 expected="a column that SCORES does not have and that holds for every candidate")
        in_ads = set() if self._ads is None else set(self._ads.column_names)
        expands = self._ads is not None and "candidates" in present
        if expands and (lacking := [c for c in self._info.ad_features if c not in in_ads]):
            raise InputError("missing column", file=self._file, column=lacking[0], got=sorted(in_ads),
                             expected="the model's features of an ad, for every candidate")
        if "ad_id" not in present and not expands:
            raise InputError("missing column", file=file, column="ad_id", got=sorted(present),
                             expected="ad_id, or candidates and an ads table (--ads)")
        for name in ("request_id", *self.columns, *self.keep):
            if name not in present and (name in self.keep or name not in in_ads):
                raise InputError("missing column", file=file, column=name, got=sorted(present),
                                 expected="a column to keep" if name in self.keep else "a column that scoring needs")
        names = ["request_id", "user_id", "ad_id", "bid", *(["candidates"] if expands else []), *self.columns,
                 *self.keep]
        return [n for n in dict.fromkeys(names) if n in present]

    def make(self, table: pa.Table, file: str | Path, offset: int) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Split input rows into (pairs to score, REJECTED rows), a bounded number at a time.

        Args:
            table: n input rows with the :meth:`wanted` columns.
            file: where they are from.
            offset: row number of the first one.

        Yields:
            Pairs with request_id, user_id, ad_id, bid, the model's columns, the kept ones and :data:`ROW`; and
            the rejected pairs.

        Raises:
            InputError: a column of the wrong type.
        """
        table = validate(table, _INPUT, file, offset)
        table = table.append_column(ROW, pa.array(np.arange(offset, offset + table.num_rows)))
        for name in ("user_id", "ad_id"):
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, _s))
        if self._ads is not None and "candidates" in table.column_names:
            for part in _bounded(_with_lists(table), self._max_pairs):
                pairs, rejected = self._expand(part, self._ads, file)
                yield self._check(pairs, rejected, file)
        else:
            pairs, rejected = self._look_up(table, file)
            yield self._check(pairs, rejected, file)

    def _look_up(self, table: pa.Table, file: str | Path) -> tuple[pa.Table, list[pa.Table]]:
        """Rows without candidates: as they are; only columns that they lack come from the ads table."""
        if self._ads is None:
            return table, []
        absent = [n for n in dict.fromkeys(["bid", *self.columns])
                  if n not in table.column_names and n in self._ads.column_names]
        if not absent:
            return table, []
        known = pc.index_in(table["ad_id"], value_set=self._ads["ad_id"].combine_chunks())
        lost = pc.and_(pc.is_null(known), pc.is_valid(table["ad_id"]))  # a null id is rejected as that, later
        rejected = reject(table.filter(lost), file, "ad_id", "not in the ads table")
        for name in absent:
            table = table.append_column(name, self._ads[name].take(known))
        return table.filter(pc.invert(lost)), [rejected]

    def _expand(self, table: pa.Table, ads: pa.Table, file: str | Path) -> tuple[pa.Table, list[pa.Table]]:
        if "bid" not in ads.column_names and "bid" in table.column_names:
            table = table.drop_columns("bid")  # the shown ad's bid is not another candidate's
        empty = pc.equal(pc.list_value_length(table["candidates"]), 0)
        rejected = [reject(table.filter(empty), file, "candidates", "no candidates")]
        table = table.filter(pc.invert(empty))
        lists = table["candidates"].combine_chunks()
        candidates, parents = pc.list_flatten(lists), pc.list_parent_indices(lists)
        known = pc.is_in(candidates, value_set=ads["ad_id"].combine_chunks())  # false for null, too
        if pc.min(known).as_py() is False:
            lost = table.take(parents.filter(pc.invert(known)))
            ids = candidates.filter(pc.invert(known))
            lost = lost.set_column(lost.column_names.index("ad_id"), "ad_id", ids)
            null = pc.is_null(ids)
            rejected.append(reject(lost.filter(null), file, "candidates", "null ad_id"))
            rejected.append(reject(lost.filter(pc.invert(null)), file, "candidates", "not in the ads table"))
            counts = np.bincount(parents.filter(known).to_numpy(), minlength=table.num_rows)
            offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
            lists = pa.ListArray.from_arrays(offsets, candidates.filter(known))
            table = table.set_column(table.column_names.index("candidates"), "candidates", lists)
        return expand_candidates(table, ads, self._info), rejected

    def _check(self, pairs: pa.Table, rejected: list[pa.Table], file: str | Path) -> tuple[pa.Table, pa.Table]:
        """Reject pairs with a null id, a bid that is no amount, or a number that is not finite."""
        if "bid" not in pairs.column_names:
            pairs = pairs.append_column("bid", pa.nulls(pairs.num_rows, pa.float64()))
        tests: list[tuple[str, str, Callable[[Any], Any]]] = [
            ("request_id", "null", pc.is_null), ("ad_id", "null", pc.is_null),
            ("bid", "negative", lambda a: pc.less(a, 0))]
        tests += [(n, "not finite", not_finite)
                  for n in dict.fromkeys(["bid", *self.columns]) if pa.types.is_floating(pairs[n].type)]
        for name, reason, bad in tests:
            mask = pc.fill_null(bad(pairs[name]), False)
            if pc.any(mask).as_py():
                rejected.append(reject(pairs.filter(mask), file, name, reason))
                pairs = pairs.filter(pc.invert(mask))
        found = pa.concat_tables([REJECTED.schema().empty_table(), *rejected])
        return pairs, found.take(pc.sort_indices(found["row"])) if found.num_rows else found


def reject(pairs: pa.Table, file: str | Path, column: str, reason: str) -> pa.Table:
    """REJECTED rows of the given pairs, all for the same reason."""
    n = pairs.num_rows
    ids = (pairs[c] for c in ("request_id", "user_id", "ad_id"))
    columns = [pa.repeat(pa.scalar(Path(file).name), n), pairs[ROW], *ids, pa.repeat(pa.scalar(column), n),
               pa.repeat(pa.scalar(reason), n)]
    return pa.table(columns, schema=REJECTED.schema())


def _with_lists(table: pa.Table) -> pa.Table:
    """A row without a list stands for its own ad."""
    lists = table["candidates"]
    if not lists.null_count:
        return table
    n = table.num_rows
    own = pa.ListArray.from_arrays(pa.array(np.arange(n + 1), pa.int32()), table["ad_id"].combine_chunks())
    lists = pc.if_else(pc.is_null(lists), own, lists)
    return table.set_column(table.column_names.index("candidates"), "candidates", lists)


def _bounded(table: pa.Table, most: int) -> Iterator[pa.Table]:
    """Slices whose lists hold at most ``most`` candidates together; a longer single list stands alone."""
    lengths = pc.list_value_length(table["candidates"]).to_numpy()
    start, total = 0, 0
    for i, n in enumerate(lengths.tolist()):
        if i > start and total + n > most:
            yield table.slice(start, i - start)
            start, total = i, 0
        total += n
    if start < len(lengths):
        yield table.slice(start)
