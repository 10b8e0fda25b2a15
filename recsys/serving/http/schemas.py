"""JSON schemas of the service's bodies, for its API page."""

from __future__ import annotations

from typing import Any


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _list(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


_TEXT, _FLAG, _NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "number"}
_NATURAL = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_DATATYPE = {"type": "string", "enum": ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32",
                                        "INT64", "FP16", "FP32", "FP64", "BYTES"]}
_SHAPE = _list(_NATURAL, minItems=1, maxItems=2)
_TENSOR_INFO = _object({"name": _TEXT, "datatype": _DATATYPE, "shape": _list({"type": "integer"})})

ERROR = _object({"error": _TEXT})
LIVE = _object({"live": _FLAG})
READY = _object({"ready": _FLAG})
SERVER = _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT), "models": _list(_TEXT)})
MODEL = _object({"name": _TEXT, "versions": _list(_TEXT), "platform": _TEXT, "inputs": _list(_TENSOR_INFO),
                 "outputs": _list(_TENSOR_INFO), "model_id": _TEXT})
MODEL_READY = _object({"name": _TEXT, "ready": _FLAG})
INDEX = _list(_object({"name": _TEXT, "version": _TEXT, "state": {"type": "string", "enum": ["READY", "UNAVAILABLE"]},
                       "reason": _TEXT}))
INDEX_REQUEST = _object({}, {"ready": {**_FLAG, "description": "only versions in use"}})
LOAD_REQUEST = _object({}, {"parameters": _object({}, {"version": {
    **_TEXT, "description": "the version to serve, an older one to roll back; the latest if absent"}})})
UNLOAD_REQUEST = _object({}, {"parameters": _object({})})
DONE = _object({"name": _TEXT, "version": {"type": ["string", "null"]}})

INFER_REQUEST = _object(
    {"inputs": _list(_object({"name": _TEXT, "shape": _SHAPE, "datatype": _DATATYPE}, {
        "data": _list({}, description="flat or by row; null is a missing value"),
        "parameters": _object({}, {
            "binary_data_size": {**_NATURAL, "description": "the tensor is binary, and so many bytes long"},
            "missing": {"description": "the value that stands for a missing one; \"NaN\" for a number's"}})}))},
    {"id": _TEXT,
     "parameters": _object({}, {"binary_data_output": _FLAG,
                                "timeout": {"type": "integer", "minimum": 1, "description": "microseconds"}}),
     "outputs": _list(_object({"name": _TEXT}, {"parameters": _object({}, {"binary_data": _FLAG})}))})
INFER_ANSWER = _object(
    {"model_name": _TEXT, "model_version": _TEXT, "parameters": _object({"model_id": _TEXT}),
     "outputs": _list(_object({"name": _TEXT, "datatype": _DATATYPE, "shape": _SHAPE},
                              {"data": _list(_NUMBER), "parameters": _object({})}))},
    {"id": _TEXT})
SCORE_REQUEST = _object({"rows": _list({"type": "object", "description": "every input column of the model; null for a "
                                                                         "missing value"}, minItems=1)})
SCORE_ANSWER = _object({"model_id": _TEXT, "scores": _list({"type": "object", "additionalProperties": _NUMBER})})
