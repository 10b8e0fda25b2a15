"""One thread that runs the model, and the bounded queue before it.

Requests that wait together are scored together. The queue refuses what it cannot hold, and drops what nobody waits for
any more before anything is computed for it.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recsys.serving.http.block import Rows, alike, joined, scored
from recsys.serving.http.metrics import Metrics
from recsys.serving.protocol import ScorerLike


class QueueFullError(Exception):
    """No room, or the service is ending; ``retry_after`` is in whole seconds."""

    def __init__(self, reason: str, retry_after: int = 1) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class DeadlineError(Exception):
    """The request's time was over before the model got to it."""


@dataclass(frozen=True)
class Limits:
    """How much waits, and how much is scored at once.

    Attributes:
        requests: most requests that wait or are in the model.
        rows: most rows of them together.
        delay: while the first in the queue has waited for more seconds than this, nobody else comes in.
        batch_rows: most rows of one call of the model (a longer request is one call of its own).
        fill_rows: a batch of at least so many rows does not wait for more.
        max_wait: seconds that a smaller one waits.
    """

    requests: int = 64
    rows: int = 50_000
    delay: float = 0.1
    batch_rows: int = 2048
    fill_rows: int = 256
    max_wait: float = 0.001


@dataclass(eq=False)
class _Job:
    """What waits: rows for a scorer."""

    scorer: ScorerLike
    table: Rows
    deadline: float
    future: asyncio.Future[dict[str, np.ndarray]]
    entered: float = field(default_factory=time.monotonic)

    @property
    def rows(self) -> int:
        return self.table.num_rows

    def joins(self, other: _Job) -> bool:
        """Both can be one call of the model."""
        return self.scorer is other.scorer and alike(self.table, other.table)


class ModelThread:
    """Runs the models of a process, one call at a time.

    Args:
        limits: bounds.
        metrics: where waiting, dropped work and seconds are counted.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self._metrics = limits, metrics
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._requests = self._rows = 0  # of the jobs that wait and of those in the model
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Take requests."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more; what waits is answered first."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def check_room(self, rows: int = 1) -> None:
        """Refuse before the work of reading a request is done.

        Raises:
            QueueFullError: there is no room for so many rows.
        """
        if self._ending:
            raise QueueFullError("the service is ending")
        with self._changed:
            full = self._requests >= self.limits.requests or (
                self._requests > 0 and self._rows + rows > self.limits.rows)
            waited = time.monotonic() - self._jobs[0].entered if self._jobs else 0.0
        if full or waited > self.limits.delay:
            self._metrics.refused.inc()
            raise QueueFullError("too many requests waiting", max(1, math.ceil(waited)))

    async def score(self, scorer: ScorerLike, table: Rows, timeout: float) -> dict[str, np.ndarray]:
        """Head -> float64 [n], rows scored together with those of other requests.

        Raises:
            QueueFullError: no room.
            DeadlineError: not begun within ``timeout`` seconds.
            InputError: rows that the model cannot take.
        """
        self.check_room(table.num_rows)
        future: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._requests += 1
            self._rows += table.num_rows
            self._jobs.append(_Job(scorer, table, time.monotonic() + timeout, future))
            self._changed.notify()
        self._metrics.waiting.set(self._requests)
        return await future

    def _run(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            results = self._compute(batch)
            rows, seconds = sum(j.rows for j in batch), time.monotonic() - began
            self._metrics.batch(rows, seconds, [began - j.entered for j in batch])
            self._leave(batch, results)
            del batch, results  # the last request's rows must not be held while the thread waits

    def _next(self) -> list[_Job]:
        """The jobs of the next call; empty when it is time to end."""
        with self._changed:
            while True:
                while not self._jobs and not self._ending:
                    self._changed.wait()
                if not self._jobs:
                    return []
                first = self._jobs.popleft()
                if not self._dropped(first):
                    return self._joined(first)

    def _joined(self, first: _Job) -> list[_Job]:
        batch, rows, until = [first], first.rows, time.monotonic() + self.limits.max_wait
        while rows < self.limits.batch_rows:
            if self._jobs:
                job = self._jobs[0]
                if not job.joins(first) or rows + job.rows > self.limits.batch_rows:
                    break
                self._jobs.popleft()
                if not self._dropped(job):
                    batch.append(job)
                    rows += job.rows
            elif rows >= self.limits.fill_rows or self._ending or (left := until - time.monotonic()) <= 0:
                break
            else:
                self._changed.wait(left)
        return batch

    def _dropped(self, job: _Job) -> bool:
        if job.future.cancelled():
            self._leave([job], [None])
        elif time.monotonic() > job.deadline:
            self._metrics.expired.inc()
            self._leave([job], [DeadlineError("deadline exceeded")])
        else:
            return False
        return True

    def _leave(self, jobs: list[_Job], results: list[Any]) -> None:
        """Hand the results to the event loop, all of a call's at once."""
        with self._changed:
            self._requests -= len(jobs)
            self._rows -= sum(j.rows for j in jobs)
        self._metrics.waiting.set(self._requests)
        try:
            jobs[0].future.get_loop().call_soon_threadsafe(_resolve, [(j.future, r) for j, r
                                                                      in zip(jobs, results, strict=True)])
        except RuntimeError:  # the loop has been closed: nobody waits
            return

    def _compute(self, jobs: list[_Job]) -> list[Any]:
        """A result or an exception for each."""
        try:
            whole = scored(jobs[0].scorer, joined([j.table for j in jobs]))
        except Exception as error:
            # One request's rows must not cost its neighbours' answers.
            return [error] if len(jobs) == 1 else [r for j in jobs for r in self._compute([j])]
        ends = np.cumsum([j.rows for j in jobs])
        return [{head: values[end - j.rows : end] for head, values in whole.items()}
                for j, end in zip(jobs, ends, strict=True)]


def _resolve(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in results:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
