"""Columns made of earlier rows of the same user or ad: histories, counts and rates as they stood at the time.

Only rows of an earlier ``ts`` count, so that neither a row's own outcome nor one of the same instant can leak into it.
Rows of the test part see the outcomes of earlier test rows, as a live system's feature store would.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.recipe import PastRule
from recsys.errors import InputError


def add_past(table: pa.Table, rules: dict[str, PastRule]) -> pa.Table:
    """Append one column a rule.

    Args:
        table: all rows, in any order, with ``ts``.
        rules: name of the new column -> how it is made: a list of strings (``latest``), a number of rows (``count``) or
            a shrunk mean (``mean``), float64.

    Raises:
        InputError: a column that a rule reads is missing, or a ``ts`` is null.
    """
    needed = ["ts", *(n for r in rules.values() for n in (r.by, r.latest, r.mean, *(r.where or {})) if n)]
    for name in needed:
        if name not in table.column_names:
            raise InputError("missing column", column=name, got=sorted(table.column_names),
                             expected="a column that past reads")
    if table["ts"].null_count:
        raise InputError("past needs the time of every row", column="ts", got="null",
                         row=pc.index(pc.is_null(table["ts"]), True).as_py())
    time = table["ts"].cast(pa.int64()).to_numpy()
    for name, rule in rules.items():
        table = table.append_column(name, _column(table, time, rule))
    return table


def _column(table: pa.Table, time: np.ndarray, rule: PastRule) -> pa.Array:
    key = _codes(table[rule.by])
    counted = np.ones(len(key), bool)
    for name, value in (rule.where or {}).items():
        counted &= pc.fill_null(pc.equal(table[name].cast(pa.float64()), float(value)), False).to_numpy()
    order = np.lexsort((time, key))  # by key, then time, then the order of the file
    key, time, counted = key[order], time[order], counted[order]
    n = len(key)
    new_key = np.append(True, key[1:] != key[:-1]) if n else np.zeros(0, bool)
    new_time = new_key | np.append(True, time[1:] != time[:-1])[:n]
    # Positions in ``order``: where this row's key begins, and where its instant begins.
    begin, now = (np.maximum.accumulate(np.where(new, np.arange(n), 0)) for new in (new_key, new_time))
    back = np.empty(n, np.int64)
    back[order] = np.arange(n)
    totals = np.concatenate([[0], np.cumsum(counted)])
    before = totals[now] - totals[begin]
    if rule.latest is not None:
        what = np.flatnonzero(counted)  # the rows that count, in order
        length = np.minimum(before, rule.length)[back]
        start = totals[now][back] - length
        offsets = np.concatenate([[0], np.cumsum(length)])
        at = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length) + np.repeat(start, length)
        values = table[rule.latest].cast(pa.string()).combine_chunks().take(pa.array(order[what][at]))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    if rule.mean is None:
        return pa.array(before[back].astype(np.float64))
    outcome = np.where(counted, table[rule.mean].cast(pa.float64()).to_numpy()[order], 0.0)
    sums = np.concatenate([[0.0], np.cumsum(outcome)])
    prior = _mean_before(time, outcome, counted)
    return pa.array(((sums[now] - sums[begin] + rule.prior * prior) / (before + rule.prior))[back])


def _mean_before(time: np.ndarray, outcome: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean outcome of all rows of earlier time, whatever their key; 0.5 where there is none."""
    order = np.argsort(time, kind="stable")
    at = np.searchsorted(time[order], time)  # rows of earlier time
    sums, counts = (np.concatenate([[0.0], np.cumsum(x[order])])[at] for x in (outcome, counted.astype(np.float64)))
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), 0.5)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return np.asarray(coded.indices.to_numpy(zero_copy_only=False))
