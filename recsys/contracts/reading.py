"""The checks at the door: a table against its contract, and Parquet files read through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.contracts.schemas import Column, Contract
from recsys.errors import InputError
from recsys.storage import file_size, is_url, open_input


def _first_true(mask: Any) -> int | None:
    # index() returns -1 where nothing is found; nulls (a null value, checked elsewhere) never count as bad.
    at = pc.index(pc.fill_null(mask, False), True).as_py()
    return None if at < 0 else int(at)


def _cast(column: Any, want: Column, file: str | Path | None, offset: int) -> Any:
    if column.type == want.type or pa.types.is_null(want.type):
        return column
    try:
        return column.cast(want.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        row, got = _first_uncastable(column, want.type)
        raise InputError("wrong type", file=file, column=want.name, row=None if row is None else row + offset,
                         got=got, expected=str(want.type)) from None


def _first_uncastable(column: Any, want: pa.DataType) -> tuple[int | None, object]:
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not (text or pa.types.is_floating(column.type)):
        return None, str(column.type)
    low, high = 0, len(column)
    while high - low > 1:  # the prefix [0, low) is known to cast, [0, high) is known not to
        middle = (low + high) // 2
        try:
            column.slice(0, middle).cast(want)
            low = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            high = middle
    return low, column[low].as_py()


def validate(table: pa.Table, contract: Contract, file: str | Path | None = None, row_offset: int = 0) -> pa.Table:
    """Check a table against a contract and cast its columns to the contract's types.

    Args:
        table: the rows; columns outside the contract pass through unchanged.
        contract: what it must satisfy.
        file: named in the error.
        row_offset: row number of the table's first row within ``file``, for batch-wise reading.

    Returns:
        The table with contract columns cast to contract types, column order unchanged.

    Raises:
        InputError: the first violation, with file, column, row, got and expected.
    """
    for want in contract.columns:
        if want.name not in table.column_names:
            if want.required:
                raise InputError("missing column", file=file, column=want.name,
                                 got=sorted(table.column_names), expected=f"{want.type} ({contract.name})")
            continue
        at = table.column_names.index(want.name)
        column = _cast(table.column(at), want, file, row_offset)
        if not want.nullable and column.null_count:
            row = _first_true(pc.is_null(column))
            raise InputError("null value", file=file, column=want.name, row=None if row is None else row + row_offset,
                             got="null", expected=f"a {want.type}")
        if want.bad is not None and (row := _first_true(want.bad(column))) is not None:
            raise InputError("value not allowed", file=file, column=want.name, row=row + row_offset,
                             got=column[row].as_py(), expected=want.expected)
        table = table.set_column(at, pa.field(want.name, column.type, want.nullable), column)
    for names, bad, blame, expected in contract.rules:
        if all(n in table.column_names for n in names):
            row = _first_true(bad(*(table.column(n) for n in names)))
            if row is not None:
                got = {n: table.column(n)[row].as_py() for n in names}
                raise InputError("value not allowed", file=file, column=blame, row=row + row_offset, got=got,
                                 expected=expected)
    return table


def open_parquet(path: str | Path, dictionaries: Iterable[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file (a path or an address that :mod:`recsys.storage` knows).

    String columns named in ``dictionaries`` are read as dictionary-encoded as the file has them: without making every
    row's string.

    A missing, empty, truncated or foreign file, or one with two columns of one name, is one clear :class:`InputError`.
    """
    if not is_url(path) and Path(path).is_dir():
        raise InputError("not a file", file=path, got="a folder", expected="a Parquet file")
    size = file_size(path)
    if size is None:
        raise InputError("no such file", file=path, expected="a Parquet file")
    if size == 0:
        raise InputError("empty file", file=path, got="0 bytes", expected="a Parquet file")
    try:
        # An object store answers slowly but in bulk: the columns of a row group are asked for together.
        source, remote = (open_input(path), True) if is_url(path) else (path, False)
        file = pq.ParquetFile(source, pre_buffer=remote)
        names = file.schema_arrow.names
        if coded := [n for n in dictionaries if n in names]:
            file = pq.ParquetFile(source, pre_buffer=remote, metadata=file.metadata, read_dictionary=coded)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError("not a readable Parquet file (truncated or of another format)", file=path,
                         got=str(error).splitlines()[0], expected="a complete Parquet file") from None
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError("column twice", file=path, column=twice, got=f"{names.count(twice)} columns", expected="one")
    return file


def read_parquet(path: str | Path, contract: Contract | None = None, columns: list[str] | None = None) -> pa.Table:
    """Read a whole Parquet file and, where a contract is given, validate it.

    Raises:
        InputError: the file is missing, empty, truncated, has no rows, or breaks the contract.
    """
    file = open_parquet(path)
    try:
        table = file.read(columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError("damaged Parquet file", file=path, got=str(error).splitlines()[0],
                         expected="a complete Parquet file") from None
    if table.num_rows == 0:
        raise InputError("no rows", file=path, got="0 rows", expected="at least one row")
    return table if contract is None else validate(table, contract, path)


def iter_parquet(path: str | Path, contract: Contract | None = None, columns: list[str] | None = None,
                 batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Stream a Parquet file as validated tables of at most ``batch_rows`` rows."""
    file, offset = open_parquet(path), 0
    for batch in file.iter_batches(batch_size=batch_rows, columns=columns):
        table = pa.Table.from_batches([batch])
        yield table if contract is None else validate(table, contract, path, offset)
        offset += table.num_rows
