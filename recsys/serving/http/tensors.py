"""Tensors of the Open Inference Protocol v2, as JSON or in Triton's binary form, to Arrow columns and back.

A request names one tensor per input column of the model, of shape [n] or [n, 1]; a column of lists is [n, L], whose
missing entries pad. A missing value is ``null`` in JSON data; in binary data it is the value that the tensor's
parameter ``missing`` names. Numbers must be finite.

Source: Open Inference Protocol v2 (github.com/kserve/open-inference-protocol), and the binary tensor data extension of
Triton Inference Server: the JSON part is ``Inference-Header-Content-Length`` bytes long, the tensors follow in order.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError

HEADER = "inference-header-content-length"
_NUMPY = {"BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
          "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_ARROW = {"BOOL": pa.bool_(), "UINT8": pa.uint8(), "UINT16": pa.uint16(), "UINT32": pa.uint32(), "UINT64": pa.uint64(),
          "INT8": pa.int8(), "INT16": pa.int16(), "INT32": pa.int32(), "INT64": pa.int64(), "FP16": pa.float32(),
          "FP32": pa.float32(), "FP64": pa.float64(), "BYTES": pa.string()}


@dataclass(frozen=True)
class InferRequest:
    """A decoded request.

    Attributes:
        table: n rows, the model's columns in the model's order.
        id: the client's name of the request, or None.
        outputs: (name, binary) of the wanted outputs; empty: all.
        binary: outputs not named are binary.
        timeout: seconds, of the parameter ``timeout`` (microseconds, as Triton has it), or None.
    """

    table: pa.Table
    id: str | None
    outputs: tuple[tuple[str, bool], ...]
    binary: bool
    timeout: float | None


def decode(body: bytes, header_length: str | None, columns: Sequence[str], lists: frozenset[str],
           outputs: Sequence[str], max_rows: int) -> InferRequest:
    """Read an inference request.

    Args:
        body: the whole body.
        header_length: value of ``Inference-Header-Content-Length``, or None: all of the body is JSON.
        columns: input columns of the model, each of which is a tensor of the request.
        lists: those of them whose tensors are [n, L].
        outputs: output names of the model.
        max_rows: most rows.

    Raises:
        InputError: whatever is not as it should be, named.
    """
    length = _header_length(header_length, len(body))
    try:
        request = orjson.loads(memoryview(body)[:length])
    except orjson.JSONDecodeError as error:
        raise InputError("not valid JSON", got=str(error)) from None
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
        raise InputError("malformed request", expected='{"inputs": [{"name", "shape", "datatype", "data"}, ...]}')
    if not isinstance(request.get("id", ""), str):
        raise InputError("malformed request", column="id", got=request["id"], expected="a string")
    found: dict[str, pa.Array] = {}
    at, rows = length, -1
    for tensor in request["inputs"]:
        name, shape, kind, parameters = _head(tensor)
        if name not in columns or name in found:
            raise InputError("tensor twice" if name in found else "unknown input", column=name,
                             expected="one tensor for each input of the model")
        size = parameters.get("binary_data_size")
        if size is not None:
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(body) - at:
                raise InputError("binary_data_size beyond the body", column=name, got=size,
                                 expected=f"at most {len(body) - at} bytes left")
            at += size
        rows = shape[0] if rows < 0 else rows
        if not 1 <= shape[0] <= max_rows or shape[0] != rows:
            raise InputError("number of rows", column=name, got=shape[0],
                             expected=f"{rows}, as the tensors before" if shape[0] != rows else f"1 to {max_rows}")
        wide = len(shape) == 2 and name in lists
        if len(shape) > 2 or (name in lists) != wide or (len(shape) == 2 and not wide and shape[1] != 1):
            raise InputError("shape", column=name, got=shape, expected="[n, length]" if name in lists else "[n]")
        count = rows * (shape[1] if wide else 1)
        if size is not None:
            flat = _from_binary(memoryview(body)[at - size : at], kind, count, name)
        else:
            flat = _from_json(tensor.get("data"), kind, count, name)
        flat = _without_missing(flat, parameters.get("missing"), name)
        found[name] = _to_lists(flat, rows, shape[1]) if wide else _finite(flat, name)
    if at != len(body):
        raise InputError("bytes after the last tensor", got=len(body) - at, expected="none")
    if absent := [c for c in columns if c not in found]:
        raise InputError("missing input", column=absent[0], got=sorted(found), expected="a tensor for each input")
    own = _parameters(request, "the request")
    return InferRequest(pa.table({c: found[c] for c in columns}), request.get("id"), _outputs(request, outputs),
                        _flag(own, "binary_data_output"), _timeout(own))


def encode(request: InferRequest, model: str, version: str, parameters: Mapping[str, Any],
           scores: Mapping[str, np.ndarray]) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part where binary tensors follow.

    Args:
        request: what is answered.
        model: name of the model that did.
        version: and its version.
        parameters: of the answer.
        scores: output name -> float [n].
    """
    wanted = request.outputs or tuple((name, request.binary) for name in scores)
    tail, heads = [], []
    for name, binary in wanted:
        values = np.ascontiguousarray(scores[name], "<f4")
        head: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": [len(values)]}
        if binary:
            tail.append(values.tobytes())
            head["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            head["data"] = values
        heads.append(head)
    answer = {"model_name": model, "model_version": version, "parameters": parameters, "outputs": heads}
    if request.id is not None:
        answer["id"] = request.id
    text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([text, *tail]), len(text)) if tail else (text, None)


