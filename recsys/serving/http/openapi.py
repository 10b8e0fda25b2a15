"""The OpenAPI document of the routes, and a page of it that loads nothing from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from http import HTTPStatus
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from recsys import __version__
from recsys.serving.http import schemas
from recsys.serving.http.routes import Route

_STYLE = "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
pre{overflow:auto;padding:.6rem;background:#8882}summary{cursor:pointer}code{font-weight:bold}"
_POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def document(routes: Sequence[Route], token: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        routes: all that the service answers.
        token: routes that are not free ask for a bearer token.
    """
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, token)
    found: dict[str, Any] = {"openapi": "3.1.0", "info": {"title": "recsys scoring", "version": __version__},
                             "paths": paths}
    if token:
        found["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    return found


def routes(page: Mapping[str, Any]) -> list[Route]:
    """The routes that show the document."""
    text, html = orjson.dumps(page), _html(page)

    async def as_json(_: Request) -> Response:
        return Response(text, media_type="application/json")

    async def as_html(_: Request) -> Response:
        return Response(html, headers=_POLICY, media_type="text/html")

    return [Route("GET", "/openapi.json", as_json, "This API as OpenAPI", free=True),
            Route("GET", "/docs", as_html, "This page", free=True)]


def _operation(route: Route, token: bool) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", route.path)
    asks = token and not route.free
    errors = [*route.errors, *([400, 408, 413, 415] if route.body is not None else [])]
    if not route.free:
        errors += [401 if token else 403, 503]
    ok: dict[str, Any] = {"description": "OK"}
    if route.answer is not None:
        ok["content"] = {"application/json": {"schema": route.answer}}
        if route.body is not None and "application/octet-stream" in route.body:
            ok["content"]["application/octet-stream"] = {}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "parameters": [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
        + [{"name": n, "in": "header", "required": False, "schema": s} for n, s in route.headers.items()],
        "responses": {"200": ok} | {str(code): {
            "description": HTTPStatus(code).phrase, "content": {"application/json": {"schema": schemas.ERROR}},
            **({"headers": {"Retry-After": {"schema": {"type": "string"}}}} if code == 503 else {})}
            for code in sorted(set(errors))}}
    if route.unready is not None:
        operation["responses"]["503"] = {"description": HTTPStatus(503).phrase,
                                         "content": {"application/json": {"schema": route.unready}}}
    if route.body is not None:
        operation["requestBody"] = {"required": route.required, "content": {
            kind: {"schema": schema} if schema else {} for kind, schema in route.body.items()}}
    if asks:
        operation["security"] = [{"token": []}]
    return operation


def _html(page: Mapping[str, Any]) -> str:
    parts = []
    for path, methods in page["paths"].items():
        for method, operation in methods.items():
            detail = orjson.dumps(operation, option=orjson.OPT_INDENT_2).decode()
            parts.append(f"<details><summary><code>{method.upper()} {escape(path)}</code> "
                         f"{escape(operation['summary'])}</summary><pre>{escape(detail)}</pre></details>")
    title = escape(f"{page['info']['title']} {page['info']['version']}")
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
            f"<h1>{title}</h1><p>The same for programs: <a href=openapi.json>openapi.json</a></p>" + "".join(parts))
