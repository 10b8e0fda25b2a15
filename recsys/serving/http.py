"""The scoring service: health, metadata, metrics and one scoring route.

    serve("work/model", port=8000, token="secret")
    curl -H 'Authorization: Bearer secret' -d '{"rows": [{"age": 31, "ad_id": "a7"}]}' localhost:8000/v1/score

Health routes follow the Open Inference Protocol v2; every error body is ``{"error": "..."}``. The
model runs in one thread of its own, so that a long request does not hold up the health routes.
"""

from __future__ import annotations

import asyncio
import hmac
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from recsys import __version__
from recsys.errors import InputError
from recsys.log import log
from recsys.serving.protocol import ScorerLike, load_scorer, score_rows
from recsys.serving.requests import format_scores, parse_rows, warm_up_table

MAX_BODY = 8 << 20
MAX_ROWS = 10_000
MAX_WAITING = 64
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SCHEMA: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {
        "type": "object", "required": ["rows"], "properties": {"rows": {
            "type": "array", "minItems": 1, "items": {
                "type": "object", "description": "every input column of the model; null for a missing value"}}}}}}},
    "responses": {"200": {"description": "scores in the order of the rows", "content": {"application/json": {"schema": {
        "type": "object", "properties": {"model_id": {"type": "string"}, "scores": {"type": "array", "items": {
            "type": "object", "additionalProperties": {"type": "number"}}}}}}}}}
        | {code: {"description": text} for code, text in (
            ("400", "malformed request, named"), ("401", "no or wrong token"), ("413", "body too large"),
            ("503", "not ready, or too many requests waiting"))},
}


class _Metrics:
    """Prometheus metrics of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("recsys_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self.seconds = Histogram("recsys_score_seconds", "Time to answer /v1/score", registry=self.registry,
                                 buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5))
        self.rows = Counter("recsys_rows_scored", "Rows scored", registry=self.registry)
        self.waiting = Gauge("recsys_requests_waiting", "Requests waiting for the model", registry=self.registry)


class _Service:
    """The model, its thread, and whether it takes requests."""

    def __init__(self, scorer: ScorerLike, max_rows: int, max_waiting: int) -> None:
        self.scorer, self.metrics = scorer, _Metrics()
        self._max_rows, self._max_waiting, self._waiting = max_rows, max_waiting, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.ready = False

    async def start(self) -> None:
        """Run the model once, then be ready."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self.scorer.score, warm_up_table(self.scorer.columns))
        self.ready = True

    async def stop(self) -> None:
        """Take no more requests; those that wait are answered."""
        self.ready = False
        await asyncio.to_thread(self._thread.shutdown, True)

    async def score(self, body: bytes) -> bytes:
        """Answer one request body."""
        if not self.ready or self._waiting >= self._max_waiting:
            raise HTTPException(503, "too many requests waiting" if self.ready else "not ready", {"Retry-After": "1"})
        self._waiting += 1
        self.metrics.waiting.set(self._waiting)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, body)
        finally:
            self._waiting -= 1
            self.metrics.waiting.set(self._waiting)

    def _answer(self, body: bytes) -> bytes:
        table = parse_rows(body, self.scorer.columns, self._max_rows)
        answer = format_scores(score_rows(self.scorer, table), self.scorer.model_id)
        self.metrics.rows.inc(table.num_rows)
        return answer


def make_app(model_dir: str | Path, token: str | None = None, *, device: str = "auto", max_body: int = MAX_BODY,
             max_rows: int = MAX_ROWS, max_waiting: int = MAX_WAITING, scorer: ScorerLike | None = None) -> FastAPI:
    """The ASGI app. The model is loaded here and warmed up when the app starts; only then is it ready.

    Args:
        model_dir: model folder (``recsys train``).
        token: if given, all routes but the health routes and the OpenAPI page ask for ``Authorization: Bearer TOKEN``.
        device: auto | cpu | cuda.
        max_body: most bytes of a request body; more is a 413.
        max_rows: most rows of a request; more is a 400.
        max_waiting: most requests waiting for the model; the next one is a 503 with Retry-After.
        scorer: the loaded model of that folder, where the caller has it already.

    Raises:
        InputError: not a model folder, or a damaged one.
    """
    service = _Service(load_scorer(model_dir, device) if scorer is None else scorer, max_rows, max_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="recsys scoring", version=__version__, lifespan=lifespan)
    _add_errors(app)
    _add_access(app, service, token)

    @app.get("/v2/health/live", summary="The process answers")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", summary="The model is warm and takes requests")
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/v2", summary="What this server is")
    async def metadata() -> Response:
        model = {"id": service.scorer.model_id, "columns": service.scorer.columns, "heads": list(service.scorer.heads)}
        return JSONResponse({"name": "recsys", "version": __version__, "extensions": [], "model": model})

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/score", summary="Score rows of features", openapi_extra=_SCHEMA)
    async def score(request: Request) -> Response:
        with service.metrics.seconds.time():
            answer = await service.score(await _read_body(request, max_body))
        return Response(answer, media_type="application/json")

    return app


async def _read_body(request: Request, most: int) -> bytes:
    """The body, never more than ``most`` bytes of it in memory, whatever its Content-Length says."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise HTTPException(413, f"body larger than {most} bytes", {"Connection": "close"})
    return bytes(body)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:  # starlette logs the traceback
        return JSONResponse({"error": "internal error"}, 500)


def _add_access(app: FastAPI, service: _Service, token: str | None) -> None:
    """Check the token and count answers, around every route."""
    open_routes = {"/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"}
    wanted = None if token is None else f"Bearer {token}".encode()

    @app.middleware("http")
    async def access(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.url.path
        given = request.headers.get("authorization", "").encode()
        if wanted is not None and path not in open_routes and not hmac.compare_digest(given, wanted):
            headers = {"WWW-Authenticate": "Bearer"}
            response: Response = JSONResponse({"error": "no or wrong token"}, 401, headers)
        else:
            try:
                response = await call_next(request)
            except Exception:
                service.metrics.requests.labels(_route(request), 500).inc()
                raise
        service.metrics.requests.labels(_route(request), response.status_code).inc()
        return response


def _route(request: Request) -> str:
    """The route's template, not the path: a client must not be able to make up label values."""
    return str(getattr(request.scope.get("route"), "path", "other"))


def serve(model_dir: str | Path, host: str = "127.0.0.1", port: int = 8000, token: str | None = None,
          device: str = "auto") -> None:
    """Serve until SIGTERM or SIGINT; then no new connection is taken, open requests are answered, and it returns.

    Raises:
        InputError: the model cannot be loaded, or the address is open to others and there is no token.
    """
    import uvicorn

    if host not in _LOOPBACK and not token:
        raise InputError("an address open to others needs a token", file="--token", got=host,
                         expected="a token (--token or RECSYS_TOKEN), or --host 127.0.0.1")
    app = make_app(model_dir, token, device=device)
    log.info("serving %s on http://%s:%d (API: /docs)", model_dir, host, port)
    # uvicorn raises the signal again after it has drained: then the process ends well.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
    finally:
        signal.signal(signal.SIGTERM, previous)
