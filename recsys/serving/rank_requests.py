"""Requests to rank, to retrieve, and with feedback, parsed strictly: what is not plainly right is named in a 400."""

from __future__ import annotations

import datetime as dt
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from recsys.contracts import SURFACES
from recsys.errors import InputError

MOST_CANDIDATES, MOST_FILTERS, MOST_EVENTS = 10_000, 8, 1_000
KINDS = ("click", "engage", "convert", "hide")
CONTEXT_TYPES: dict[str, pa.DataType] = {
    "number": pa.float64(), "integer": pa.int64(), "string": pa.string(), "strings": pa.list_(pa.string())}
_ID = re.compile(r"[\w.:@+/=-]{1,128}")
_INT64 = 2**63
_FLOAT32 = (2 - 2**-23) * 2.0**127  # the largest: in float32 models compute
_YEARS = range(2000, 2200)  # what a client's clock can plausibly say


@dataclass(frozen=True)
class RankRequest:
    """Who asks for how many ads, and where.

    Attributes:
        surface: feed, discovery or messaging.
        k: slots to fill, or ads to retrieve.
        user_id: None: nobody known.
        request_id: names the decision: its impressions and its random draw follow from it.
        ts: microseconds since 1970, UTC; None: now.
        context: columns of the request that the configuration declares.
        candidates: ad ids to rank instead of retrieved ones.
        where: further filters over the ads' columns.
    """

    surface: str
    k: int
    user_id: str | None = None
    request_id: str = ""
    ts: int | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[str, ...] | None = None
    where: tuple[str, ...] = ()


def parse_rank(body: bytes | Mapping[str, Any], context: Mapping[str, str], most: int) -> RankRequest:
    """A request to rank or retrieve.

    Args:
        body: JSON (RFC 8259), or its parsed object: ``surface``, ``k``, and optional ``user_id``, ``request_id``,
            ``ts`` (ISO 8601), ``context``, ``candidates``, ``where``.
        context: column -> number, integer, string or strings: what every request must bring; null is a missing value.
        most: largest ``k``.

    Raises:
        InputError: not JSON, an unknown key, or a value that is missing or not what it should be.
    """
    given = _object(body)
    known = {"surface", "k", "user_id", "request_id", "ts", "context", "candidates", "where"}
    if unknown := sorted(set(given) - known):
        raise InputError("unknown key", file="request", column=unknown[0], expected=", ".join(sorted(known)))
    surface, k = given.get("surface"), given.get("k")
    if surface not in SURFACES:
        raise InputError("no such surface", file="request", column="surface", got=surface,
                         expected=" | ".join(SURFACES))
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= most:
        raise InputError("value not allowed", file="request", column="k", got=k, expected=f"1 to {most}")
    ts = given.get("ts")
    candidates = _texts(given, "candidates", MOST_CANDIDATES)
    if candidates is not None and len(set(candidates)) != len(candidates):
        raise InputError("an ad twice", file="request", column="candidates", expected="distinct ad ids")
    return RankRequest(
        surface=surface, k=k, user_id=_identifier(given, "user_id"),
        request_id=_identifier(given, "request_id") or secrets.token_hex(16),
        ts=None if ts is None else _time(ts, "ts"), context=_context(given.get("context", {}), context),
        candidates=candidates, where=_texts(given, "where", MOST_FILTERS) or ())


def parse_feedback(body: bytes | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Events of ``{"events": [{"impression_id", "kind", ...}]}``, as rows of FEEDBACK (recsys.serving.feedback).

    ``kind`` is click, engage, convert or hide; optional: ``ts`` (ISO 8601; absent: now), ``value`` (of a conversion),
    ``dwell_ms``, ``event_id`` (an event sent twice counts once).

    Raises:
        InputError: what is not so; then no event of the request counts.
    """
    events = _object(body).get("events")
    if not isinstance(events, list) or not 1 <= len(events) <= MOST_EVENTS:
        raise InputError("malformed request", file="request", column="events",
                         expected=f'{{"events": [...]}} with 1 to {MOST_EVENTS} events')
    now = _now()
    return [_event(event, row, now) for row, event in enumerate(events)]


def _event(event: Any, row: int, now: int) -> dict[str, Any]:
    known = {"impression_id", "kind", "ts", "value", "dwell_ms", "event_id"}
    if not isinstance(event, dict) or set(event) - known:
        raise InputError("malformed event", file="request", column="events", row=row, got=event,
                         expected=", ".join(sorted(known)))
    impression = _identifier(event, "impression_id", 160)
    if impression is None or event.get("kind") not in KINDS:
        raise InputError("malformed event", file="request", column="impression_id" if impression is None else "kind",
                         row=row, got=event.get("kind"), expected=" | ".join(KINDS))
    amounts = {}
    for name in ("value", "dwell_ms"):
        amount = event.get(name)
        if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int | float)
                                   or not 0 <= amount < 1e15):
            raise InputError("value not allowed", file="request", column=name, row=row, got=amount,
                             expected="a finite amount >= 0")
        amounts[name] = None if amount is None else float(amount)
    ts = event.get("ts")
    return {"impression_id": impression, "kind": event["kind"], "ts": now if ts is None else _time(ts, "ts"),
            **amounts, "event_id": _identifier(event, "event_id")}


def _object(body: bytes | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(body, Mapping):
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InputError("not valid JSON", got=str(error)) from None
    if not isinstance(body, Mapping):
        raise InputError("malformed request", got=body, expected="a JSON object")
    return dict(body)


def _identifier(given: Mapping[str, Any], name: str, most: int = 128) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > most or not _ID.fullmatch(value[:128]):
        raise InputError("not an identifier", file="request", column=name, got=value,
                         expected=f"1 to {most} letters, digits and . : @ + / = _ -")
    return value


def _texts(given: Mapping[str, Any], name: str, most: int) -> tuple[str, ...] | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > most or not all(isinstance(v, str) and _plain(v) for v in value):
        raise InputError("value not allowed", file="request", column=name,
                         expected=f"a list of at most {most} texts of at most 256 characters")
    return tuple(value)


def _plain(text: str) -> bool:
    return len(text) <= 256 and text.isprintable()  # a lone surrogate is not printable


def _context(given: Any, types: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InputError("malformed request", file="request", column="context", got=given, expected="an object")
    if set(given) != set(types):
        missing, unknown = sorted(set(types) - set(given)), sorted(set(given) - set(types))
        raise InputError("missing column of the context" if missing else "unknown column of the context",
                         file="request", column=(missing or unknown)[0],
                         expected=f"{', '.join(types) or 'no columns'}; null for a missing value")
    for name, value in given.items():
        if value is not None and not _is(value, types[name]):
            raise InputError("wrong type", file="request", column=name, got=value, expected=types[name])
    return given


def _is(value: Any, kind: str) -> bool:
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FLOAT32
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64
    if kind == "string":
        return isinstance(value, str) and _plain(value)
    return isinstance(value, list) and len(value) <= 1_000 and all(isinstance(v, str) and _plain(v) for v in value)


def _time(text: Any, name: str) -> int:
    """Microseconds since 1970; a time without a zone is UTC."""
    try:
        moment = dt.datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment
        since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    except (TypeError, ValueError, OverflowError):
        raise InputError("not a time", file="request", column=name, got=text, expected="ISO 8601") from None
    if moment.year not in _YEARS:
        raise InputError("time out of range", file="request", column=name, got=text,
                         expected=f"a year from {_YEARS[0]} to {_YEARS[-1]}")
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _now() -> int:
    return int(dt.datetime.now(dt.UTC).timestamp() * 1_000_000)
