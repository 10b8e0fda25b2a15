"""``/v1/rank``, ``/v1/retrieve`` and ``/v1/feedback``: :class:`recsys.serving.ranking.Ranking` behind the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from recsys.config import RankingConfig
from recsys.errors import InputError
from recsys.serving.http import schemas
from recsys.serving.http.inference import TIMEOUT_SCHEMA
from recsys.serving.http.queue import QueueFullError
from recsys.serving.http.routes import Route, json_response, note, timeout_of
from recsys.serving.http.service import Service
from recsys.serving.protocol import ScorerLike
from recsys.serving.rank_requests import parse_feedback
from recsys.serving.ranking import Ranking
from recsys.serving.served_log import LogFull

T = TypeVar("T")
_THREADS = 4  # retrieval, the user store and prices wait or run outside of Python most of their time


def rank_routes(config: RankingConfig) -> Callable[[Service], Sequence[Route]]:
    """For ``make_app(more=...)``: the routes of a ranking configuration.

    Candidates and prices are made in threads of their own; the model scores them in its thread, batched with whatever
    else waits. The log is published when the service ends.

    Raises:
        InputError, Refused: as :class:`Ranking`, when the app is made.
    """
    return lambda service: _RankRoutes(config, service).routes()


class _RankRoutes:
    def __init__(self, config: RankingConfig, service: Service) -> None:
        self._service, self._inside = service, 0
        self._ranking = Ranking(config, self._scorer)
        self._threads = ThreadPoolExecutor(_THREADS, "ranking")
        service.models.checks.append(self._check)
        service.at_end.append(self._close)
        for name, counts in self._ranking.followed.items():
            service.metrics.follow(name, counts)

    def routes(self) -> list[Route]:
        headers = TIMEOUT_SCHEMA
        return [
            Route("POST", "/v1/rank", self.rank, "Which ads to show, at what price, with what propensity",
                  queued=True, body={"application/json": schemas.RANK_REQUEST}, answer=schemas.RANK_ANSWER,
                  errors=(404, 504), headers=headers),
            Route("POST", "/v1/retrieve", self.retrieve, "Candidates that may be shown, best first, not ranked",
                  queued=True, body={"application/json": schemas.RANK_REQUEST}, answer=schemas.RETRIEVE_ANSWER,
                  errors=(404,)),
            Route("POST", "/v1/feedback", self.feedback, "What came of impressions",
                  queued=True, body={"application/json": schemas.FEEDBACK_REQUEST}, answer=schemas.FEEDBACK_ANSWER)]

    async def rank(self, request: Request) -> Response:
        timeout = timeout_of(request, self._service.settings.timeout)
        asked = await self._service.parse(self._ranking.parse, await self._service.body(request))
        arm = self._ranking.arm_of(asked)
        scorer = self._scorer(arm.model)
        prepared = await self._in_thread(self._ranking.prepare, asked, arm, scorer)
        heads: Mapping[str, np.ndarray] = {}
        if len(prepared.rows):
            heads = await self._service.heads(scorer, prepared.table, timeout)
        decision = await self._in_thread(self._ranking.finish, prepared, scorer.model_id, heads)
        note(request, rows=prepared.table.num_rows, request_id=asked.request_id, arm=arm.arm_id)
        return json_response(decision.answer())

    async def retrieve(self, request: Request) -> Response:
        body = await self._service.body(request)
        asked = await self._service.parse(self._ranking.parse, body, schemas.MOST_RETRIEVED)
        return json_response(await self._in_thread(self._ranking.retrieve, asked))

    async def feedback(self, request: Request) -> Response:
        events = await self._service.parse(parse_feedback, await self._service.body(request))
        await self._in_thread(self._ranking.log_feedback, events)
        return json_response({"events": len(events)})

    def _scorer(self, name: str | None) -> ScorerLike:
        models = self._service.models
        if name is not None and name not in models.names:
            raise InputError("no such model in the service", file="ranking", column="model", got=name,
                             expected=", ".join(models.names))
        return (models.first if name is None else models.get(name)).scorer

    def _check(self, name: str, scorer: ScorerLike) -> None:
        """A version that could not rank is not loaded: every request would be refused."""
        if name in {arm.model or self._service.models.names[0] for arm in self._ranking.arms}:
            self._ranking.check(scorer)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._inside >= self._service.settings.limits.requests:
            raise QueueFullError("too many requests waiting")
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        except LogFull as error:
            raise QueueFullError(str(error)) from error
        finally:
            self._inside -= 1

    def _close(self) -> None:
        self._threads.shutdown()
        self._ranking.close()
