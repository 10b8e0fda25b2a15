"""What routes work with: the models, the thread that runs them, the bounds, the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request

from recsys.errors import InputError
from recsys.serving.http.block import Rows
from recsys.serving.http.bodies import Bodies
from recsys.serving.http.control import UNLOADED, Control
from recsys.serving.http.metrics import Metrics
from recsys.serving.http.models import Models, Served, yield_to_others
from recsys.serving.http.queue import Limits, ModelThread, QueueFullError
from recsys.serving.protocol import HEAD_COLUMNS, ScorerLike
from recsys.serving.requests import check_probabilities

T = TypeVar("T")
_PARSE_IN_THREAD = 1 << 18  # a larger body would hold up the event loop for milliseconds


@dataclass(frozen=True)
class Settings:
    """Bounds of the service.

    Attributes:
        token: bearer token, or None.
        connections: most open connections of the process.
        head_timeout: seconds in which a request's head must come.
        max_body: most bytes of a body; more is a 413.
        max_bodies: most bytes of all bodies that have been announced or read and not answered yet; more is a 503.
        max_rows: most rows of a request; more is a 400.
        max_reading: most requests whose bodies are on their way.
        timeout: seconds after which a request that the model has not begun is dropped, where the client says nothing.
        read_timeout: seconds in which a body must have come.
        limits: of the queue.
        access_log: takes the lines of the access log, or None.
    """

    token: str | None = None
    connections: int = 512
    head_timeout: float = 10.0
    max_body: int = 8 << 20
    max_bodies: int = 64 << 20
    max_rows: int = 10_000
    max_reading: int = 256
    timeout: float = 1.0
    read_timeout: float = 30.0
    limits: Limits = field(default_factory=Limits)
    access_log: Callable[[Mapping[str, Any]], None] | None = None


class Service:
    """One process's models and what is allowed with them.

    Args:
        models: loaded and warm.
        settings: bounds.
        metrics: where it counts.
        control: where several worker processes agree on what is served.
    """

    def __init__(self, models: Models, settings: Settings, metrics: Metrics, control: Control | None = None) -> None:
        self.models, self.settings, self.metrics = models, settings, metrics
        self.bodies = Bodies(settings.max_body, settings.max_bodies, settings.max_reading, settings.read_timeout)
        self.at_end: list[Callable[[], Any]] = []
        """Called when all requests have been answered."""
        self.draining = False
        """Set when the process has been told to end: it is not ready any more, but answers what comes."""
        self._control, self._thread = control, ModelThread(settings.limits, metrics)
        self._loader = ThreadPoolExecutor(1, "loader", initializer=yield_to_others)
        self._parser = ThreadPoolExecutor(1, "parser")
        self._serving = False

    @property
    def ready(self) -> bool:
        """Requests are taken."""
        return self._serving and not self.draining and self.models.ready

    def start(self) -> None:
        """Take requests."""
        self._thread.start()
        self._serving = True
        if self._control is not None:
            self._control.follow(self.models)

    async def stop(self) -> None:
        """Take no more requests; those that wait are answered."""
        self._serving = False
        if self._control is not None:
            await asyncio.to_thread(self._control.stop)
        await asyncio.to_thread(self._thread.stop)
        for function in self.at_end:
            await asyncio.to_thread(function)
        for threads in (self._loader, self._parser):
            threads.shutdown(wait=False, cancel_futures=True)

    def check_room(self) -> None:
        """Refuse a request for the model before its body is read.

        Raises:
            QueueFullError: no room.
        """
        if not self._serving:
            raise QueueFullError("not ready")
        self._thread.check_room()

    async def body(self, request: Request) -> bytes:
        """The body of a request that is not read yet.

        Raises:
            QueueFullError: no room.
            HTTPException: see :meth:`Bodies.read`.
        """
        if not self._serving:
            raise QueueFullError("not ready")
        return await self.bodies.read(request)

    async def parse(self, function: Callable[..., T], body: bytes, *arguments: Any) -> T:
        """``function(body, *arguments)``, of a large body in a thread.

        There they go one after the other: under the interpreter's lock several would not end sooner, and JSON may take
        twenty times its own size until its values are found to be none that the service takes.
        """
        if len(body) <= _PARSE_IN_THREAD:
            return function(body, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._parser, _parsed, function, body, *arguments)

    async def score(self, served: Served, table: Rows, timeout: float) -> dict[str, np.ndarray]:
        """Output name -> float64 [n] probabilities; raises as :meth:`heads` does."""
        heads = await self.heads(served.scorer, table, timeout)
        return {HEAD_COLUMNS[head]: values for head, values in heads.items()}

    async def heads(self, scorer: ScorerLike, table: Rows, timeout: float) -> dict[str, np.ndarray]:
        """Head -> float64 [n] probabilities, batched with other requests' rows.

        Raises:
            InputError: rows that the model cannot take; and what :meth:`ModelThread.score` raises.
        """
        heads = await self._thread.score(scorer, table, timeout)
        check_probabilities(heads)
        return heads

    async def load(self, name: str, version: str | None) -> Served:
        """Serve a version (None: the latest) from now on, in every worker process; returns when they all do.

        Raises:
            UnknownModelError: no such model or version.
            InputError: it is not a complete model folder; what was served goes on being served.
        """
        try:
            served = await self._in_loader(self.models.load, name, version)
        except InputError as error:  # a client may know the file, not where the server keeps it
            raise InputError(error.message, file=None if error.file is None else Path(error.file).name,
                             column=error.column, row=error.row, got=error.got, expected=error.expected) from error
        await self._publish(name, served.version)
        return served

    async def unload(self, name: str) -> None:
        """Serve a model no more, in any worker process; raises as :meth:`load` does."""
        await self._in_loader(self.models.unload, name)
        await self._publish(name, UNLOADED)

    async def _publish(self, name: str, version: str) -> None:
        if self._control is not None and not await self._in_loader(self._control.publish, name, version):
            raise HTTPException(503, "not every worker process could do it; see the log", {"Retry-After": "1"})

    async def _in_loader(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader, function, *arguments)


def _parsed(function: Callable[..., T], *arguments: Any) -> T:
    try:
        return function(*arguments)
    except InputError as error:
        raise error.with_traceback(None) from None  # its frames would hold what was parsed until it is answered
