from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.serving.rank_requests import parse_feedback, parse_rank

CONTEXT = {"hour": "number", "visits": "integer", "device": "string", "tags": "strings"}
VALUES = {"hour": 1.5, "visits": None, "device": "phone", "tags": ["a"]}


def body(**more: Any) -> dict[str, Any]:
    return {"surface": "feed", "k": 2, "context": VALUES, **more}


def test_a_request_with_everything_and_one_with_the_least():
    full = parse_rank(json.dumps(body(user_id="u1", request_id="r1", ts="2026-03-02T01:00:00.5+01:00",
                                      candidates=["a", "b"], where=["x=1"])).encode(), CONTEXT, 3)
    assert full.ts == 1_772_409_600_500_000
    assert (full.candidates, full.where, full.context) == (("a", "b"), ("x=1",), VALUES)
    least = parse_rank({"surface": "feed", "k": 1}, {}, 3)
    assert least.user_id is None
    assert least.candidates is None
    assert least.request_id != parse_rank({"surface": "feed", "k": 1}, {}, 3).request_id


@pytest.mark.parametrize(("change", "column"), [
    ({"surface": "cellar"}, "surface"), ({"surface": None}, "surface"), ({"k": 0}, "k"), ({"k": 4}, "k"),
    ({"k": True}, "k"), ({"k": 1.0}, "k"), ({"user_id": 7}, "user_id"), ({"user_id": "a b"}, "user_id"),
    ({"user_id": "u\n"}, "user_id"), ({"request_id": "x" * 129}, "request_id"), ({"ts": "yesterday"}, "ts"),
    ({"ts": 12}, "ts"), ({"ts": "0001-01-01"}, "ts"), ({"ts": "9999-12-31T23:59:59-12:00"}, "ts"),
    ({"candidates": "a"}, "candidates"), ({"candidates": ["a", "a"]}, "candidates"),
    ({"candidates": [1]}, "candidates"), ({"where": ["x=1"] * 9}, "where"), ({"extra": 1}, "extra"),
    ({"context": {**VALUES, "hour": "x"}}, "hour"), ({"context": {**VALUES, "hour": True}}, "hour"),
    ({"context": {**VALUES, "hour": 1e308}}, "hour"),
    ({"context": {**VALUES, "visits": 1.5}}, "visits"), ({"context": {**VALUES, "visits": 2**63}}, "visits"),
    ({"context": {**VALUES, "tags": [1]}}, "tags"), ({"context": {"hour": 1.0}}, "device"),
    ({"context": {**VALUES, "more": 1}}, "more"), ({"context": []}, "context"),
])
def test_what_is_not_right_is_named(change, column):
    with pytest.raises(InputError) as error:
        parse_rank(body(**change), CONTEXT, 3)
    assert error.value.column == column


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["surface", "k", "user_id", "context", "ts", "events", "impression_id", "kind", "value"]),
        inner, max_size=4), max_leaves=8))
def test_nothing_but_an_input_error_whatever_comes(value):
    given_body = value if isinstance(value, bytes) else json.dumps(value).encode()
    for parse in (lambda b: parse_rank(b, CONTEXT, 3), parse_feedback):
        with pytest.raises(InputError):
            parse(given_body)


def test_feedback_of_several_kinds():
    events = parse_feedback({"events": [
        {"impression_id": "r-0", "kind": "click"},
        {"impression_id": "r-0", "kind": "convert", "value": 12, "event_id": "e", "ts": "2026-03-02"},
        {"impression_id": "r-1", "kind": "engage", "dwell_ms": 1e4}]})
    assert [e["kind"] for e in events] == ["click", "convert", "engage"]
    assert events[1]["value"] == 12.0
    assert events[1]["ts"] == 1_772_409_600_000_000
    assert events[0]["value"] is None


@pytest.mark.parametrize(("event", "column"), [
    ({"kind": "click"}, "impression_id"), ({"impression_id": "r", "kind": "sneeze"}, "kind"),
    ({"impression_id": "r", "kind": "convert", "value": -1}, "value"),
    ({"impression_id": "r", "kind": "convert", "value": 1e300}, "value"),
    ({"impression_id": "r", "kind": "engage", "dwell_ms": True}, "dwell_ms"),
    ({"impression_id": "r", "x": 1}, "events"),
])
def test_a_malformed_event_is_named_by_its_row(event, column):
    with pytest.raises(InputError) as error:
        parse_feedback({"events": [{"impression_id": "ok", "kind": "hide"}, event]})
    assert (error.value.column, error.value.row) == (column, 1)
