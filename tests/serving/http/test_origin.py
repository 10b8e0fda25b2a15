"""A service without a token answers programs on its machine, and no web page."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from recsys.serving import make_app
from recsys.serving.http import App, Settings
from recsys.serving.http.origin import foreign, is_loopback
from tests.serving.http.client import Client, listening, some_rows
from tests.serving.http.test_inference import INFER, as_json

OWN, ROWS = "localhost:8000", json.dumps({"rows": some_rows(1)}).encode()
POSTS = ["/v1/score", INFER, "/v2/repository/models/ranker/unload", "/v2/repository/models/ranker/load",
         "/v2/repository/index"]


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1:1", "127.8.9.10", "[::1]:8000", "[::1]"])
def test_names_of_loopback(host: str) -> None:
    assert foreign([(b"host", host.encode())]) is None
    assert foreign([(b"host", host.encode()), (b"origin", b"http://" + host.encode())]) is None


@pytest.mark.parametrize("host", ["", "evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "127.1",
                                  "10.0.0.1", "0.0.0.0", "[::]:8000", "[fe80::1]", "localhost:8000@evil.example",
                                  "\xff", "evil.example:127.0.0.1", "[localhost", "localhost, evil.example"])
def test_other_names_are_not(host: str) -> None:
    why = foreign([(b"host", b"localhost"), (b"host", host.encode("latin-1"))])
    assert why is not None
    assert "Host" in why


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://localhost", "http://localhost:3000",
                                    "http://127.0.0.1:8000", "localhost:8000", "http://localhost:8000.evil.example"])
def test_other_origins_are_foreign(origin: str) -> None:
    headers = [(b"host", OWN.encode()), (b"origin", b"http://" + OWN.encode())]
    assert foreign(headers) is None
    why = foreign([*headers, (b"origin", origin.encode())])
    assert why is not None
    assert "origin" in why


def test_addresses() -> None:
    assert [h for h in ("localhost", "127.0.0.1", "::1", "127.0.0.2", "0.0.0.0", "::", "192.168.0.1", "x", "")
            if is_loopback(h)] == ["localhost", "127.0.0.1", "::1", "127.0.0.2"]


def status(address: tuple[str, int], path: str, data: bytes | None, **headers: str) -> tuple[int, dict]:
    """As curl would send it, unless headers say otherwise."""
    request = urllib.request.Request(f"http://{address[0]}:{address[1]}{path}", data)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


async def ask(*arguments, **headers: str) -> tuple[int, dict]:
    return await asyncio.to_thread(status, *arguments, **headers)


def served(app: App, talk) -> None:
    async def run() -> None:
        async with app.router.lifespan_context(app), listening(app) as (address, _):
            await talk(address)

    asyncio.run(run())


def test_pages_and_rebound_names_get_a_403_and_change_nothing(model: Path) -> None:
    async def talk(address: tuple[str, int]) -> None:
        own = f"{address[0]}:{address[1]}"
        forms = {"Content_Type": "application/x-www-form-urlencoded"}, {"Content_Type": "text/plain"}, {}
        for path in POSTS:
            for kind in forms:
                for hostile in ({"Host": "evil.example"}, {"Host": f"evil.example:{address[1]}"}, {"Host": "10.0.0.1"},
                                {"Origin": "http://evil.example"}, {"Origin": "null"},
                                {"Origin": f"http://{address[0]}"}, {"Host": own, "Origin": "https://localhost"},
                                {"Host": "evil.example", "Origin": "http://evil.example"}):
                    found, body = await ask(address, path, ROWS, **hostile, **kind)
                    assert (found, list(body)) == (403, ["error"]), (path, hostile)
        for path in ("/v2", "/v2/models/ranker", "/metrics"):
            assert (await ask(address, path, None, Host="evil.example"))[0] == 403
        assert (await ask(address, "/v2/health/ready", None, Host="evil.example")) == (200, {"ready": True})

    served(make_app(model), talk)


def test_programs_are_answered_whatever_type_they_call_their_bodies(model: Path) -> None:
    async def talk(address: tuple[str, int]) -> None:
        tensors = json.dumps(as_json(some_rows(1))).encode()
        for kind in ("application/json", "application/x-www-form-urlencoded", "application/octet-stream", "text/plain"):
            assert (await ask(address, "/v1/score", ROWS, Content_Type=kind))[0] == 200
            assert (await ask(address, INFER, tensors, Content_Type=kind))[0] == 200
        own = f"{address[0]}:{address[1]}"
        assert (await ask(address, INFER, tensors, Origin=f"http://{own}"))[0] == 200  # a page of the service's own
        assert (await ask(address, INFER, tensors, Host="localhost"))[0] == 200
        reader, writer = await asyncio.open_connection(*address)  # HTTP/1.0, as simple checks send it
        writer.write(b"POST /v1/score HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(ROWS), ROWS))
        assert b" 200 OK" in await reader.read()

    served(make_app(model), talk)


def test_with_a_token_nothing_of_this_is_asked(model: Path) -> None:
    async def talk(address: tuple[str, int]) -> None:
        headers = {"Host": "ads.example", "Origin": "https://shop.example"}
        assert (await ask(address, "/v1/score", ROWS, **headers))[0] == 401
        assert (await ask(address, "/v1/score", ROWS, Authorization="Bearer secret", **headers))[0] == 200

    served(make_app(model, Settings(token="secret")), talk)


@pytest.mark.parametrize(("token", "code", "other"), [(None, "403", "401"), ("secret", "401", "403")])
def test_the_api_page_says_so(model: Path, token: str | None, code: str, other: str) -> None:
    with Client(make_app(model, Settings(token=token))) as client:
        for path, methods in client.get("/openapi.json").json()["paths"].items():
            for operation in methods.values():
                free = path.startswith("/v2/health/")
                assert (code in operation["responses"]) is not free, path
                assert other not in operation["responses"]
                assert free or "503" in operation["responses"]  # too many connections
