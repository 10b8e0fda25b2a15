"""JSON schemas of the service's bodies, for its API page."""

from __future__ import annotations

from typing import Any

from recsys.contracts import SURFACES


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
MOST_RETRIEVED = 10_000
_NAME = {"type": "string", "pattern": "^[\\w.:@+/=-]{1,128}$"}
RANK_REQUEST = _object(
    {"surface": {"type": "string", "enum": list(SURFACES)},
     "k": {"type": "integer", "minimum": 1, "description": "slots to fill, or ads to retrieve"}},
    {"user_id": _NAME, "request_id": {**_NAME, "description": "names the decision, its impressions and its draw"},
     "ts": {"type": "string", "format": "date-time"},
     "context": {"type": "object", "description": "the columns that the configuration declares; null if missing"},
     "candidates": _list(_TEXT, maxItems=MOST_RETRIEVED, uniqueItems=True),
     "where": _list(_TEXT, maxItems=8, description="COLUMN=VALUE over the ads' columns")})
RANK_ANSWER = _object({"request_id": _TEXT, "model_id": _TEXT, "policy_id": _TEXT, "ads": _list(_object(
    {"impression_id": _TEXT, "slot": _NATURAL, "ad_id": _TEXT, "propensity": _NUMBER},
    {"price_per_click": _NUMBER, "p_click": _NUMBER}))})
RETRIEVE_ANSWER = _object({"request_id": _TEXT, "source": _TEXT, "user_known": _FLAG,
                           "ads": _list(_object({"ad_id": _TEXT, "score": _NUMBER}))})
FEEDBACK_REQUEST = _object({"events": _list(_object(
    {"impression_id": {"type": "string", "pattern": "^[\\w.:@+/=-]{1,160}$"},
     "kind": {"type": "string", "enum": ["click", "engage", "convert", "hide"]}},
    {"ts": {"type": "string", "format": "date-time"}, "value": {"type": "number", "minimum": 0},
     "dwell_ms": {"type": "number", "minimum": 0}, "event_id": _NAME}), minItems=1, maxItems=1000)})
FEEDBACK_ANSWER = _object({"events": _NATURAL})
SCORE_REQUEST = _object({"rows": _list({"type": "object", "description": "every input column of the model; null for a "
                                                                         "missing value"}, minItems=1)})
SCORE_ANSWER = _object({"model_id": _TEXT, "scores": _list({"type": "object", "additionalProperties": _NUMBER})})
