"""Bodies of requests, bounded one by one and all together."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from recsys.errors import InputError
from recsys.serving.http.queue import QueueFullError

_HELD = "recsys.held"


class Bodies:
    """Reads bodies; what a request has announced or sent counts until it is answered.

    Args:
        each: most bytes of one.
        together: most bytes of all.
        requests: most that are on their way.
        timeout: seconds in which one must have come.

    Raises:
        InputError: together they may not even be as large as one.
    """

    def __init__(self, each: int, together: int, requests: int, timeout: float) -> None:
        if together < each:
            raise InputError("room for less than one body", file="--body-memory", got=together,
                             expected=f"at least {each} bytes")
        self._each, self._together, self._requests, self._timeout = each, together, requests, timeout
        self._held = self._reading = 0

    async def read(self, request: Request) -> bytes:
        """The body, never more of it in memory than is allowed, whatever its Content-Length says.

        Raises:
            QueueFullError: there is no room for it.
            HTTPException: 413 too large, 415 compressed, 408 it does not come, 400 the client has gone.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "compressed bodies are not taken")
        if self._reading >= self._requests:
            raise QueueFullError("too many requests being read")
        text = request.headers.get("content-length", "")
        announced = int(text[:20]) if text.isascii() and text.isdigit() else 0
        self._hold(request.scope, announced)
        self._reading += 1
        try:
            async with asyncio.timeout(self._timeout):
                return await self._pieces(request, announced)
        except TimeoutError:
            raise HTTPException(408, "the body did not come", {"Connection": "close"}) from None
        except ClientDisconnect:
            raise HTTPException(400, "the body did not end") from None
        finally:
            self._reading -= 1

    def release(self, scope: Scope) -> None:
        """The request has been answered."""
        self._held -= scope.pop(_HELD, 0)

    async def _pieces(self, request: Request, announced: int) -> bytes:
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > announced:  # in chunks, of which nobody knows how many there will be
                self._hold(request.scope, size)
            pieces.append(piece)
        return b"".join(pieces)

    def _hold(self, scope: Scope, size: int) -> None:
        """Count the request with so many bytes from now on."""
        if size > self._each:
            raise HTTPException(413, f"body larger than {self._each} bytes")
        more = size - scope.get(_HELD, 0)
        if self._held + more > self._together:
            raise QueueFullError("too many bytes of requests in memory")
        self._held += more
        scope[_HELD] = size
