"""An open-loop load generator: requests leave when their time has come, whether or not earlier ones are answered.

A closed loop waits for a slow server and so hides how slow it is (coordinated omission); here a latency counts from the
moment at which a request was due. It spins, so it needs a core of its own. HTTP/1.1 with keep-alive, as many
connections as it takes.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import uvloop


@dataclass
class Load:
    """What came of a run.

    Attributes:
        sent: seconds at which each request was due.
        status: what it was answered with; 0: the connection failed.
        seconds: how long that took.
        elapsed: of the whole run.
    """

    sent: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0

    def summary(self) -> dict[str, object]:
        """Counts by status, answers a second, and percentiles in milliseconds of the 200s and of the 503s."""
        status, seconds = np.array(self.status), np.array(self.seconds) * 1000
        found: dict[str, object] = {"requests": len(status), "statuses": {str(k): n for k, n in sorted(
            Counter(self.status).items())}, "answered_per_second": float((status == 200).sum() / self.elapsed)}
        for code in (200, 503):
            if (status == code).any():
                cuts = np.percentile(seconds[status == code], (50, 90, 99, 100))
                found[f"ms_{code}"] = dict(zip(("p50", "p90", "p99", "max"), cuts.round(2).tolist(), strict=True))
        return found


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, pool: _Pool) -> None:
        self._pool, self._data = pool, bytearray()
        self.due, self.transport = 0.0, None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._data[:end]).lower()
        at = head.index(b"content-length:") + 15
        size = int(head[at : head.find(b"\r\n", at) if b"\r\n" in head[at:] else None])
        if len(self._data) >= end + 4 + size:
            self._data.clear()
            self._pool.done(self, int(head[9:12]), b"connection: close" in head)

    def connection_lost(self, _: Exception | None) -> None:
        self._pool.lost(self)


class _Pool:
    def __init__(self, host: str, port: int, load: Load) -> None:
        self._address, self._load = (host, port), load
        self._free: list[_Connection] = []
        self._busy: set[_Connection] = set()

    async def open(self, n: int) -> None:
        """Connections before the first request, so that none waits for one."""
        loop = asyncio.get_running_loop()
        self._free += [(await loop.create_connection(lambda: _Connection(self), *self._address))[1] for _ in range(n)]

    async def send(self, request: bytes, due: float) -> None:
        try:
            if not self._free:
                await self.open(1)
            connection = self._free.pop()
        except OSError:
            self._note(due, 0)
            return
        self._busy.add(connection)
        connection.send(request, due)

    def done(self, connection: _Connection, status: int, closes: bool) -> None:
        self._note(connection.due, status)
        self._busy.discard(connection)
        if closes:
            connection.transport.close()
        else:
            self._free.append(connection)

    def lost(self, connection: _Connection) -> None:
        if connection in self._busy:
            self._busy.discard(connection)
            self._note(connection.due, 0)
        if connection in self._free:
            self._free.remove(connection)

    @property
    def waiting(self) -> int:
        return len(self._busy)

    def close(self) -> None:
        for connection in self._free:
            connection.transport.close()

    def _note(self, due: float, status: int) -> None:
        self._load.sent.append(due)
        self._load.status.append(status)
        self._load.seconds.append(time.perf_counter() - due)


def run(host: str, port: int, requests: Sequence[bytes], rate: float, seconds: float, poisson: bool = False,
        seed: int = 0, connections: int = 16) -> Load:
    """Send ``rate`` requests a second, evenly or as a Poisson process, for so many seconds."""
    rng, n = np.random.default_rng(seed), int(rate * seconds)
    gaps = rng.exponential(1 / rate, n) if poisson else np.full(n, 1 / rate)
    due = np.cumsum(gaps)

    async def all_of_them() -> Load:
        load = Load()
        pool = _Pool(host, port, load)
        await pool.open(connections)
        gc.collect()
        gc.disable()  # its pauses would be taken for the server's
        began, tasks = time.perf_counter(), set()
        for i, at in enumerate((began + due).tolist()):
            while time.perf_counter() < at:
                await asyncio.sleep(0)
            task = asyncio.ensure_future(pool.send(requests[i % len(requests)], at))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        until = time.perf_counter() + 30
        while (pool.waiting or tasks) and time.perf_counter() < until:
            await asyncio.sleep(0)
        load.elapsed = time.perf_counter() - began
        gc.enable()
        pool.close()
        return load

    return uvloop.run(all_of_them())


def closed(host: str, port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """So many clients that each send the next request when the last is answered: what the server can do at most."""
    async def all_of_them() -> Load:
        load = Load()
        pool = _Pool(host, port, load)
        await pool.open(clients)
        began, sent = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            while pool.waiting < clients:
                await pool.send(requests[sent % len(requests)], time.perf_counter())
                sent += 1
            await asyncio.sleep(0)
        while pool.waiting:
            await asyncio.sleep(0)
        load.elapsed = time.perf_counter() - began
        pool.close()
        return load

    return uvloop.run(all_of_them())
