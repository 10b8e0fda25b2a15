"""What came of served impressions: events as they arrive, and their join into a log that can be evaluated.

    events: impression_id, kind (click, engage, convert, hide), ts, value, dwell_ms, event_id

Events come late, twice, or for impressions that were never served; :func:`join_feedback` counts all of that and loses
nothing silently. An impression counts once its window is over, so that early and late days are measured alike.
"""

from __future__ import annotations

import datetime as dt
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.contracts import IMPRESSIONS, Column, Contract, iter_parquet
from recsys.errors import InputError
from recsys.row_groups import RowGroupWriter

_s, _f = pa.string(), pa.float64()
FEEDBACK = Contract("FEEDBACK", (
    Column("impression_id", _s, required=True, nullable=False),
    Column("kind", _s, required=True, nullable=False,
           bad=lambda a: pc.invert(pc.is_in(a, value_set=pa.array(["click", "engage", "convert", "hide"]))),
           expected="click | engage | convert | hide"),
    Column("ts", pa.timestamp("us", "UTC"), required=True, nullable=False),
    Column("value", _f), Column("dwell_ms", _f), Column("event_id", _s)))
_BATCH = 65_536


def feedback_batch(events: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows of FEEDBACK; ``ts`` is in microseconds since 1970."""
    return pa.RecordBatch.from_arrays([pa.array([e[c.name] for e in events], c.type) for c in FEEDBACK.columns],
                                      schema=FEEDBACK.schema())


def join_feedback(folder: str | Path, out: str | Path, *, window_hours: float = 24.0,
                  as_of: dt.datetime | None = None, experiment: str | None = None) -> dict[str, Any]:
    """One IMPRESSIONS file out of a served log: every impression with what came of it.

    click, conversion, hide and ``engaged`` are 1 where such an event came within the window; ``dwell_ms`` is the
    longest, ``value`` the sum over conversions; ``price_paid`` is the price of a click that came. An event counts once:
    by its ``event_id``, or else once per impression and kind.

    Args:
        folder: of ``impressions-*.parquet`` and ``feedback-*.parquet``.
        out: the file to write; replaced as a whole.
        window_hours: how long an impression's events count.
        as_of: the end of the log; impressions whose window is not over by then are left out. Default: now.
        experiment: only impressions of this experiment.

    Returns:
        Counts: ``impressions`` written, ``clicks``, ``conversions``, ``open`` (window not over), ``elsewhere`` (of
        another experiment), ``twice`` (an impression logged again, as after a retried request; the first counts),
        ``events``, ``events_twice``, ``events_late`` (after the window), ``events_unknown`` (of no impression here).

    Raises:
        InputError: no impressions, or a file that is not what the service writes.
    """
    folder, out = Path(folder), Path(out)
    files = sorted(folder.glob("impressions-*.parquet"))
    if not files:
        raise InputError("no served impressions", file=folder, expected="impressions-*.parquet")
    counts: Counter[str] = Counter()
    events = _read_events(sorted(folder.glob("feedback-*.parquet")), counts)
    end = np.int64((as_of or dt.datetime.now(dt.UTC)).timestamp() * 1e6)
    window = np.int64(window_hours * 3.6e9)
    schema, seen, matched = _schema(files), set[str](), np.zeros(events.num_rows, bool)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with RowGroupWriter(partial, schema) as writer:
            for file, table in _impressions(files):
                table = _fresh(table, seen, counts)
                known = pc.is_in(events["impression_id"], value_set=table["impression_id"].combine_chunks())
                matched |= known.combine_chunks().to_numpy(zero_copy_only=False)
                keep = table["ts"].cast(pa.int64()).to_numpy() + window <= end
                counts["open"] += int((~keep).sum())
                if experiment is not None:
                    mine = pc.fill_null(pc.equal(table["experiment_id"], experiment), False).to_numpy()
                    counts["elsewhere"] += int((keep & ~mine).sum())
                    keep &= mine
                joined = _joined(table.filter(pa.array(keep)), events.filter(known), window, counts)
                writer.write(_aligned(joined, schema, file))
        if not writer.rows and counts["elsewhere"]:
            raise InputError("no impression of this experiment whose window is over", file=folder,
                             column="experiment_id", got=experiment, expected="an experiment that was served here")
        if not writer.rows:
            raise InputError("no impression whose window is over", file=folder, got=dict(counts),
                             expected="a smaller --window, or a longer log")
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    counts["events_unknown"] = int((~matched).sum())
    return {"impressions": writer.rows, **{k: int(v) for k, v in sorted(counts.items())}}


def _impressions(files: Sequence[Path]) -> Iterator[tuple[Path, pa.Table]]:
    for file in files:
        for table in iter_parquet(file, IMPRESSIONS, batch_rows=_BATCH):
            yield file, table


def _read_events(files: Sequence[Path], counts: Counter[str]) -> pa.Table:
    tables = [t for f in files for t in iter_parquet(f, FEEDBACK)]
    events = pa.concat_tables(tables) if tables else FEEDBACK.schema().empty_table()
    counts["events"] = events.num_rows
    if not events.num_rows:
        return events
    own = pc.fill_null(events["event_id"], "")
    key = pc.binary_join_element_wise(events["impression_id"], events["kind"], own, "\x00")
    order = pc.sort_indices(events, sort_keys=[("ts", "ascending")])
    key, events = key.take(order), events.take(order)
    first = np.unique(key.combine_chunks().dictionary_encode().indices.to_numpy(), return_index=True)[1]
    counts["events_twice"] = events.num_rows - len(first)
    return events.take(pa.array(np.sort(first)))


def _fresh(table: pa.Table, seen: set[str], counts: Counter[str]) -> pa.Table:
    ids = table["impression_id"].to_pylist()
    new = []
    for value in ids:
        new.append(value not in seen)
        seen.add(value)
    counts["twice"] += len(ids) - sum(new)
    return table if all(new) else table.filter(pa.array(new))


def _joined(table: pa.Table, events: pa.Table, window: np.int64, counts: Counter[str]) -> pa.Table:
    at = pc.index_in(events["impression_id"], value_set=table["impression_id"].combine_chunks())
    inside = at.is_valid().to_numpy()
    events, row = events.filter(pa.array(inside)), at.drop_null().to_numpy()
    delay = events["ts"].cast(pa.int64()).to_numpy() - table["ts"].cast(pa.int64()).to_numpy()[row]
    late = delay > window
    counts["events_late"] += int(late.sum())
    events, row = events.filter(pa.array(~late)), row[~late]
    kind = events["kind"].to_numpy(zero_copy_only=False)
    n = table.num_rows

    def happened(name: str) -> pa.Array:
        return pa.array((np.bincount(row[kind == name], minlength=n) > 0).astype(np.int8))

    def numbers(name: str) -> np.ndarray:
        return np.asarray(pc.fill_null(events[name], 0.0).to_numpy(), np.float64)

    value = np.bincount(row[kind == "convert"], numbers("value")[kind == "convert"], n)
    dwell = np.zeros(n)
    np.maximum.at(dwell, row, numbers("dwell_ms"))
    click = happened("click")
    counts["clicks"] += int(pc.sum(click).as_py() or 0)
    counts["conversions"] += int((np.bincount(row[kind == "convert"], minlength=n) > 0).sum())
    price = pc.if_else(pc.equal(click, 1), table["price_per_click"],
                       pc.if_else(pc.is_valid(table["price_per_click"]), 0.0, None))
    made = {"click": click, "engaged": happened("engage"), "conversion": happened("convert"), "hide": happened("hide"),
            "dwell_ms": pa.array(dwell), "value": pa.array(value), "price_paid": price}
    for name, column in made.items():
        table = table.append_column(name, column)
    return table


def _schema(files: Sequence[Path]) -> pa.Schema:
    """All files' columns: models, and with them their features, may have changed while the log was written."""
    from recsys.contracts import open_parquet

    made = [pa.field("click", pa.int8()), pa.field("engaged", pa.int8()), pa.field("conversion", pa.int8()),
            pa.field("hide", pa.int8()), pa.field("dwell_ms", _f), pa.field("value", _f), pa.field("price_paid", _f)]
    fields: dict[str, pa.Field] = {}
    for file in files:
        for column in open_parquet(file).schema_arrow:
            known = fields.setdefault(column.name, pa.field(column.name, column.type))
            if known.type != column.type:
                raise InputError("a column of two types in one log", file=file, column=column.name,
                                 got=str(column.type), expected=str(known.type))
    return pa.schema([*fields.values(), *made])


def _aligned(table: pa.Table, schema: pa.Schema, file: Path) -> pa.Table:
    columns = [table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(table.num_rows, f.type)
               for f in schema]
    return pa.table(columns, schema=schema)
