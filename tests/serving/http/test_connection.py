"""What a client may do before anybody has asked it for a token: real sockets, in one event loop."""

from __future__ import annotations

import asyncio
import time
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from recsys.serving.http import connection
from recsys.serving.http.connection import MOST_HEAD, MOST_HEADERS, MOST_PIPELINED
from recsys.serving.http.routes import FULL
from tests.serving.http.client import listening

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SOON, LATE = 0.3, 600.0  # seconds: where a test waits for a bound, and where it must not meet it on the slowest machine


async def _length(scope: dict, receive, send) -> None:
    """Answers with the length of the body; of /early at once, of /large with 8 MiB."""
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if message["type"] == "http.disconnect":
            return
    body = b"l" * (8 << 20) if scope["path"] == "/large" else str(size).encode()
    status = 503 if scope.get(FULL) else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def served(talk: Callable[..., Awaitable[None]], most: int = 512) -> Counter:
    """Run ``talk(connect, connections)`` against the app above; returns why connections were closed."""
    why: Counter = Counter()

    async def run() -> None:
        async with listening(_length, most, LATE, lambda w: why.update([w])) as (address, connections):
            async with asyncio.timeout(LATE):
                await talk(lambda: asyncio.open_connection(*address), connections)

    asyncio.run(run())
    return why


async def ask(reader: StreamReader, writer: StreamWriter, request: bytes = GET) -> bytes:
    """The head of the answer; its body is read, too."""
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    return head


async def drip(writer: StreamWriter, reader: StreamReader, piece: bytes) -> bytes:
    """Send the piece again and again until the other side has closed; returns what it said."""
    answer = asyncio.create_task(rest(reader))
    while not answer.done():
        writer.write(piece)
        await asyncio.sleep(SOON / 30)
    return await answer


async def rest(reader: StreamReader) -> bytes:
    """What comes until the other side closes."""
    found = b""
    try:
        while piece := await reader.read(1 << 16):
            found += piece
    except ConnectionError:
        pass
    return found


def talk(begin: bytes, piece: bytes = b"", most: int = 0) -> tuple[bytes, int]:
    """Send ``begin``, then ``piece`` until ``most`` bytes of it are sent or the other side has closed; returns what it
    said and how many bytes were sent."""
    found: list[tuple[bytes, int]] = []

    async def run(connect, _) -> None:
        reader, writer = await connect()
        sent = 0
        try:
            writer.write(begin)
            await writer.drain()
            while sent < most and not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
                await asyncio.sleep(0)
            answer = await reader.read(4096)
        except ConnectionError:
            answer = b""
        writer.close()
        found.append((answer, sent))

    served(run)
    return found[0]


@pytest.mark.parametrize(("begin", "piece"), [
    (HEAD, b"X-A: " + b"a" * 4000 + b"\r\n"), (HEAD + b"X-A: ", b"a" * 4000), (b"GET /", b"a" * 4000),
    (HEAD, b"a:b\r\n"), (CHUNKED, b"X-A: " + b"a" * 4000 + b"\r\n"), (CHUNKED + b"X-A: ", b"a" * 4000)],
    ids=["headers", "one header", "URL", "small headers", "trailers", "one trailer"])
def test_a_head_that_never_ends_is_not_kept(begin: bytes, piece: bytes) -> None:
    answer, sent = talk(begin, piece, 64 * MOST_HEAD)
    assert sent < 32 * MOST_HEAD
    assert answer == b"" or b"400 Bad Request" in answer


def test_a_head_of_many_headers_is_refused_and_one_of_as_many_as_is_usual_is_not() -> None:
    assert talk(HEAD + b"a:b\r\n" * (MOST_HEADERS + 1) + b"\r\n")[0].startswith(b"HTTP/1.1 400")
    assert talk(HEAD + b"Content-Length: 0\r\n" + b"a:b\r\n" * (MOST_HEADERS - 2) + b"\r\n")[0].startswith(
        b"HTTP/1.1 200")


