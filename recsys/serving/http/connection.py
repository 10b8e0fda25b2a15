"""uvicorn's connections, with bounds on what anybody may do before he is asked for a token.

uvicorn takes any number of connections and of pipelined requests, keeps headers, URL and trailers of any size, and
waits for ever for a head to come and for an answer to be taken.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson
from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from recsys.serving.http.routes import FULL

MOST_HEAD = 64 << 10
MOST_HEADERS = 128
MOST_PIPELINED = 32
_TAKE = 30.0  # seconds in which a client must take what it is sent
_LAST_LOOK = 0.05


class Connections:
    """The connections of a process; for uvicorn, what makes them.

    Where there are too many, the one that has waited longest for a request makes room, and those that never had one
    before those that did: whoever opens connections and says nothing on them only drives out himself. Where all have
    a request under way, what comes on a further one is a 503, unless it needs no token (health).

    Args:
        most: connections.
        head_timeout: seconds in which a request's head must have come, from when the connection was opened or, on one
            that was kept, from its first byte.
        closed: called with why a connection was closed that its client had left open: room, head, answer.
        refuse: called with a request's scope; the answer where its head is enough to refuse it, else None.

    Attributes:
        open: those that have not been told to go.
    """

    def __init__(self, most: int, head_timeout: float, closed: Callable[[str], None],
                 refuse: Callable[[MutableMapping[str, Any]], Response | None]) -> None:
        self.most, self.head_timeout, self.closed, self.refuse = most, head_timeout, closed, refuse
        self.open: set[Connection] = set()
        self._new: OrderedDict[Connection, None] = OrderedDict()
        self._kept: OrderedDict[Connection, None] = OrderedDict()

    def __call__(self, config: Config, server_state: ServerState, app_state: dict[str, Any],
                 _loop: AbstractEventLoop | None = None) -> Connection:
        """As uvicorn calls it."""
        return Connection(self, config, server_state, app_state, _loop)

    @property
    def too_many(self) -> bool:
        """There are more than there should be."""
        return len(self.open) > self.most

    def opened(self, connection: Connection) -> None:
        """It is there; another one goes for it where that is needed, and one is there that waits."""
        self.open.add(connection)
        if self.too_many and (waiting := self._new or self._kept):
            oldest, _ = waiting.popitem(last=False)
            self.open.remove(oldest)
            oldest.drop("room")
        self._new[connection] = None

    def works(self, connection: Connection) -> None:
        """It has a request from now on."""
        self._new.pop(connection, None)
        self._kept.pop(connection, None)

    def waits(self, connection: Connection) -> None:
        """It has none any more."""
        if connection in self.open:
            self._kept[connection] = None

    def lost(self, connection: Connection) -> None:
        """It is there no more."""
        self.open.discard(connection)
        self.works(connection)


class Connection(HttpToolsProtocol):
    """Ends a connection whose head is too large (more than :data:`MOST_HEAD` bytes, and what came with them in one read
    of the socket, or :data:`MOST_HEADERS` headers: a 400), or does not come in time (a 408, or nothing where nothing
    came), that sends ever more requests before it is answered, or that does not take its answers."""

    def __init__(self, among: Connections, config: Config, server_state: ServerState, app_state: dict[str, Any],
                 loop: AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, app_state, loop)
        self._among = among
        self._unused = 0  # bytes since a request began or ended, its headers ended, or a piece of its body came
        self._extra = False  # all others were at work when it came
        self._waits = True  # no request is under way
        self._begun = False  # a part of a head has come
        self._ended = False  # in what was read last, a request ended
        self._head: TimerHandle | None = None
        self._taking: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """asyncio's."""
        super().connection_made(transport)
        self._among.opened(self)
        self._extra = self._among.too_many
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        super().connection_lost(exc)
        self._among.lost(self)
        self._unset_keepalive_if_required()
        for timer in (self._head, self._taking):
            if timer is not None:
                timer.cancel()

    def drop(self, why: str) -> None:
        """Close it now, whatever it has not taken yet."""
        if not self.transport.is_closing():
            self._among.closed(why)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        self._unused += len(data)
        self._ended = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unused > MOST_HEAD:
            self.send_400_response("head too large")
        elif len(self.pipeline) > MOST_PIPELINED:
            self.transport.abort()
        elif self._waits and self._ended and not self._begun:  # a body that was not wanted has come, and no more
            self._keep()
        elif self._waits:  # also the rest of such a body
            self._await_head()

    def on_message_begin(self) -> None:
        """httptools'."""
        self._unused = 0
        self._begun = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools'."""
        if len(self.headers) >= MOST_HEADERS:
            raise ValueError("too many headers")  # ends the parser, and then send_400_response is called
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """httptools'."""
        self._unused = 0
        self._waits = self._begun = False
        self._among.works(self)
        self._forget_head()
        self._extra = self._extra and self._among.too_many
        if self._extra:
            self.scope[FULL] = True  # type: ignore[literal-required]
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """uvicorn's; a request that its head is enough to refuse gets no task.

        Of requests that come together only the first can be refused so, and nobody who does not take his answers: what
        bounds those are the pipeline's length and uvicorn's waiting for the socket.
        """
        if self.transport.is_closing():
            return
        refusal = None
        if not (self._ended or self.flow.write_paused):
            refusal = self._among.refuse(cycle.scope)  # type: ignore[arg-type]
        if refusal is None:
            super()._start_asgi_task(cycle, app)
            return
        headers = [*cycle.default_headers, *refusal.raw_headers]
        closes = not cycle.keep_alive or cycle.waiting_for_100_continue  # such a body may come or not
        if closes:
            headers.append((b"connection", b"close"))
        self.transport.write(b"".join([STATUS_LINE[refusal.status_code], *(b"%b: %b\r\n" % h for h in headers), b"\r\n",
                                       b"" if cycle.scope["method"] == "HEAD" else refusal.body]))
        cycle.response_started = cycle.response_complete = True
        if closes or "connection" in refusal.headers:
            self.transport.close()
        self.on_response_complete()

    def on_body(self, body: bytes) -> None:
        """httptools'."""
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools'."""
        self._unused = 0
        self._ended = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """uvicorn's."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_taking()
        elif not self.cycle.response_complete:  # the next of several that came at once
            return
        elif self._begun:
            self._await_head()
        self._waits = True
        self._among.waits(self)

    def pause_writing(self) -> None:
        """asyncio's."""
        super().pause_writing()
        self._await_taking()

    def resume_writing(self) -> None:
        """asyncio's."""
        super().resume_writing()
        if self._taking is not None and not self.transport.is_closing():
            self._taking.cancel()
            self._taking = None

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's; it would wait for ever for a client that has not taken its answer."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's; it would write into another request's answer."""
        if self.cycle is None or self.cycle.response_complete:
            self._end(400, msg)
        else:
            self.transport.abort()

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self._among.head_timeout, self._look_again)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _keep(self) -> None:
        """As uvicorn does behind an answer; it stops its clock when anything comes."""
        self._forget_head()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _look_again(self) -> None:
        """Where the loop was held up, the head may have come and only not been read: that is not the client's fault."""
        self._head = self.loop.call_later(_LAST_LOOK, self._without_head)

    def _without_head(self) -> None:
        self._head = None
        if self.transport.is_closing():
            return
        self._among.closed("head")
        if self._begun:
            self._end(408, "the head did not come")
        else:
            self.transport.close()
            self._await_taking()

    def _await_taking(self) -> None:
        if self._taking is None:
            self._taking = self.loop.call_later(_TAKE, self._not_taken)

    def _not_taken(self) -> None:
        self._among.closed("answer")
        self.transport.abort()

    def _end(self, status: int, text: str) -> None:
        body = orjson.dumps({"error": text})
        self.transport.write(STATUS_LINE[status] + b"content-type: application/json\r\ncontent-length: %d\r\n"
                             b"connection: close\r\n\r\n%b" % (len(body), body))
        self.transport.close()
        self._await_taking()
