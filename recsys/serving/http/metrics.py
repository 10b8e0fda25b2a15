"""Prometheus metrics of the service; with several worker processes, of all of them together."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client: the folder in which worker processes keep their numbers."""
_SECONDS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_ROWS = (1, 10, 50, 100, 250, 500, 1000, 2000, 5000, 10_000)


class Metrics:
    """What is counted. Labels are routes and models that the service knows, never what a client sent."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("recsys_requests", "Requests answered", ["route", "status"], registry=own)
        self.seconds = Histogram("recsys_request_seconds", "Time to answer", ["route"], registry=own, buckets=_SECONDS)
        self.rows = Counter("recsys_rows_scored", "Rows that the model was given", registry=own)
        self.waiting = Gauge("recsys_requests_waiting", "Requests waiting for the model or in it", registry=own,
                             multiprocess_mode="livesum")
        self.refused = Counter("recsys_requests_refused", "Requests that the queue had no room for", registry=own)
        self.expired = Counter("recsys_requests_expired", "Requests dropped after their deadline", registry=own)
        self.closed = Counter("recsys_connections_closed", "Connections that were closed though their client had left "
                              "them open: to make room, without a head, an answer not taken", ["why"], registry=own)
        self.loads = Counter("recsys_model_loads", "Models loaded or not", ["model", "outcome"], registry=own)
        self._events = Counter("recsys_events", "Counts of the ranking and its logs", ["of", "what"], registry=own)
        self._followed: list[tuple[str, Mapping[str, int], dict[str, int]]] = []
        self._following = threading.Lock()
        self._batch_rows = Histogram("recsys_batch_rows", "Rows of one call of the model", registry=own, buckets=_ROWS)
        self._model = Histogram("recsys_model_seconds", "Time of one call of the model", registry=own, buckets=_SECONDS)
        self._queue = Histogram("recsys_queue_seconds", "Time that a request waited for the model", registry=own,
                                buckets=_SECONDS)

    def batch(self, rows: int, seconds: float, waited: Iterable[float]) -> None:
        """Count one call of the model."""
        self.rows.inc(rows)
        self._batch_rows.observe(rows)
        self._model.observe(seconds)
        for value in waited:
            self._queue.observe(value)

    def follow(self, name: str, counts: Mapping[str, int]) -> None:
        """Show counts that another part keeps, as ``recsys_events_total{of, what}``."""
        self._followed.append((name, counts, {}))

    def _catch_up(self) -> None:
        with self._following:
            for name, counts, shown in self._followed:
                for what, value in list(counts.items()):
                    self._events.labels(name, what).inc(value - shown.get(what, 0))
                    shown[what] = value

    def page(self) -> bytes:
        """The page that Prometheus reads."""
        self._catch_up()
        if SHARED not in os.environ:
            return generate_latest(self._registry)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)
        return generate_latest(everyone)
