"""Values of the Open Inference Protocol's tensors as Arrow columns; what is not plainly right is named."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError

NUMPY = {"BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
          "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
EXACT = {k: np.dtype(NUMPY[k]) for k in ("UINT8", "UINT16", "INT8", "INT16", "FP16", "FP32")}
IDS = {k: np.dtype(NUMPY[k]) for k in ("UINT8", "UINT16", "UINT32", "INT8", "INT16", "INT32", "INT64")}
ARROW = {"BOOL": pa.bool_(), "UINT8": pa.uint8(), "UINT16": pa.uint16(), "UINT32": pa.uint32(), "UINT64": pa.uint64(),
          "INT8": pa.int8(), "INT16": pa.int16(), "INT32": pa.int32(), "INT64": pa.int64(), "FP16": pa.float32(),
          "FP32": pa.float32(), "FP64": pa.float64(), "BYTES": pa.string()}
"""Datatypes by what holds them: numpy; float32 exactly; int64; Arrow."""


def from_binary(data: memoryview, kind: str, count: int, name: str) -> pa.Array:
    """A binary tensor's values: [count]."""
    if kind == "BYTES":
        return _strings(data, count, name)
    dtype = np.dtype(NUMPY[kind])
    if len(data) != count * dtype.itemsize:
        raise InputError("binary_data_size", column=name, got=len(data), expected=f"{count * dtype.itemsize} bytes")
    values = np.frombuffer(data, dtype)
    if kind == "BOOL":
        values = np.frombuffer(data, np.uint8) != 0
    return pa.array(values.astype(np.float32) if kind == "FP16" else values)


def _strings(data: memoryview, count: int, name: str) -> pa.Array:
    """Strings that each follow their length, uint32 little-endian."""
    size = 4 + int.from_bytes(data[:4], "little")
    if count and size * count == len(data):  # most often all have one length: no loop
        table = np.frombuffer(data, np.uint8).reshape(count, size)
        if (table[:, :4] == table[0, :4]).all():
            offsets = pa.py_buffer(np.arange(0, (count + 1) * (size - 4), size - 4, dtype=np.int32)
                                   if size > 4 else np.zeros(count + 1, np.int32))
            return _utf8(pa.Array.from_buffers(pa.binary(), count, [None, offsets, pa.py_buffer(
                np.ascontiguousarray(table[:, 4:]))]), name)
    values, at = [], 0
    for _ in range(count):
        if at + 4 > len(data):
            break
        (size,) = struct.unpack_from("<I", data, at)
        values.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != len(data) or len(values) != count:
        raise InputError("binary_data_size", column=name, got=len(data), expected=f"{count} strings, each after its "
                         "length as 4 bytes")
    return _utf8(pa.array(values, pa.binary()), name)


def _utf8(values: pa.Array, name: str) -> pa.Array:
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:
        raise InputError("not UTF-8", column=name, expected="text") from None


def from_json(data: Any, kind: str, count: int, name: str) -> pa.Array:
    """A tensor's values from JSON: [count], null where missing."""
    if not isinstance(data, list):
        raise InputError("no data", column=name, got=data, expected="a list, or the parameter binary_data_size")
    while data and isinstance(data[0], list):
        if not all(isinstance(row, list) for row in data):
            raise InputError("ragged data", column=name, expected="rows of one length")
        data = [value for row in data for value in row]
    if len(data) != count:
        raise InputError("number of values", column=name, got=len(data), expected=str(count))
    allowed = {"BOOL": (bool,), "BYTES": (str,)}.get(kind, (int, float) if kind[0] == "F" else (int,))
    for i, value in enumerate(data):
        if value is not None and type(value) not in allowed:
            raise InputError("wrong type", column=name, row=i, got=value, expected=kind)
    try:
        return pa.array(data, ARROW[kind])
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        raise InputError("value out of range", column=name, expected=kind) from None


def without_missing(flat: pa.Array, missing: Any, name: str) -> pa.Array:
    """Null where the value is the one that stands for a missing one; ``"NaN"`` is a number's NaN."""
    if missing is None:
        return flat
    if pa.types.is_floating(flat.type) and missing == "NaN":
        return pc.if_else(pc.is_nan(flat), pa.scalar(None, flat.type), flat)
    allowed = (str,) if pa.types.is_string(flat.type) else (bool,) if pa.types.is_boolean(flat.type) else (int, float)
    try:
        value = pa.scalar(missing if type(missing) in allowed else object(), flat.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        raise InputError("malformed parameter missing", column=name, got=missing,
                         expected=f"a {flat.type}, or \"NaN\" for numbers") from None
    return pc.if_else(pc.equal(flat, value), pa.scalar(None, flat.type), flat)


def to_lists(flat: pa.Array, rows: int, length: int) -> pa.Array:
    """Lists without their missing entries."""
    there = flat.is_valid().to_numpy(zero_copy_only=False).reshape(rows, length)
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat.drop_null())
