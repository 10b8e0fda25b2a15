from __future__ import annotations

import json

import pyarrow as pa
import pytest

from recsys.errors import InputError
from recsys.serving.requests import finite, parse_rows


def body(*ages: object) -> bytes:
    return json.dumps({"rows": [{"age": age, "topic": "t"} for age in ages]}).encode()


def test_numbers_that_float32_cannot_hold_are_refused_with_their_row() -> None:
    table = parse_rows(body(3.4e38, None, 2**40), ["age", "topic"], 10)
    assert table["age"].to_pylist() == [3.4e38, None, 2.0**40]
    for value in (1e308, -3.5e38):
        with pytest.raises(InputError, match=r"column age, row 2: value not allowed; got -?(1e\+308|3\.5e\+38)"):
            parse_rows(body(1.0, None, value), ["age", "topic"], 10)


def test_only_numbers_are_looked_at() -> None:
    for column in (pa.array(["1e308", None]), pa.array([2**62]), pa.array([1.0, None], pa.float32()),
                   pa.array([], pa.float64())):
        assert finite(column, "x") is column
    with pytest.raises(InputError, match="row 1: value not allowed; got nan"):
        finite(pa.array([0.0, float("nan")]), "x")
