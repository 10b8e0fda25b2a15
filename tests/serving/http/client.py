"""Synchronous requests to an app in this process, started as a server would start it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import uvicorn
from uvicorn.server import ServerState

from recsys.serving import load_scorer
from recsys.serving.http import App
from recsys.serving.http.connection import Connections
from recsys.serving.http.server import _refusing
from tests.serving.conftest import make_impressions

COLUMNS = ["user_id", "ad_id", "advertiser_id", "topic", "age", "history"]


def some_rows(n: int, seed: int = 11) -> list[dict]:
    return make_impressions(n, seed).select(COLUMNS).to_pylist()


class Client:
    def __init__(self, app: App) -> None:
        self.app, self.loop = app, asyncio.new_event_loop()
        self._lifespan = app.router.lifespan_context(app)

    def __enter__(self) -> Client:
        self.loop.run_until_complete(self._lifespan.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
        self.loop.close()

    async def send(self, method: str, url: str, **options) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, url, **options)

    def all(self, *requests: tuple) -> list[httpx.Response]:
        async def send() -> list[httpx.Response]:
            return list(await asyncio.gather(*(self.send(m, u, **k) for m, u, k in requests)))

        return self.loop.run_until_complete(send())

    def get(self, url: str, **options) -> httpx.Response:
        return self.all(("GET", url, options))[0]

    def post(self, url: str, **options) -> httpx.Response:
        return self.all(("POST", url, options))[0]


@asynccontextmanager
async def listening(app: Any, most: int = 512, head_timeout: float = 10.0, closed: Callable[[str], None] = str
                    ) -> AsyncIterator[tuple[tuple[str, int], Connections]]:
    """The app behind a real socket: its address and its connections."""
    config = uvicorn.Config(app, lifespan="off", access_log=False, log_level="critical", timeout_keep_alive=3600)
    refuse = _refusing(app) if isinstance(app, App) else lambda _: None
    connections, state = Connections(most, head_timeout, closed, refuse), ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: connections(config, state, {}), "127.0.0.1", 0,
                                                            backlog=2048)
    try:
        yield server.sockets[0].getsockname(), connections
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()


class Slow:
    """The real model behind a door that the test opens."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self._scorer, self.door, self.calls = load_scorer(folder, device), threading.Event(), []
        self.columns, self.heads, self.model_id = self._scorer.columns, self._scorer.heads, self._scorer.model_id
        self.kinds = self._scorer.kinds
        self.door.set()

    def score(self, table: pa.Table) -> dict[str, np.ndarray]:
        self.door.wait(20)
        self.calls.append(table.num_rows)
        if "explode" in table["topic"].to_pylist():
            raise RuntimeError("private detail")
        return self._scorer.score(table)
