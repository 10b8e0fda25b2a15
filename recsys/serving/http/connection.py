"""uvicorn's connection with a bound on what comes before and after a body.

uvicorn keeps headers, URL and trailers of any size in memory, and does so before anybody could ask for a token.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 64 << 10


class Connection(HttpToolsProtocol):
    """Closes a connection whose URL, headers or trailers go on for more than :data:`MOST_HEAD` bytes (and what came
    with them in one read of the socket): a 400 where no answer is under way."""

    _unused = 0
    """Bytes since the parser last began or ended a request, ended its headers, or found a piece of its body."""

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        self._unused += len(data)
        super().data_received(data)
        if self._unused > MOST_HEAD and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.send_400_response("Headers too large.")
            else:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """httptools'."""
        self._unused = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """httptools'."""
        self._unused = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """httptools'."""
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools'."""
        self._unused = 0
        super().on_message_complete()
