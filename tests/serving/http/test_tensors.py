"""Tensors in and out: what is right is the same table in every form, what is not is named."""

from __future__ import annotations

import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.serving.http.tensors import decode, encode

COLUMNS, LISTS = ["age", "topic", "shop", "history"], frozenset({"history"})


def packed(strings: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(s.encode())) + s.encode() for s in strings)


def body(*inputs: tuple, tail: bytes = b"", **more) -> tuple[bytes, str]:
    """A binary request of (name, datatype, shape, bytes, parameters)."""
    heads = [{"name": n, "datatype": k, "shape": s, "parameters": {"binary_data_size": len(b), **p}}
             for n, k, s, b, p in inputs]
    text = json.dumps({"inputs": heads, **more}).encode()
    return text + b"".join(i[3] for i in inputs) + tail, str(len(text))


def read(data: bytes, length: str | None, max_rows: int = 100):
    return decode(data, length, COLUMNS, LISTS, ("p_click",), max_rows)


AGE = ("age", "FP32", [3], np.array([1.5, np.nan, -2], "<f4").tobytes(), {"missing": "NaN"})
TOPIC = ("topic", "BYTES", [3, 1], packed(["t1", "", "größer"]), {"missing": ""})
SHOP = ("shop", "INT64", [3], np.array([7, -1, 2**60], "<i8").tobytes(), {"missing": -1})
HISTORY = ("history", "BYTES", [3, 2], packed(["a", "b", "", "", "c", ""]), {"missing": ""})
TABLE = pa.table({"age": pa.array([1.5, None, -2], pa.float32()), "topic": ["t1", None, "größer"],
                  "shop": [7, None, 2**60], "history": [["a", "b"], [], ["c"]]})


def test_binary_and_json_requests_are_the_same_table() -> None:
    request = read(*body(SHOP, AGE, TOPIC, HISTORY, id="x", parameters={"timeout": 5000, "binary_data_output": True}))
    assert request.rows.equals(TABLE)
    assert (request.id, request.timeout, request.binary, request.outputs) == ("x", 0.005, True, ())
    plain = {"inputs": [
        {"name": "age", "datatype": "FP32", "shape": [3], "data": [1.5, None, -2]},
        {"name": "topic", "datatype": "BYTES", "shape": [3, 1], "data": [["t1"], [None], ["größer"]]},
        {"name": "shop", "datatype": "INT64", "shape": [3], "data": [7, None, 2**60]},
        {"name": "history", "datatype": "BYTES", "shape": [3, 2], "data": [["a", "b"], [None, None], ["c", None]]}],
        "outputs": [{"name": "p_click", "parameters": {"binary_data": True}}]}
    other = read(json.dumps(plain).encode(), None)
    assert other.rows.equals(TABLE)
    assert other.outputs == (("p_click", True),)


@pytest.mark.parametrize("kind", ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
                                  "FP16", "FP32", "FP64"])
def test_every_datatype_is_read(kind: str) -> None:
    dtype = {"BOOL": "?"}.get(kind, kind.lower().replace("uint", "u").replace("int", "i").replace("fp", "f"))
    values = np.array([0, 1, 1], "?" if kind == "BOOL" else f"<{dtype[0]}{int(dtype[1:]) // 8}")
    request = read(*body(("shop", kind, [3], values.tobytes(), {}), AGE, TOPIC, HISTORY))
    assert request.rows["shop"].to_pylist() == values.tolist()


@given(st.lists(st.text(max_size=6), min_size=1, max_size=20))
def test_any_strings_come_through(strings: list[str]) -> None:
    try:
        data = packed(strings)
    except UnicodeEncodeError:
        return
    request = decode(*body(("topic", "BYTES", [len(strings)], data, {})), ["topic"], frozenset(), ("p_click",), 100)
    assert request.rows["topic"].to_pylist() == strings


GOOD = (AGE, TOPIC, SHOP, HISTORY)


def changed(at: int, **new) -> tuple[bytes, str]:
    name, kind, shape, data, parameters = GOOD[at]
    one = (new.get("name", name), new.get("kind", kind), new.get("shape", shape), new.get("data", data),
           {**parameters, **new.get("parameters", {})})
    return body(*GOOD[:at], one, *GOOD[at + 1 :])


