"""Parquet files in row groups of one size: what a training stream reads, shuffles and deals to ranks by."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 1 << 16
"""Rows of a row group: small enough to shuffle many of them together, large enough to be read in one go."""


class RowGroupWriter:
    """Writes tables of any size as row groups of :data:`ROWS` rows; the last may be smaller.

    Args:
        path: the file; made at the first table (or at the end, where a schema is given).
        schema: of the file; default: the first table's.
    """

    def __init__(self, path: str | Path, schema: pa.Schema | None = None) -> None:
        self._path, self._schema = path, schema
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self.rows = 0
        """Rows taken so far."""

    def write(self, table: pa.Table) -> None:
        """Take rows; at most one row group of them waits in memory."""
        self._schema = self._schema or table.schema
        self._waiting.append(table)
        self.rows += table.num_rows
        have = sum(t.num_rows for t in self._waiting)
        if have >= ROWS:
            whole = pa.concat_tables(self._waiting)
            full = have - have % ROWS
            self._flush(whole.slice(0, full))
            self._waiting = [whole.slice(full)] if full < have else []

    def _flush(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._schema)
        self._writer.write_table(table, row_group_size=ROWS)

    def close(self) -> None:
        """Write what waits and end the file; without any table and schema there is none."""
        if self._waiting:
            self._flush(pa.concat_tables(self._waiting))
            self._waiting = []
        elif self._writer is None and self._schema is not None:
            self._flush(self._schema.empty_table())
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> RowGroupWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif self._writer is not None:
            self._writer.close()
