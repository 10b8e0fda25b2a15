"""Tensors of the Open Inference Protocol v2, as JSON or in Triton's binary form, to Arrow columns and back.

A request names one tensor per input column of the model, of shape [n] or [n, 1]; a column of lists is [n, L], whose
missing entries pad. A missing value is ``null`` in JSON data; in binary data it is the value that the tensor's
parameter ``missing`` names. Numbers must be finite.

Source: Open Inference Protocol v2 (github.com/kserve/open-inference-protocol), and the binary tensor data extension of
Triton Inference Server: the JSON part is ``Inference-Header-Content-Length`` bytes long, the tensors follow in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from recsys.errors import InputError
from recsys.serving.http.block import Block, BlockColumns, Rows
from recsys.serving.http.values import ARROW, EXACT, IDS, from_binary, from_json, to_lists, without_missing
from recsys.serving.requests import finite

HEADER = "inference-header-content-length"



@dataclass(frozen=True)
class InferRequest:
    """A decoded request.

    Attributes:
        rows: n rows: a table of the model's columns in the model's order, or blocks.
        id: the client's name of the request, or None.
        outputs: (name, binary) of the wanted outputs; empty: all.
        binary: outputs not named are binary.
        timeout: seconds, of the parameter ``timeout`` (microseconds, as Triton has it), or None.
    """

    rows: Rows
    id: str | None
    outputs: tuple[tuple[str, bool], ...]
    binary: bool
    timeout: float | None


@dataclass(frozen=True)
class _Tensor:
    """An input as it came: ``data`` is bytes, or a JSON value."""

    name: str
    shape: list[int]
    kind: str
    data: Any
    missing: Any


def decode(body: bytes, header_length: str | None, columns: Sequence[str], lists: frozenset[str],
           outputs: Sequence[str], max_rows: int, block: BlockColumns | None = None) -> InferRequest:
    """Read an inference request.

    Args:
        body: the whole body.
        header_length: value of ``Inference-Header-Content-Length``, or None: all of the body is JSON.
        columns: input columns of the model, each of which is a tensor of the request.
        lists: those of them whose tensors are [n, L].
        outputs: output names of the model.
        max_rows: most rows.
        block: of a model that takes blocks: binary tensors of numbers become them, without a table on the way.

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
    inputs = _inputs(request["inputs"], memoryview(body)[length:], columns, lists, max_rows)
    if absent := [c for c in columns if c not in inputs]:
        raise InputError("missing input", column=absent[0], got=sorted(inputs), expected="a tensor for each input")
    own = _parameters(request, "the request")
    rows: Rows | None = None if block is None else _block(inputs, block)
    if rows is None:
        rows = pa.table({c: _column(inputs[c], c in lists) for c in columns})
    return InferRequest(rows, request.get("id"), _outputs(request, outputs), _flag(own, "binary_data_output"),
                        _timeout(own))


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


def _inputs(tensors: list[Any], tail: memoryview, columns: Sequence[str], lists: frozenset[str],
            max_rows: int) -> dict[str, _Tensor]:
    """The inputs by name, each with its part of the binary tail; all have as many rows."""
    found: dict[str, _Tensor] = {}
    at, rows = 0, -1
    for tensor in tensors:
        name, shape, kind, parameters = _head(tensor)
        if name not in columns or name in found:
            raise InputError("tensor twice" if name in found else "unknown input", column=name,
                             expected="one tensor for each input of the model")
        size, data = parameters.get("binary_data_size"), tensor.get("data")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(tail) - at:
                raise InputError("binary_data_size beyond the body", column=name, got=size,
                                 expected=f"at most {len(tail) - at} bytes left")
            data = tail[at : at + size]
            at += size
        rows = shape[0] if rows < 0 else rows
        if not 1 <= shape[0] <= max_rows or shape[0] != rows:
            raise InputError("number of rows", column=name, got=shape[0],
                             expected=f"{rows}, as the tensors before" if shape[0] != rows else f"1 to {max_rows}")
        if len(shape) != 2 if name in lists else len(shape) > 2 or shape[1:] not in ([], [1]):
            raise InputError("shape", column=name, got=shape, expected="[n, length]" if name in lists else "[n]")
        found[name] = _Tensor(name, shape, kind, data, parameters.get("missing"))
    if at != len(tail):
        raise InputError("bytes after the last tensor", got=len(tail) - at, expected="none")
    return found


def _column(tensor: _Tensor, is_list: bool) -> pa.Array:
    count = math.prod(tensor.shape)
    if isinstance(tensor.data, memoryview):
        flat = from_binary(tensor.data, tensor.kind, count, tensor.name)
    else:
        flat = from_json(tensor.data, tensor.kind, count, tensor.name)
    flat = without_missing(flat, tensor.missing, tensor.name)
    return to_lists(flat, tensor.shape[0], tensor.shape[1]) if is_list else finite(flat, tensor.name)


def _block(inputs: dict[str, _Tensor], columns: BlockColumns) -> Block | None:
    """The inputs as blocks; None where a table is needed to hold them, or to say what is wrong."""
    rows = next(iter(inputs.values())).shape[0]
    block = Block(np.empty((len(columns.dense), rows), np.float32), np.empty((len(columns.ids), rows), np.int64))
    may_miss = True
    for part, places, kinds in ((block.dense, columns.dense, EXACT), (block.ids, columns.ids, IDS)):
        for name, place in places.items():
            tensor = inputs[name]
            dtype = kinds.get(tensor.kind)
            if dtype is None or not isinstance(tensor.data, memoryview) or len(tensor.data) != rows * dtype.itemsize:
                return None
            if tensor.missing is not None and (tensor.missing != "NaN" or part is block.ids):
                return None
            may_miss &= tensor.missing is not None or part is block.ids
            part[place] = np.frombuffer(tensor.data, dtype)
    if not may_miss and not np.isfinite(block.dense.sum()):
        return None
    return block


def _head(tensor: Any) -> tuple[str, list[int], str, dict[str, Any]]:
    """Name, shape, datatype and parameters of an input."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise InputError("malformed input", got=tensor, expected='{"name", "shape", "datatype", "data"}')
    name, shape, kind = tensor["name"], tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
        raise InputError("malformed shape", column=name, got=shape, expected="[n]")
    if not isinstance(kind, str) or kind not in ARROW:
        raise InputError("unknown datatype", column=name, got=kind, expected=", ".join(ARROW))
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