@pytest.mark.parametrize(("request_", "words"), [
    (body(*GOOD, tail=b"1"), "bytes after the last tensor"),
    (body(*GOOD[:3]), "column history: missing input"),
    (body(*GOOD, AGE), "column age: tensor twice"),
    (changed(0, name="../age"), "column ../age: unknown input"),
    (changed(0, data=AGE[3][:8]), "column age: binary_data_size; got 8; expected 12 bytes"),
    (changed(0, parameters={"binary_data_size": 10**9}), "column age: binary_data_size beyond the body"),
    (changed(0, parameters={"binary_data_size": -1}), "binary_data_size beyond the body"),
    (changed(0, parameters={"binary_data_size": True}), "binary_data_size beyond the body"),
    (changed(0, parameters={"shared_memory_region": "x"}), "shared memory"),
    (changed(0, parameters={"missing": [1]}), "malformed parameter missing"),
    (changed(2, parameters={"missing": 2**70}), "malformed parameter missing"),
    (changed(0, parameters={"missing": None}), "column age, row 1: value not allowed; got nan"),
    (changed(0, data=np.array([1, 2, -np.inf], "<f4").tobytes()), "column age, row 2: value not allowed; got -inf"),
    (changed(0, kind="FP8"), "unknown datatype"),
    (changed(0, kind=["FP32"]), "unknown datatype"),
    (changed(3, shape=[3, 3]), "binary_data_size"),
    (changed(1, shape=[2, 1]), "column topic: number of rows; got 2; expected 3"),
    (changed(0, shape=[3, 2]), "column age: shape"),
    (changed(3, shape=[3]), "column history: shape"),
    (changed(3, shape=[3, 2, 1]), "column history: shape"),
    (changed(0, shape=[]), "malformed shape"),
    (changed(0, shape=[-3]), "malformed shape"),
    (changed(0, shape=[True]), "malformed shape"),
    (changed(0, shape=[2**40]), "malformed shape"),
    (changed(0, shape=[101]), "number of rows; got 101; expected 1 to 100"),
    (changed(0, shape=[0], data=b""), "number of rows; got 0"),
    (changed(1, data=b"\x09\0\0\0ab"), "column topic: binary_data_size"),
    (changed(1, data=b"\xff\xff\xff\xffab"), "column topic: binary_data_size"),
    (changed(1, data=packed(["a", "b"]) + b"\x01\0\0\0\xff"), "column topic: not UTF-8"),
    (changed(1, data=packed(["a", "bb"]) + b"\x01\0\0\0\xff"), "column topic: not UTF-8"),
    (body(*GOOD, id=3), "column id"),
    (body(*GOOD, outputs=[{"name": "x"}]), "unknown output"),
    (body(*GOOD, outputs=[3]), "unknown output"),
    (body(*GOOD, outputs=[{"name": ["p_click"]}]), "unknown output"),
    (body(*GOOD, outputs=[{"name": "p_click", "parameters": {"classification": 2}}]), "not supported"),
    (body(*GOOD, outputs=[{"name": "p_click", "parameters": {"binary_data": 1}}]), "true or false"),
    (body(*GOOD, parameters={"timeout": 0}), "microseconds"),
    (body(*GOOD, parameters=[]), "malformed parameters"),
    ((b"", None), "not valid JSON"),
    ((b"[]", None), "malformed request"),
    ((b'{"inputs": [3]}', None), "malformed input"),
    ((b'{"inputs": []}', None), "missing input"),
    ((b"{}", "3"), "Inference-Header-Content-Length"),
    ((b"{}", "-1"), "Inference-Header-Content-Length"),
    ((b"{}", "²"), "Inference-Header-Content-Length"),
    ((b"{}", "1" * 5000), "Inference-Header-Content-Length"),
])
def test_what_is_wrong_is_named(request_: tuple, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace("[", r"\[").replace("..", r"\.\.")):
        read(*request_)


@pytest.mark.parametrize(("kind", "data", "words"), [
    ("FP32", "x", "no data"), ("FP32", [1], "number of values"), ("FP32", [[1], 2], "ragged data"),
    ("FP32", [1, "2"], "row 1: wrong type"), ("FP32", [1, True], "wrong type"), ("INT8", [1, 2.0], "wrong type"),
    ("INT8", [1, 300], "out of range"), ("BYTES", [1, 2], "wrong type"), ("FP32", [1, 1e308], "value not allowed"),
])
def test_json_data_that_are_wrong_are_named(kind: str, data: object, words: str) -> None:
    text = json.dumps({"inputs": [{"name": "age", "datatype": kind, "shape": [2], "data": data}]}).encode()
    with pytest.raises(InputError, match=words):
        decode(text, None, ["age"], frozenset(), ("p_click",), 100)


def test_answers_carry_numbers_as_json_or_binary() -> None:
    scores = {"p_click": np.array([0.25, 0.5]), "p_engage": np.array([0.125, 1.0])}
    request = read(*body(*GOOD, id="x"))
    text, length = encode(request, "m", "3", {"model_id": "q"}, scores)
    assert length is None
    assert json.loads(text) == {"model_name": "m", "model_version": "3", "id": "x", "parameters": {"model_id": "q"},
                                "outputs": [{"name": n, "datatype": "FP32", "shape": [2], "data": v.tolist()}
                                            for n, v in scores.items()]}
    request = read(*body(*GOOD, parameters={"binary_data_output": True}))
    data, length = encode(request, "m", "3", {}, scores)
    head = json.loads(data[:length])
    assert [o["parameters"]["binary_data_size"] for o in head["outputs"]] == [8, 8]
    assert np.frombuffer(data[length:], "<f4").tolist() == [0.25, 0.5, 0.125, 1.0]