def _header_length(text: str | None, most: int) -> int:
    if text is None:
        return most
    if not (text.isascii() and text.isdigit() and len(text) < 12) or not 0 < int(text) <= most:
        raise InputError("malformed header Inference-Header-Content-Length", got=text, expected=f"1 to {most}")
    return int(text)


def _head(tensor: Any) -> tuple[str, list[int], str, dict[str, Any]]:
    """Name, shape, datatype and parameters of an input."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise InputError("malformed input", got=tensor, expected='{"name", "shape", "datatype", "data"}')
    name, shape, kind = tensor["name"], tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
        raise InputError("malformed shape", column=name, got=shape, expected="[n]")
    if not isinstance(kind, str) or kind not in _ARROW:
        raise InputError("unknown datatype", column=name, got=kind, expected=", ".join(_ARROW))
    parameters = _parameters(tensor, name)
    if "shared_memory_region" in parameters:
        raise InputError("shared memory is not supported", column=name)
    return name, shape, kind, parameters


def _parameters(of: dict[str, Any], name: str) -> dict[str, Any]:
    parameters = of.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError("malformed parameters", column=name, got=parameters, expected="an object")
    return parameters


def _flag(parameters: dict[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InputError("malformed parameter", column=name, got=value, expected="true or false")
    return value


def _timeout(parameters: dict[str, Any]) -> float | None:
    value = parameters.get("timeout")
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise InputError("malformed parameter", column="timeout", got=value, expected="microseconds, at least 1")
    return value / 1e6


def _outputs(request: dict[str, Any], known: Sequence[str]) -> tuple[tuple[str, bool], ...]:
    wanted = request.get("outputs", [])
    if not isinstance(wanted, list):
        raise InputError("malformed outputs", got=wanted, expected='[{"name": ...}, ...]')
    found = []
    for output in wanted:
        name = output.get("name") if isinstance(output, dict) else None
        if name not in known:
            raise InputError("unknown output", column="outputs", got=output, expected=", ".join(known))
        parameters = _parameters(output, str(name))
        if parameters.get("classification") or "shared_memory_region" in parameters:
            raise InputError("classification and shared memory are not supported", column=str(name))
        found.append((str(name), _flag(parameters, "binary_data")))
    return tuple(found)


def _from_binary(data: memoryview, kind: str, count: int, name: str) -> pa.Array:
    if kind == "BYTES":
        return _strings(data, count, name)
    dtype = np.dtype(_NUMPY[kind])
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


def _from_json(data: Any, kind: str, count: int, name: str) -> pa.Array:
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
        return pa.array(data, _ARROW[kind])
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        raise InputError("value out of range", column=name, expected=kind) from None


def _without_missing(flat: pa.Array, missing: Any, name: str) -> pa.Array:
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


def _finite(flat: pa.Array, name: str) -> pa.Array:
    if pa.types.is_floating(flat.type):
        values = flat.to_numpy(zero_copy_only=False)
        with np.errstate(all="ignore"):
            suspect = not np.isfinite(values.sum())  # one pass; a mask only where something is odd
        if suspect:
            bad = pc.fill_null(pc.invert(pc.is_finite(flat)), False)
            at = pc.index(bad, True).as_py()
            if at >= 0:
                raise InputError("value not allowed", column=name, row=at, got=flat[at].as_py(),
                                 expected="a finite number; a missing one is null, or what the parameter missing names")
    return flat


def _to_lists(flat: pa.Array, rows: int, length: int) -> pa.Array:
    """Lists without their missing entries."""
    there = flat.is_valid().to_numpy(zero_copy_only=False).reshape(rows, length)
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat.drop_null())
