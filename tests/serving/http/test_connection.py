"""What a client may send before anybody has asked it for a token."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from recsys.serving.http.connection import MOST_HEAD, Connection

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"


async def _length(scope: dict, receive, send) -> None:
    """Answers with the length of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if message["type"] == "http.disconnect":
            return
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def talk(begin: bytes, piece: bytes = b"", most: int = 0) -> tuple[bytes, int]:
    """Send ``begin``, then ``piece`` until ``most`` bytes of it are sent or the other side has closed; returns what it
    said and how many bytes were sent."""
    async def run() -> tuple[bytes, int]:
        config = uvicorn.Config(_length, lifespan="off", access_log=False)
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(config, ServerState(), {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        sent = 0
        try:
            writer.write(begin)
            await writer.drain()
            while sent < most and not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
                await asyncio.sleep(0)
            async with asyncio.timeout(20):
                answer = await reader.read(4096)
        except ConnectionError:
            answer = b""
        writer.close()
        server.close()
        return answer, sent

    return asyncio.run(run())


@pytest.mark.parametrize(("begin", "piece"), [
    (HEAD, b"X-A: " + b"a" * 4000 + b"\r\n"), (HEAD + b"X-A: ", b"a" * 4000), (b"GET /", b"a" * 4000),
    (CHUNKED, b"X-A: " + b"a" * 4000 + b"\r\n"), (CHUNKED + b"X-A: ", b"a" * 4000)],
    ids=["headers", "one header", "URL", "trailers", "one trailer"])
def test_a_head_that_never_ends_is_not_kept(begin: bytes, piece: bytes) -> None:
    answer, sent = talk(begin, piece, 64 * MOST_HEAD)
    assert sent < 32 * MOST_HEAD
    assert answer == b"" or b"400 Bad Request" in answer


def test_requests_with_large_bodies_and_usual_headers_are_answered() -> None:
    body = b"b" * (8 * MOST_HEAD)
    head = HEAD + b"X-A: " + b"a" * (MOST_HEAD // 2) + b"\r\n"
    answer, _ = talk(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n%d" % len(body))
    answer, _ = talk(CHUNKED + b"X-A: b\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n3")
