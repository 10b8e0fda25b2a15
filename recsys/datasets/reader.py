"""Raw files to Arrow tables, batch by batch: Parquet, CSV, and plain delimited text with short rows.

CSV and text columns come as strings; the recipe's rules and the contract give them their types, so that
a value that does not fit is reported with its row. Row numbers count data rows from zero, without a header.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from recsys.contracts import open_parquet
from recsys.datasets.recipe import RawTable
from recsys.errors import InputError

BATCH_ROWS = 131_072
BLOCK_BYTES = 1 << 22  # Arrow reads up to 32 blocks ahead, so this bounds the memory at about 128 MiB
_LINE = "\x01"  # a delimiter that does not occur: the line is then one field
_ROW = re.compile(r"Row #(\d+)")
_LENGTH = re.compile(r"Expected (\d+) columns, got (\d+)")


def read_raw(table: RawTable, path: Path, columns: set[str]) -> Iterator[pa.Table]:
    """Stream the named columns of a raw file (those that it has).

    Args:
        table: what the recipe says about the file.
        path: the file; ``.gz`` and the like are decompressed for csv and text.
        columns: names that the recipe's rules may read.

    Yields:
        Tables of consecutive rows.

    Raises:
        InputError: missing, empty or damaged file, or a row with too few or too many fields.
    """
    if not path.is_file():
        raise InputError("no such file", file=path)
    if path.stat().st_size == 0:
        raise InputError("empty file", file=path, got="0 bytes", expected="a file with rows")
    form = "parquet" if path.suffix == ".parquet" or _starts_as_parquet(path) else table.format
    reader = {"parquet": _parquet, "csv": _csv, "text": _text}[form]
    try:
        yield from reader(table, path, columns)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, EOFError) as error:
        raise InputError(f"damaged {form} file", file=path, got=str(error).splitlines()[0],
                         expected="a complete, readable file") from None


def _starts_as_parquet(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(4) == b"PAR1"


def _parquet(table: RawTable, path: Path, columns: set[str]) -> Iterator[pa.Table]:
    file = open_parquet(path)
    names = [n for n in file.schema_arrow.names if n in columns] or file.schema_arrow.names[:1]
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names, use_threads=False):
        yield pa.Table.from_batches([batch])


def _header(table: RawTable, path: Path) -> tuple[list[str], bool]:
    """Column names, and whether the first line is a header to be skipped."""
    with pa.input_stream(path, compression="detect") as stream:
        head = stream.read(1 << 20)
    first = head.decode("utf-8-sig", errors="replace").splitlines()[:1]
    if not first:
        raise InputError("empty file", file=path, got="no lines", expected="a file with rows")
    fields = (first[0].split(table.delimiter) if table.format == "text"
              else next(csv.reader(first, delimiter=table.delimiter)))
    fields = [f.strip() for f in fields]
    if table.names is None:
        return fields, True
    return list(table.names), fields == list(table.names)


def _open_csv(path: Path, names: list[str], skip: bool, table: RawTable | None,
              columns: set[str]) -> pa_csv.CSVStreamingReader:
    stream = pa.input_stream(path, compression="detect")
    parse = (pa_csv.ParseOptions(delimiter=table.delimiter, newlines_in_values=True) if table is not None
             else pa_csv.ParseOptions(delimiter=_LINE, quote_char=False, escape_char=False, ignore_empty_lines=False))
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=list(table.nulls) if table else [],
        strings_can_be_null=table is not None, include_columns=[n for n in names if n in columns])
    read = pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names, skip_rows=int(skip))
    return pa_csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert)


def _csv(table: RawTable, path: Path, columns: set[str]) -> Iterator[pa.Table]:
    names, skip = _header(table, path)
    try:
        for batch in _open_csv(path, names, skip, table, columns):
            yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        _explain(error, path, skip)


def _explain(error: pa.ArrowInvalid, path: Path, skip: bool) -> None:
    """Turn the parser's message into an InputError; a file without rows is no error of the parser's."""
    text = str(error).splitlines()[0]
    if "Empty CSV file" in text or "Could not skip initial" in text:
        return
    row = _ROW.search(text)
    # The parser counts records of the file from one; a skipped header is one of them.
    at = None if row is None else int(row[1]) - 1 - int(skip)
    if found := _LENGTH.search(text):
        raise InputError("row of the wrong length", file=path, row=at, got=f"{found[2]} fields",
                         expected=f"{found[1]} fields") from None
    raise InputError("unreadable row", file=path, row=at, got=text.rpartition(": ")[2],
                     expected="text in UTF-8 with complete quotes") from None


def _text(table: RawTable, path: Path, columns: set[str]) -> Iterator[pa.Table]:
    names, skip = _header(table, path)
    offset = 0
    try:
        for batch in _open_csv(path, ["line"], skip, None, {"line"}):
            yield _split_lines(pa.Table.from_batches([batch]).column("line"), names, table, path, offset, columns)
            offset += batch.num_rows
    except pa.ArrowInvalid as error:
        _explain(error, path, skip)


def _split_lines(lines: pa.ChunkedArray, names: list[str], table: RawTable, path: Path, offset: int,
                 columns: set[str]) -> pa.Table:
    width = len(names)
    fields = pc.add(pc.count_substring(lines, table.delimiter), 1).to_numpy()
    least = width if table.min_fields is None else table.min_fields
    wrong = np.flatnonzero((fields < least) | (fields > width))
    if wrong.size:
        row = int(wrong[0])
        expected = f"{width} fields" if least == width else f"{least} to {width} fields"
        raise InputError("row of the wrong length", file=path, row=row + offset, got=f"{fields[row]} fields",
                         expected=expected)
    if (fields < width).any():  # missing trailing fields become empty ones
        lines = pc.binary_join_element_wise(lines, pc.binary_repeat(table.delimiter, pa.array(width - fields)), "")
    flat = pc.split_pattern(lines, table.delimiter).combine_chunks().flatten()
    nulls = pa.array(table.nulls, pa.string())
    made = {}
    for at, name in enumerate(names):
        if name in columns:
            values = flat.take(pa.array(np.arange(at, len(flat), width)))
            made[name] = pc.if_else(pc.is_in(values, value_set=nulls), pa.scalar(None, pa.string()), values)
    return pa.table(made) if made else pa.table({names[0]: flat.take(pa.array(np.arange(0, len(flat), width)))})
