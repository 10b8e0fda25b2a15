"""Routes of the Open Inference Protocol v2 with the model repository extension, /v1/score, and /metrics."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from recsys import __version__
from recsys.errors import InputError
from recsys.serving.http import schemas, tensors
from recsys.serving.http.routes import Route, json_response, note, timeout_of
from recsys.serving.http.service import Service
from recsys.serving.requests import format_scores, parse_rows

TIMEOUT_SCHEMA = {"Timeout-Ms": {"type": "integer", "minimum": 1, "maximum": 3_600_000}}
_BINARY = {"Inference-Header-Content-Length": {"type": "integer", "minimum": 1}}
_EXTENSIONS = ["binary_tensor_data", "model_repository", "model_repository(unload_dependents)"]


def inference_routes(service: Service) -> list[Route]:
    """The service's own routes; the hot one first, since they are tried in order."""
    models, settings = service.models, service.settings

    async def infer(request: Request) -> Response:
        served = models.get(request.path_params["model"], request.path_params.get("version"))
        timeout = timeout_of(request, settings.timeout)
        body = await service.body(request)
        asked = await service.parse(tensors.decode, body, request.headers.get(tensors.HEADER), served.columns,
                                    served.lists, tuple(served.outputs), settings.max_rows, served.block)
        note(request, model=served.name, version=served.version, rows=asked.rows.num_rows)
        scores = await service.score(served, asked.rows, asked.timeout or timeout)
        facts = {"model_id": served.scorer.model_id}
        answer, length = tensors.encode(asked, served.name, served.version, facts, scores)
        if length is None:
            return Response(answer, media_type="application/json")
        return Response(answer, headers={tensors.HEADER: str(length)}, media_type="application/octet-stream")

    async def score(request: Request) -> Response:
        served, timeout = models.first, timeout_of(request, settings.timeout)
        table = await service.parse(parse_rows, await service.body(request), served.columns, settings.max_rows)
        note(request, model=served.name, version=served.version, rows=table.num_rows)
        answer = format_scores(await service.score(served, table, timeout), served.scorer.model_id)
        return Response(answer, media_type="application/json")

    async def live(_: Request) -> Response:
        return json_response({"live": True})

    async def ready(_: Request) -> Response:
        return json_response({"ready": service.ready}, 200 if service.ready else 503)

    async def server(_: Request) -> Response:
        return json_response({"name": "recsys", "version": __version__, "extensions": _EXTENSIONS,
                              "models": models.names})

    async def model(request: Request) -> Response:
        served = models.get(request.path_params["model"], request.path_params.get("version"))
        return json_response(served.metadata(models.versions(served.name)))

    async def model_ready(request: Request) -> Response:
        served = models.get(request.path_params["model"], request.path_params.get("version"))
        return json_response({"name": served.name, "ready": service.ready})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.page(), media_type=service.metrics.content_type)

    async def index(request: Request) -> Response:
        only = await _options(request, service, "ready", bool, False)
        return json_response([row for row in models.index() if not only or row["state"] == "READY"])

    async def load(request: Request) -> Response:
        parameters = await _options(request, service, "parameters", dict, {})
        if unknown := sorted(set(parameters) - {"version"}):
            raise InputError("unknown parameter", column=unknown[0], expected="version")
        version = parameters.get("version")
        if version is not None and not isinstance(version, str):
            raise InputError("malformed parameter", column="version", got=version, expected="a string")
        served = await service.load(request.path_params["model"], version)
        return json_response({"name": served.name, "version": served.version})

    async def unload(request: Request) -> Response:
        await _options(request, service, "parameters", dict, {})
        await service.unload(request.path_params["model"])
        return json_response({"name": request.path_params["model"], "version": None})

    at, repository = "/v2/models/{model}", "/v2/repository/models/{model}"
    versions = (at, at + "/versions/{version}")
    either = {"application/json": schemas.INFER_REQUEST, "application/octet-stream": None}
    return [
        *(Route("POST", p + "/infer", infer, "Scores of rows given as tensors", queued=True, body=either,
                answer=schemas.INFER_ANSWER, errors=(404, 504), headers=TIMEOUT_SCHEMA | _BINARY) for p in versions),
        Route("POST", "/v1/score", score, "Scores of rows given as JSON objects", queued=True, errors=(404, 504),
              headers=TIMEOUT_SCHEMA, body={"application/json": schemas.SCORE_REQUEST}, answer=schemas.SCORE_ANSWER),
        Route("GET", "/v2/health/live", live, "The process answers", free=True, answer=schemas.LIVE),
        Route("GET", "/v2/health/ready", ready, "All models are warm, and requests are taken", free=True,
              answer=schemas.READY, unready=schemas.READY),
        Route("GET", "/v2", server, "What this server is", answer=schemas.SERVER),
        *(Route("GET", p, model, "A model's inputs and outputs", answer=schemas.MODEL, errors=(404,))
          for p in versions),
        *(Route("GET", p + "/ready", model_ready, "Whether a model takes requests", answer=schemas.MODEL_READY,
                errors=(404,)) for p in versions),
        Route("POST", "/v2/repository/index", index, "Versions of the models, and which are in use",
              body={"application/json": schemas.INDEX_REQUEST}, answer=schemas.INDEX, required=False),
        Route("POST", repository + "/load", load, "Serve another version, older or newer", errors=(404,),
              body={"application/json": schemas.LOAD_REQUEST}, answer=schemas.DONE, required=False),
        Route("POST", repository + "/unload", unload, "Serve a model no more", errors=(404,),
              body={"application/json": schemas.UNLOAD_REQUEST}, answer=schemas.DONE, required=False),
        Route("GET", "/metrics", metrics, "Prometheus metrics"),
    ]


async def _options(request: Request, service: Service, name: str, kind: type, default: Any) -> Any:
    """One key of a JSON body that may be absent."""
    body = await service.body(request)
    try:
        given = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise InputError("not valid JSON", got=str(error)) from None
    value = given.get(name, default) if isinstance(given, dict) else None
    if not isinstance(value, kind):
        raise InputError("malformed request", column=name, got=given, expected=f'{{"{name}": {kind.__name__}}}')
    return value
