"""A route of the service, and what stands around every route: token, limits, errors, metrics, access log."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.errors import InputError
from recsys.log import log
from recsys.serving.http.bodies import Bodies
from recsys.serving.http.metrics import Metrics
from recsys.serving.http.models import UnknownModelError
from recsys.serving.http.origin import foreign
from recsys.serving.http.queue import DeadlineError, QueueFullError

FULL = "recsys.full"
"""Key of a request's scope: it came when there were too many connections."""
TIMEOUT = "timeout-ms"
_FACTS = "recsys.facts"
_LOOKED_AT = "recsys.looked_at"
_MOST_SECONDS = 3600.0


@dataclass(frozen=True)
class Route:
    """One method of one path.

    Attributes:
        method: GET or POST.
        path: with ``{name}`` where a part varies.
        handler: answers a request; what it raises becomes an error body (:class:`Access`).
        summary: one line for the API page.
        free: asks for no token.
        queued: is for the model: refused while the queue has no room, whatever else is wrong with it.
        body: content type -> schema of the request's body, for the API page.
        answer: schema of a 200, for the API page; None: it has no JSON.
        unready: schema of a 503 that is an answer like a 200, for the API page.
        errors: further statuses that it answers with.
        headers: request headers that it heeds -> their schema.
        required: a request without a body is a 400.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    free: bool = False
    queued: bool = False
    body: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None
    unready: Mapping[str, Any] | None = None
    errors: Sequence[int] = ()
    headers: Mapping[str, Any] = field(default_factory=dict)
    required: bool = True


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, "application/json")


def timeout_of(request: Request, default: float) -> float:
    """Seconds that the client gives us: its header ``Timeout-Ms``.

    Raises:
        InputError: not a whole number from 1 to an hour.
    """
    text = request.headers.get(TIMEOUT)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 8) or not 1 <= int(text) <= _MOST_SECONDS * 1000:
        raise InputError("malformed header Timeout-Ms", got=text, expected="milliseconds, 1 to 3600000")
    return int(text) / 1000


def note(request: Request, **facts: Any) -> None:
    """Say something about the request in its line of the access log."""
    request.scope.setdefault(_FACTS, {}).update(facts)


def access_line(line: Mapping[str, Any]) -> None:
    """Write a line of the access log to standard output, whole, whichever process writes it."""
    os.write(1, orjson.dumps(line) + b"\n")


class Access:
    """The ASGI app around the routes.

    Args:
        app: the router.
        token: asked for as ``Authorization: Bearer TOKEN``; None: only programs on this machine are answered
            (:mod:`recsys.serving.http.origin`).
        routes: those of the router.
        check_room: raises :class:`QueueFullError` where the queue has no room.
        bodies: where the request's body, once it is answered, counts no more.
        metrics: where answers are counted.
        write: takes a line of the access log, or None.
    """

    def __init__(self, app: ASGIApp, token: str | None, routes: Sequence[Route], check_room: Callable[[], None],
                 bodies: Bodies, metrics: Metrics, write: Callable[[Mapping[str, Any]], None] | None) -> None:
        self._app, self._bodies, self._metrics, self._write = app, bodies, metrics, write
        self._free = frozenset(r.path for r in routes if r.free)
        self._queued = [(r, compile_path(r.path)[0]) for r in routes if r.queued]
        self._check_room = check_room
        self._wanted = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, sent = time.perf_counter(), {"status": 0, "bytes": 0}

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
            else:
                sent["bytes"] += len(message.get("body", b""))
            await send(message)

        scope["app"] = self
        refusal = None if scope.get(_LOOKED_AT) else self._refusal(scope)
        if refusal is None:
            try:
                await self._app(scope, receive, counted)
            except Exception as error:
                response = _error(error)
                if response.status_code == 500:
                    log.exception("%s %s failed", scope["method"], scope.get("recsys.route", "other"))
                if not sent["status"]:
                    await response(scope, receive, counted)
            finally:
                self._bodies.release(scope)
        else:
            await refusal(scope, receive, counted)
        self._count(scope, began, sent)

    def refuse(self, scope: Scope) -> Response | None:
        """The answer to a request that its head is enough to refuse, counted and logged; None: call the app.

        Under overload most requests end here, without a task, the router and a handler: what a refusal costs, answers
        lack. A request that was looked at so is not looked at again.
        """
        began, refusal = time.perf_counter(), self._refusal(scope)
        scope[_LOOKED_AT] = True
        if refusal is not None:
            self._count(scope, began, {"status": refusal.status_code, "bytes": len(refusal.body)})
        return refusal

    def _count(self, scope: Scope, began: float, sent: Mapping[str, int]) -> None:
        seconds, route = time.perf_counter() - began, scope.get("recsys.route", "other")
        self._metrics.requests.labels(route, sent["status"]).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._write is not None:
            self._write(_line(scope, route, seconds, sent))

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["path"] in self._free:
            return None
        if scope.get(FULL):
            return _refused(503, "too many connections", ("Retry-After", "1"), ("Connection", "close"))
        if self._wanted is None:
            if why := foreign(scope["headers"]):
                return _refused(403, why)
        else:
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(given) != 1 or not hmac.compare_digest(given[0], self._wanted):
                return _refused(401, "no or wrong token", ("WWW-Authenticate", "Bearer"))
        for route, path in self._queued:
            if scope["method"] == route.method and path.match(scope["path"]):
                scope["recsys.route"] = route.path
                try:
                    self._check_room()
                except QueueFullError as error:
                    return _full(error)
                break
        return None


def named(route: Route) -> Callable[[Request], Awaitable[Response]]:
    """The route's handler, which also says which route it is: a client must not be able to make up label values."""
    async def handler(request: Request) -> Response:
        request.scope["recsys.route"] = route.path
        return await route.handler(request)

    return handler


@lru_cache(256)
def _refused(status: int, text: str, *headers: tuple[str, str]) -> Response:
    return json_response({"error": text}, status, dict(headers))


def _full(error: QueueFullError) -> Response:
    return _refused(503, str(error), ("Retry-After", str(error.retry_after)))


def _error(error: Exception) -> Response:
    if isinstance(error, InputError):
        return json_response({"error": _clean(str(error))}, 400)
    if isinstance(error, UnknownModelError):
        return json_response({"error": str(error)}, 404)
    if isinstance(error, QueueFullError):
        return _full(error)
    if isinstance(error, DeadlineError):
        return json_response({"error": str(error)}, 504)
    if isinstance(error, HTTPException):
        return json_response({"error": error.detail}, error.status_code, error.headers)
    return json_response({"error": "internal error"}, 500)


def _clean(text: str) -> str:
    """JSON can say what a client's string could not (a lone surrogate)."""
    return text.encode(errors="replace").decode()


def _line(scope: Scope, route: str, seconds: float, sent: Mapping[str, int]) -> dict[str, Any]:
    headers = dict(scope["headers"])
    client = scope.get("client")
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "client": client[0] if client else None,
            "method": scope["method"], "path": _clean(scope["path"])[:200], "route": route, "status": sent["status"],
            "milliseconds": round(seconds * 1000, 3), "bytes": sent["bytes"],
            "request_id": headers.get(b"x-request-id", b"")[:100].decode("latin-1") or None, "pid": os.getpid(),
            **scope.get(_FACTS, {})}