def test_requests_with_large_bodies_and_usual_headers_are_answered() -> None:
    body = b"b" * (8 * MOST_HEAD)
    head = HEAD + b"X-A: " + b"a" * (MOST_HEAD // 2) + b"\r\n"
    answer, _ = talk(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n%d" % len(body))
    answer, _ = talk(CHUNKED + b"X-A: b\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n3")


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\nX-A: ", b"G", b"\r\n"])
def test_a_head_must_come_in_time_however_busily_it_comes(begin: bytes) -> None:
    async def slow(connect, connections) -> None:
        kept_reader, kept_writer = await connect()
        assert (await ask(kept_reader, kept_writer)).startswith(b"HTTP/1.1 200")
        connections.head_timeout = SOON
        reader, writer = await connect()
        writer.write(begin)
        answer = await drip(writer, reader, b"\r\n" if begin == b"\r\n" else b"a" if begin != b"G" else b"")
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
        # A connection that has had its answer is kept for longer; but its next head must come in time, too.
        connections.head_timeout = LATE
        assert (await ask(kept_reader, kept_writer)).startswith(b"HTTP/1.1 200")
        connections.head_timeout = SOON
        kept_writer.write(begin)
        answer = await drip(kept_writer, kept_reader, b"")
        assert answer.startswith(b"HTTP/1.1 408" if begin != b"\r\n" else b"")
        assert not connections.open

    assert served(slow) == {"head": 2}


def test_new_connections_that_say_nothing_are_closed() -> None:
    async def silent(connect, connections) -> None:
        connections.head_timeout = SOON
        reader, _ = await connect()
        assert await reader.read() == b""
        assert not connections.open

    assert served(silent) == {"head": 1}


def test_the_rest_of_a_body_that_was_not_wanted_must_come_in_time() -> None:
    async def slow(connect, connections) -> None:
        reader, writer = await connect()
        head = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        assert (await ask(reader, writer, head)).startswith(b"HTTP/1.1 200")
        connections.head_timeout = SOON
        assert await drip(writer, reader, b"a" * 1000) == b""
        assert not connections.open

    assert served(slow) == {"head": 1}


def test_a_connection_is_kept_once_a_body_that_was_not_wanted_has_come() -> None:
    async def talk(connect, connections) -> None:
        reader, writer = await connect()
        connections.head_timeout = SOON
        for begin in (b"a", b""):  # in pieces, and at once
            head = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
            assert (await ask(reader, writer, head)).startswith(b"HTTP/1.1 200")
            if begin:
                writer.write(begin)
                await asyncio.sleep(0.01)
            writer.write(b"bb"[len(begin):])
            await asyncio.sleep(3 * SOON)
        (kept,) = connections.open
        assert kept.timeout_keep_alive_task is not None  # but not for ever
        assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200")

    assert served(talk) == {}


def test_bodies_have_a_time_of_their_own() -> None:
    async def slow(connect, connections) -> None:
        reader, writer = await connect()
        assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200")
        connections.head_timeout = SOON
        writer.write(HEAD)
        await asyncio.sleep(0)
        writer.write(b"Content-Length: 5\r\n\r\n")
        await asyncio.sleep(3 * SOON)
        assert (await ask(reader, writer, b"abcde")).startswith(b"HTTP/1.1 200")

    assert served(slow) == {}


def test_a_loop_that_was_held_up_finds_what_came_meanwhile() -> None:
    async def held(connect, connections) -> None:
        connections.head_timeout = SOON
        reader, writer = await connect()
        await asyncio.sleep(0.01)  # the server has seen it
        writer.write(GET)
        time.sleep(2 * SOON)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")

    assert served(held) == {}


def test_who_says_nothing_on_many_connections_drives_out_himself() -> None:
    async def crowd(connect, connections) -> None:
        kept = [await connect() for _ in range(3)]
        for pair in kept:
            assert (await ask(*pair)).startswith(b"HTTP/1.1 200")
        silent = []
        for i in range(200):
            silent.append(await connect())
            if i % 20 == 0:
                assert (await ask(*await connect())).startswith(b"HTTP/1.1 200")  # somebody new
        assert len(connections.open) <= 9
        assert await silent[0][0].read() == b""
        for pair in kept:
            assert (await ask(*pair)).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.01)
        assert len(connections.open) <= 8

    assert served(crowd, most=8)["room"] > 190


def test_where_all_are_at_work_a_further_one_is_told_so() -> None:
    async def crowd(connect, connections) -> None:
        busy = [await connect() for _ in range(2)]
        for _, writer in busy:
            writer.write(HEAD + b"Content-Length: 3\r\n\r\na")
        await asyncio.sleep(0.05)
        for _ in range(10):  # whoever comes later drives out the one that was told so, or that says nothing
            further = await connect()
            assert (await ask(*further)).startswith(b"HTTP/1.1 503")
            await connect()
            assert len(connections.open) <= 4
        for pair in busy:
            assert (await ask(*pair, b"bc")).startswith(b"HTTP/1.1 200")
        assert (await ask(*await connect())).startswith(b"HTTP/1.1 200")

    served(crowd, most=2)


def test_requests_may_come_together_but_not_by_the_thousands() -> None:
    async def several(connect, connections) -> None:
        reader, writer = await connect()
        writer.write(GET * MOST_PIPELINED)
        for _ in range(MOST_PIPELINED):
            assert (await ask(reader, writer, b"")).startswith(b"HTTP/1.1 200")
        assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200")
        writer.write(GET * 5000)
        answers = await rest(reader)
        assert answers.count(b"HTTP/1.1 200") <= 1
        assert not connections.open

    served(several)


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_who_does_not_take_his_answer_is_not_waited_for(close: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_TAKE", SOON)

    async def deaf(connect, connections) -> None:
        reader, writer = await connect()
        writer.transport.pause_reading()
        writer.write(b"GET /large HTTP/1.1\r\n" + close + b"\r\n")
        await writer.drain()
        while connections.open:
            await asyncio.sleep(0.01)
        writer.transport.resume_reading()
        assert len(await rest(reader)) < 8 << 20

    assert served(deaf) == {"answer": 1}


def test_answers_do_not_mix_with_what_is_said_about_noise() -> None:
    async def noise(connect, _) -> None:
        reader, writer = await connect()
        writer.write(HEAD + b"Content-Length: 3\r\n\r\nabc" + b"noise\r\n\r\n")
        assert await rest(reader) == b""  # a 400 would look like the answer to the first request
        reader, writer = await connect()
        writer.write(b"noise\r\n\r\n")
        answer = await rest(reader)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.endswith(b'{"error":"Invalid HTTP request received."}')

    served(noise)
