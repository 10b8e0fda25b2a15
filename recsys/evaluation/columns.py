"""Columns of Arrow tables as checked numpy codes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.errors import InputError


def require_column(table: pa.Table, name: str, file: str) -> None:
    """Raise :class:`InputError` unless the table has the column, without nulls."""
    if name not in table.column_names:
        raise InputError("missing column", file=file, column=name, got=sorted(table.column_names), expected=name)
    if table.column(name).null_count:
        row = pc.index(pc.is_null(table.column(name)), True).as_py()
        raise InputError("null value", file=file, column=name, row=row, got="null", expected="a value in every row")


def encode(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Distinct values of a column and, per row, the position among them (int64)."""
    coded = column.combine_chunks()
    coded = pa.concat_arrays(coded.chunks) if isinstance(coded, pa.ChunkedArray) else coded
    coded = coded.dictionary_encode()
    return coded.dictionary, coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
