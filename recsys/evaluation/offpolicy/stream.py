"""A log and a target policy of any length, batch by batch, each batch with all policy rows of its requests.

Three ways, by what the files allow: small files are one batch; files whose requests come in the same order are read
side by side; others are first cut by a hash of the request id into parts that fit in memory (in a temporary folder,
as large as the two files).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.contracts import open_parquet
from recsys.errors import InputError
from recsys.features.integers import splitmix64

WHOLE_ROWS = 3_000_000  # log and policy rows up to which everything is one batch
BATCH_ROWS, PART_ROWS = 131_072, 1_500_000  # log rows, policy rows of a batch; about 100 bytes each
READ_ROWS = 65_536


class Misaligned(Exception):
    """Requests of the two files do not come in the same order."""


def column_hash(column: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    """64-bit polynomial hash of strings, mixed; equal in every run. Nulls hash as the empty string."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    made = [_hash(pc.fill_null(c, "").cast(pa.large_string())) for c in chunks]
    return np.concatenate(made) if made else np.zeros(0, dtype=np.uint64)


def _hash(strings: pa.Array) -> NDArray[np.uint64]:
    _, offsets_buffer, data = strings.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[strings.offset:strings.offset + len(strings) + 1]
    first, length = offsets[:-1], np.diff(offsets)
    octets = np.frombuffer(data, np.uint8)[offsets[0]:offsets[-1]] if data is not None else np.zeros(0, np.uint8)
    with np.errstate(over="ignore"):
        power = np.uint64(0x9E3779B97F4A7C15) ** np.arange(int(length.max(initial=0)), dtype=np.uint64)
        place = np.arange(len(octets)) - np.repeat(first - offsets[0], length)
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum((octets.astype(np.uint64) + np.uint64(1))
                                                                    * power[place])])
        made = running[offsets[1:] - offsets[0]] - running[first - offsets[0]]
        mixed: NDArray[np.uint64] = splitmix64(made)
    return mixed


def batches(
    log: Path, policy: Path, log_columns: list[str], policy_columns: list[str], aligned: bool = True,
    whole_slates: bool = False,
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Pairs of log rows and all policy rows of their requests; together every log row once.

    Args:
        log: IMPRESSIONS, Parquet.
        policy: POLICY, Parquet.
        log_columns: what to read of the log.
        policy_columns: what to read of the policy.
        aligned: try to read large files side by side; without it they are cut first.
        whole_slates: all rows of a request must be in one batch, wherever they stand in the log.

    Raises:
        Misaligned: the files are large and their requests come in different orders: call again with
            ``aligned=False``, from the start.
        InputError: a file is missing, damaged or empty.
    """
    files = [open_parquet(path) for path in (log, policy)]
    rows = [f.metadata.num_rows for f in files]
    for path, count in zip((log, policy), rows, strict=True):
        if count == 0:
            raise InputError("no rows", file=path, got="0 rows", expected="at least one row")
    if sum(rows) <= WHOLE_ROWS:
        yield files[0].read(columns=log_columns), files[1].read(columns=policy_columns)
    elif aligned and not whole_slates:
        step = int(min(BATCH_ROWS, max(1024, PART_ROWS * rows[0] // rows[1])))
        yield from _side_by_side(files[0], files[1], log_columns, policy_columns, step)
    else:
        yield from _cut(files[0], files[1], log_columns, policy_columns, 1 + sum(rows) // PART_ROWS)


def _side_by_side(log: pq.ParquetFile, policy: pq.ParquetFile, log_columns: list[str], policy_columns: list[str],
                  step: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    right = policy.iter_batches(batch_size=READ_ROWS, columns=policy_columns)
    held = pa.table({})
    exhausted = False
    for batch in log.iter_batches(batch_size=step, columns=log_columns):
        rows = _text(batch)
        last = rows.column("request_id")[-1]
        parts = [held] if held.num_columns else []
        end = _end_of(held.column("request_id"), last) if held.num_columns else None
        while not exhausted and (end is None or end == parts[-1].num_rows):
            if sum(p.num_rows for p in parts) > 8 * PART_ROWS:
                raise Misaligned
            piece = next(right, None)
            if piece is None:
                exhausted = True
                break
            parts.append(_text(piece))
            found = _end_of(parts[-1].column("request_id"), last)
            if found is None and end is not None:
                found = 0  # the request ended with the piece before
            end = found
        if not parts or (end is None and exhausted):
            raise Misaligned
        own = pa.concat_tables([*parts[:-1], parts[-1].slice(0, end)])
        tail = own.column("request_id").slice(max(0, own.num_rows - rows.num_rows))
        if not rows.column("request_id").equals(tail):  # one candidate each: nothing to look up
            listed = pc.is_in(rows.column("request_id"), value_set=pc.unique(own.column("request_id")))
            if not pc.all(listed).as_py():
                raise Misaligned
        yield rows, own
        # Keep the last request: the next batch may begin in the middle of it.
        keep = pc.index(own.column("request_id"), last).as_py()
        held = pa.concat_tables([own.slice(keep), parts[-1].slice(end)])


def _text(batch: pa.RecordBatch) -> pa.Table:
    """The batch with request ids as plain strings, whatever the file's type: they are compared across files."""
    table = pa.Table.from_batches([batch])
    at = table.column_names.index("request_id")
    return table.set_column(at, "request_id", table.column(at).cast(pa.string()))


def _end_of(column: pa.ChunkedArray, request: pa.Scalar) -> int | None:
    """Position after the last row of a request; None where it is not there."""
    at = np.flatnonzero(pc.equal(column, request).to_numpy())
    return int(at[-1]) + 1 if len(at) else None


def _cut(log: pq.ParquetFile, policy: pq.ParquetFile, log_columns: list[str], policy_columns: list[str],
         parts: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    with tempfile.TemporaryDirectory(prefix="recsys-ope-") as folder:
        for name, file, columns in (("log", log, log_columns), ("policy", policy, policy_columns)):
            _scatter(file, columns, Path(folder), name, parts)
        for part in range(parts):
            left, right = (Path(folder) / f"{name}-{part}.arrow" for name in ("log", "policy"))
            rows = pa.ipc.open_stream(left).read_all()
            if rows.num_rows:
                yield rows, pa.ipc.open_stream(right).read_all()
            left.unlink()
            right.unlink()


def _scatter(file: pq.ParquetFile, columns: list[str], folder: Path, name: str, parts: int) -> None:
    schema = pa.schema([pa.field(c, pa.string()) if c == "request_id" else file.schema_arrow.field(c)
                        for c in columns])
    writers = [pa.ipc.new_stream(str(folder / f"{name}-{part}.arrow"), schema) for part in range(parts)]
    try:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            table = _text(batch).select(columns)
            part = (column_hash(table.column("request_id")) % np.uint64(parts)).astype(np.int64)
            order = np.argsort(part, kind="stable")
            ends = np.searchsorted(part[order], np.arange(parts + 1))
            table = table.take(pa.array(order))
            for at, writer in enumerate(writers):
                if ends[at + 1] > ends[at]:
                    writer.write_table(table.slice(ends[at], ends[at + 1] - ends[at]))
    finally:
        for writer in writers:
            writer.close()
