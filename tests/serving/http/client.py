"""Synchronous requests to an app in this process, started as a server would start it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa

from recsys.serving import load_scorer
from recsys.serving.http import App
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
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, url, **options)

    def all(self, *requests: tuple) -> list[httpx.Response]:
        async def send() -> list[httpx.Response]:
            return list(await asyncio.gather(*(self.send(m, u, **k) for m, u, k in requests)))

        return self.loop.run_until_complete(send())

    def get(self, url: str, **options) -> httpx.Response:
        return self.all(("GET", url, options))[0]

    def post(self, url: str, **options) -> httpx.Response:
        return self.all(("POST", url, options))[0]


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
