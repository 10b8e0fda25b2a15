"""A real server under clients that mean harm: others are answered all the while, and its memory stays bounded."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.processes import wait_until
from tests.serving.http.client import some_rows
from tests.serving.http.test_server import SCORE, TOKEN, server

pytestmark = pytest.mark.slow
MOST, MANY = 200, 3000
PATIENCE = 300  # seconds; only so that nothing waits for ever


@pytest.fixture(autouse=True)
def files() -> Iterator[None]:
    """The clients of a test need many sockets."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < MANY + 500:
        pytest.skip("this system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], MANY + 500), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[tuple[str, tuple[str, int], int]]:
    """Base, address and process of a server with room for MOST connections and 16 MiB of bodies."""
    with server(model, "--connections", str(MOST), "--head-timeout", "2", "--body-memory", "16") as (process, base):
        host, port = base.removeprefix("http://").split(":")
        yield base, (host, int(port)), process.pid
        assert process.poll() is None


def memory(pid: int) -> float:
    """MiB in use."""
    return next(int(x.split()[1]) for x in Path(f"/proc/{pid}/status").read_text().splitlines()
                if x.startswith("VmRSS")) / 1024


def connections(pid: int) -> int:
    """Open sockets, the listening one too."""
    found = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += "socket:" in str(file.readlink())
        except FileNotFoundError:
            continue
    return found


def works(base: str) -> None:
    assert httpx.get(base + "/v2/health/ready", timeout=PATIENCE).status_code == 200
    assert httpx.post(base + SCORE, json={"rows": some_rows(3)}, headers=TOKEN | {"Timeout-Ms": "600000"},
                      timeout=PATIENCE).status_code == 200


def test_idle_and_slow_connections_by_the_thousands_keep_nobody_out(running: tuple) -> None:
    base, address, pid = running
    kept = httpx.Client(base_url=base, headers=TOKEN, timeout=PATIENCE)
    assert kept.get("/v2").status_code == 200
    before, crowd, ending = memory(pid), [], threading.Event()

    def flood() -> None:
        """Opens connections that say nothing or a part of a head, and again whatever was closed."""
        while not ending.is_set():
            if len(crowd) >= MANY:
                crowd.pop(0).close()
            s = socket.create_connection(address)
            if len(crowd) % 2:
                s.sendall(b"GET / HTTP/1.1\r\nX-A: a")
            crowd.append(s)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        wait_until(lambda: len(crowd) >= MANY - 1, "a crowd")
        for _ in range(20):
            works(base)
            assert kept.get("/v2").status_code == 200  # on the connection from before
            assert connections(pid) < MOST + 150  # what was accepted in one moment, and is being refused
    finally:
        ending.set()
        thread.join()
    assert memory(pid) < before + 100
    page = kept.get("/metrics").text
    assert float(page.split('recsys_connections_closed_total{why="room"} ')[1].split()[0]) > MANY / 2
    for s in crowd:
        s.close()
    wait_until(lambda: connections(pid) < 20, "they are gone")


def test_heads_that_trickle_are_ended(running: tuple) -> None:
    base, address, _ = running
    slow = [socket.create_connection(address) for _ in range(50)]
    for s in slow:
        s.sendall(b"POST /v1/score HTTP/1.1\r\n")
        s.settimeout(PATIENCE)
    ended: Counter = Counter()
    until = time.monotonic() + PATIENCE
    while slow and time.monotonic() < until:
        works(base)
        for s in list(slow):
            try:
                s.sendall(b"X")
                s.setblocking(False)
                answer = s.recv(100)
            except BlockingIOError:
                s.settimeout(PATIENCE)
                continue
            except ConnectionError:
                answer = b"gone"
            ended[answer[:12]] += 1
            s.close()
            slow.remove(s)
        time.sleep(0.1)
    assert not slow
    assert ended[b"HTTP/1.1 408"] > 0


def test_large_bodies_together_are_bounded_and_small_ones_are_answered(running: tuple) -> None:
    base, address, pid = running
    size, piece = 8 << 20, b" " * (1 << 20)
    before, found, lock = memory(pid), Counter(), threading.Lock()

    def client(chunked: bool) -> None:
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
        for _ in range(3):
            def parts() -> Iterator[bytes]:
                for _ in range(size // len(piece)):
                    time.sleep(0.02)
                    yield piece

            try:
                headers = TOKEN if chunked else {**TOKEN, "Content-Length": str(size)}
                connection.request("POST", SCORE, parts(), headers, encode_chunked=chunked)
                answer = connection.getresponse()
                text = answer.read()
                assert list(json.loads(text)) == ["error"]
                if answer.status == 503:
                    assert answer.headers["Retry-After"] == "1"
                status = answer.status
            except ConnectionError:  # refused while it was still sending
                connection.close()
                status = 0
            with lock:
                found[status] += 1

    clients = [threading.Thread(target=client, args=(i % 2 == 1,)) for i in range(40)]
    for c in clients:
        c.start()
    most = 0.0
    while any(c.is_alive() for c in clients):
        most = max(most, memory(pid))
        assert httpx.get(base + "/v2/health/ready", timeout=PATIENCE).status_code == 200
        time.sleep(0.02)
    for c in clients:
        c.join()
    assert found[400] >= 2  # those that fitted: blanks are no JSON
    assert found[503] > 60
    assert set(found) <= {0, 400, 503}
    # 40 bodies of 8 MiB would be 320 MiB; 16 are allowed, once as pieces and once joined.
    assert most < before + 150
    works(base)


def test_requests_in_one_packet_by_the_thousands_fill_no_memory(running: tuple) -> None:
    base, address, pid = running
    before = memory(pid)
    for _ in range(30):
        with socket.create_connection(address) as s:
            s.settimeout(PATIENCE)
            try:
                s.sendall(b"GET /v2 HTTP/1.1\r\n\r\n" * 20_000)
                while s.recv(1 << 16):
                    pass
            except ConnectionError:
                pass
    works(base)
    assert memory(pid) < before + 100
