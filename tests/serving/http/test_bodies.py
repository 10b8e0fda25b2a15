"""Bodies together are bounded: what has been announced or has come counts until it is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.serving import make_app
from recsys.serving.http import App, Settings
from recsys.serving.http.bodies import Bodies
from tests.serving.http.client import Slow, listening, some_rows

EACH, TOGETHER = 40_000, 100_000
BOUNDS = Settings(max_body=EACH, max_bodies=TOGETHER, timeout=600, read_timeout=600)
ROWS = json.dumps({"rows": some_rows(1)}).encode()


def head(length: int | None, more: str = "") -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n{size}\r\n{more}\r\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Wire:
    """A connection of a client that does as it likes."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    async def send(self, *parts: bytes) -> Wire:
        if not hasattr(self, "_writer"):
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            await asyncio.sleep(0.01)  # so that the server sees it by itself
        return self

    async def answer(self) -> tuple[int, dict[bytes, bytes], dict]:
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).strip().split(b"\r\n")
        headers = {k.lower(): v for k, v in (line.split(b": ", 1) for line in lines)}
        body = json.loads(await self._reader.readexactly(int(headers[b"content-length"])))
        return int(status.split()[1]), headers, body

    async def close(self) -> None:
        self._writer.close()


def served(app: App, talk: Callable[[Callable[[], Wire]], Awaitable[None]]) -> None:
    async def run() -> None:
        async with app.router.lifespan_context(app), listening(app) as (address, _), asyncio.timeout(600):
            await talk(lambda: Wire(address))

    asyncio.run(run())


def test_what_was_announced_counts_before_it_comes(model: Path) -> None:
    async def talk(wire: Callable[[], Wire]) -> None:
        first = await wire().send(head(EACH), b" ")
        second = await wire().send(head(EACH), b" ")
        third = await wire().send(head(TOGETHER - 2 * EACH + 1))  # nothing of its body
        status, headers, body = await third.answer()
        assert (status, headers[b"retry-after"]) == (503, b"1")
        assert "bytes" in body["error"]
        fits = await wire().send(head(len(ROWS)), ROWS)
        assert (await fits.answer())[0] == 200
        await first.send(b" " * (EACH - 1))
        assert (await first.answer())[0] == 400  # it is no JSON; and it counts no more
        await third.send(b" " * (TOGETHER - 2 * EACH + 1), head(EACH), b" " * EACH)  # the same connection goes on
        assert (await third.answer())[0] == 400
        await second.close()  # without its body
        for _ in range(5):
            assert (await (await wire().send(head(len(ROWS)), ROWS)).answer())[0] == 200
        pair = [await wire().send(head(EACH)) for _ in range(2)]
        for each in pair:
            await each.send(b" " * EACH)
            assert (await each.answer())[0] == 400

    served(make_app(model, BOUNDS), talk)


def test_what_comes_in_chunks_counts_as_it_comes(model: Path) -> None:
    async def talk(wire: Callable[[], Wire]) -> None:
        piece = chunk(b" " * 10_000)
        several = [await wire().send(head(None), piece, piece, piece) for _ in range(3)]
        fourth = await wire().send(head(None), piece)  # all that there is room for
        await several[0].send(piece)
        status, headers, _ = await several[0].answer()
        assert (status, headers[b"retry-after"]) == (503, b"1")
        await several[1].send(piece, b"0\r\n\r\n")  # in its place
        assert (await several[1].answer())[0] == 400
        await several[2].send(piece, piece)
        assert (await several[2].answer())[0] == 413
        await fourth.send(chunk(ROWS), b"0\r\n\r\n")
        assert (await fourth.answer())[0] == 200
        pair = [await wire().send(head(EACH)) for _ in range(2)]  # nothing of the former is left
        for each in pair:
            await each.send(b" " * EACH)
            assert (await each.answer())[0] == 400

    served(make_app(model, BOUNDS), talk)


def test_a_body_counts_until_it_is_answered(model: Path) -> None:
    async def talk(wire: Callable[[], Wire]) -> None:
        door = app.service.models.first.scorer.door
        door.clear()
        padded = ROWS + b" " * (EACH - len(ROWS))
        waiting = [await wire().send(head(EACH), padded) for _ in range(2)]
        refused = await wire().send(head(EACH), padded)
        assert (await refused.answer())[0] == 503
        door.set()
        for each in waiting:
            assert (await each.answer())[0] == 200
        assert (await (await refused.send(head(EACH), padded)).answer())[0] == 200

    app = make_app(model, BOUNDS, load=Slow)
    served(app, talk)


def test_a_body_that_is_too_large_may_be_sent_to_its_end(model: Path) -> None:
    async def talk(wire: Callable[[], Wire]) -> None:
        size = 20 << 20  # more than the system keeps for the two of them
        each = await wire().send(head(size), *[b" " * (size // 8)] * 8)
        assert (await each.answer())[0] == 413
        each = await each.send(head(None), *[chunk(b" " * (size // 8))] * 8, b"0\r\n\r\n")
        assert (await each.answer())[0] == 413
        assert (await (await each.send(head(len(ROWS)), ROWS)).answer())[0] == 200

    served(make_app(model, BOUNDS), talk)


def test_large_bodies_are_parsed_one_after_the_other_and_small_ones_at_once(model: Path) -> None:
    inside, most, parsed = [], [], []

    def parse(body: bytes, more: str) -> str:
        inside.append(more)
        most.append(len(inside))
        time.sleep(0.02)
        inside.remove(more)
        return f"{len(body)} {more} {threading.current_thread() is threading.main_thread()}"

    def refuse(_: bytes) -> None:
        thing = Bodies(1, 1, 1, 1.0)
        parsed.append(weakref.ref(thing))
        raise InputError(f"no thing of {type(thing)}")

    async def talk(_: object) -> None:
        service, large = app.service, b" " * 1_000_000
        found = await asyncio.gather(*(service.parse(parse, large, f"{i}") for i in range(5)))
        assert found == [f"1000000 {i} False" for i in range(5)]
        assert max(most) == 1
        assert await service.parse(parse, b" ", "x") == "1 x True"
        with pytest.raises(InputError, match="no thing") as refusal:
            await service.parse(refuse, large)
        assert refusal.value
        assert parsed[0]() is None  # it is not held until the refusal has been answered

    app = make_app(model)
    served(app, talk)


def test_a_client_that_goes_in_the_middle_is_no_failure_of_ours(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines: list = []

    async def talk(wire: Callable[[], Wire]) -> None:
        for length in (1000, None):
            await (await wire().send(head(length), b"5\r\nabcde")).close()
        while len(lines) < 2:
            await asyncio.sleep(0.01)

    served(make_app(model, Settings(access_log=lines.append)), talk)
    assert [line["status"] for line in lines] == [400, 400]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_there_must_be_room_for_one() -> None:
    with pytest.raises(InputError, match="room for less than one body"):
        Bodies(each=10, together=9, requests=1, timeout=1.0)
