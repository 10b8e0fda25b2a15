"""Requests that their heads are enough to refuse, on real sockets: no task is made, and nobody else is held up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from recsys.serving import make_app
from recsys.serving.http import App, Limits, Settings
from recsys.serving.http.connection import MOST_PIPELINED, Connections
from recsys.serving.http.routes import Access
from tests.serving.http.client import Slow, listening
from tests.serving.http.test_bodies import ROWS, Wire, chunk, head

INFER, TOKEN = "/v2/models/{model}/infer", "Authorization: Bearer secret\r\n"
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
SCORE = head(len(ROWS)) + ROWS


class Full:
    """A service whose model is held with the one request that its queue has room for."""

    def __init__(self, app: App, address: tuple[str, int], connections: Connections, called: list[str]) -> None:
        self.app, self._address, self.connections, self.called = app, address, connections, called
        self.door = app.service.models.first.scorer.door

    def wire(self) -> Wire:
        return Wire(self._address)

    async def metric(self, name: str, token: str = "") -> str:
        """Its value on /metrics."""
        wire = await self.wire().send(f"GET /metrics HTTP/1.1\r\nHost: localhost\r\n{token}\r\n".encode())
        text = (await wire._reader.readuntil(b"\r\n\r\n")).lower()
        page = await wire._reader.readexactly(int(text.split(b"content-length: ")[1].split(b"\r\n")[0]))
        await wire.close()
        return next(line for line in page.decode().splitlines() if line.startswith(name)).split()[-1]


def full(model: Path, talk: Callable[[Full], Awaitable[None]], token: str | None = None) -> list[dict]:
    """Run ``talk`` against the held service; returns the lines of its access log."""
    lines: list[dict] = []
    settings = Settings(token=token, limits=Limits(requests=1, delay=600), timeout=600, access_log=lines.append)
    app, called, call = make_app(model, settings, load=Slow), [], Access.__call__

    async def counted(self, scope, receive, send) -> None:
        called.append(scope["path"])
        await call(self, scope, receive, send)

    async def run() -> None:
        async with app.router.lifespan_context(app), listening(app) as (address, connections), asyncio.timeout(600):
            held = Full(app, address, connections, called)
            held.door.clear()
            first = await held.wire().send(head(len(ROWS), TOKEN) + ROWS)
            while not app.service._thread._requests:
                await asyncio.sleep(0.01)
            called.clear()
            try:
                await talk(held)
            finally:
                held.door.set()
            assert (await first.answer())[0] == 200

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Access, "__call__", counted)
        asyncio.run(run())
    return lines


def test_a_full_queue_refuses_without_a_task_and_is_seen_to(model: Path) -> None:
    async def talk(held: Full) -> None:
        named = head(len(ROWS), "X-Request-Id: r1\r\nX-Forwarded-For: 203.0.113.7\r\n") + ROWS
        wire = await held.wire().send(SCORE, named)
        for _ in range(2):
            status, headers, body = await wire.answer()
            assert (status, body) == (503, {"error": "too many requests waiting"})
            assert headers[b"retry-after"] == b"1"
            assert headers[b"content-type"] == b"application/json"
        for path in ("/v2/models/ranker/infer", "/v2/models/ranker/versions/1/infer"):
            await wire.send(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            assert (await wire.answer())[0] == 503
        assert held.called == []
        assert await held.metric("recsys_requests_refused_total") == "4.0"
        assert await held.metric('recsys_requests_total{route="/v1/score",status="503"}') == "2.0"
        assert await held.metric(f'recsys_request_seconds_count{{route="{INFER}"}}') == "1.0"
        held.door.set()
        while held.app.service._thread._requests:
            await asyncio.sleep(0.01)
        assert (await (await wire.send(SCORE)).answer())[0] == 200  # on the same connection
        assert held.called.pop() == "/v1/score"

    lines = [x for x in full(model, talk) if x["status"] == 503]
    assert [x["route"] for x in lines] == ["/v1/score"] * 2 + [INFER, "/v2/models/{model}/versions/{version}/infer"]
    assert [(x["request_id"], x["client"]) for x in lines[:2]] == [(None, "127.0.0.1"), ("r1", "203.0.113.7")]
    assert all(x["bytes"] > 0 and x["milliseconds"] >= 0 for x in lines)


def test_other_routes_are_never_refused_for_the_queue(model: Path) -> None:
    async def talk(held: Full) -> None:
        wire = held.wire()
        for method, path, status in (("GET", "/v2/health/ready", 200), ("GET", "/v2/models/ranker", 200),
                                     ("GET", "/v2", 200), ("GET", "/openapi.json", 200),
                                     ("POST", "/v2/repository/index", 200), ("GET", "/v1/score", 405),
                                     ("POST", "/v2/repository/models/nosuch/load", 404)):
            await wire.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            assert (await wire.answer())[0] == status, path
        assert await held.metric("recsys_requests_refused_total") == "0.0"

    full(model, talk)


def test_who_has_no_token_learns_nothing_of_the_queue(model: Path) -> None:
    async def talk(held: Full) -> None:
        wire = held.wire()
        for more in ("", "Authorization: Bearer wrong\r\n", TOKEN + TOKEN):
            status, headers, _ = await (await wire.send(head(len(ROWS), more) + ROWS)).answer()
            assert (status, headers[b"www-authenticate"]) == (401, b"Bearer")
            assert b"retry-after" not in headers
        await wire.send(b"HEAD /v1/score HTTP/1.1\r\nHost: localhost\r\n\r\n")  # has no body, or the next is lost
        assert (await wire._reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401")
        assert (await (await wire.send(HEALTH)).answer())[0] == 200
        assert held.called == ["/v2/health/live"]
        assert await held.metric("recsys_requests_refused_total", TOKEN) == "0.0"
        assert (await (await wire.send(head(len(ROWS), TOKEN) + ROWS)).answer())[0] == 503

    full(model, talk, token="secret")


def test_web_pages_are_told_what_they_are(model: Path) -> None:
    async def talk(held: Full) -> None:
        wire = await held.wire().send(head(len(ROWS), "Origin: http://elsewhere.example\r\n") + ROWS)
        assert (await wire.answer())[0] == 403

    full(model, talk)


@pytest.mark.parametrize("length", [8 << 20, None], ids=["announced", "in chunks"])
def test_the_body_of_a_refused_request_is_passed_over(model: Path, length: int | None) -> None:
    async def talk(held: Full) -> None:
        piece, times = b" " * (1 << 20), 8
        wire = await held.wire().send(head(length))
        assert (await wire.answer())[0] == 503  # before any of it has come
        for _ in range(times):
            await wire.send(piece if length else chunk(piece))
        if length is None:
            await wire.send(b"0\r\n\r\n")
        assert (await (await wire.send(HEALTH)).answer())[0] == 200
        (held_one, kept) = sorted(held.connections.open, key=lambda c: c.cycle.response_complete)
        assert not kept.cycle.body
        assert not held_one.cycle.response_complete

    full(model, talk)


@pytest.mark.parametrize("head_", [
    head(0, "Connection: close\r\n"), b"POST /v1/score HTTP/1.0\r\n\r\n", head(5, "Expect: 100-continue\r\n")],
    ids=["close", "HTTP/1.0", "expects a word before its body"])
def test_connections_end_where_they_should(model: Path, head_: bytes) -> None:
    async def talk(held: Full) -> None:
        wire = await held.wire().send(head_)
        status, headers, _ = await wire.answer()
        assert (status, headers[b"connection"]) == (503, b"close")
        assert await wire._reader.read() == b""
        assert len(held.connections.open) == 1

    full(model, talk)


def test_nothing_is_done_for_what_comes_behind_a_close(model: Path) -> None:
    async def talk(held: Full) -> None:
        unload = b"POST /v2/repository/models/ranker/unload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        wire = await held.wire().send(head(0, "Expect: 100-continue\r\n") + unload)
        assert (await wire.answer())[0] == 503
        assert await wire._reader.read() == b""
        assert held.called == []

    full(model, talk)


def test_requests_that_come_together_are_answered_in_turn_and_bounded(model: Path) -> None:
    async def talk(held: Full) -> None:
        wire = await held.wire().send(SCORE + HEALTH + SCORE + SCORE + HEALTH)
        assert [(await wire.answer())[0] for _ in range(5)] == [503, 200, 503, 503, 200]
        assert len(held.called) == 4  # the first had no task
        await wire.send(SCORE)
        assert (await wire.answer())[0] == 503
        flood = await held.wire().send(head(0) * 2000)
        flood._writer.write_eof()
        try:
            answers = await flood._reader.read()
        except ConnectionError:
            answers = b""
        assert answers.count(b"HTTP/1.1") <= 1 + MOST_PIPELINED
        assert len(held.connections.open) == 2

    full(model, talk)


def test_who_does_not_take_his_answers_gets_no_more_of_them(model: Path) -> None:
    async def talk(held: Full) -> None:
        wire = await held.wire().send(SCORE)
        assert (await wire.answer())[0] == 503
        (kept,) = (c for c in held.connections.open if c.cycle.response_complete)
        kept.pause_writing()  # as asyncio does when its buffer for the socket is full
        await wire.send(SCORE, SCORE)
        assert held.called == ["/v1/score"]  # a task, which waits for the socket; the next waits for it
        kept.resume_writing()
        assert [(await wire.answer())[0] for _ in range(2)] == [503, 503]

    full(model, talk)
