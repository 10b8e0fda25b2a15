"""Object stores on the loopback: real services that speak S3, Google Cloud Storage and Azure Blob Storage, empty."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pyarrow import fs

from recsys.storage import filesystem
from tests.ranks import free_port


@contextmanager
def s3() -> Iterator[tuple[str, dict[str, str]]]:
    """A bucket's address, and the variables by which a process finds it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        found = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "id",
                 "AWS_SECRET_ACCESS_KEY": "secret"}
        with environment(found):
            fs.S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1",
                            allow_bucket_creation=True).create_dir("runs")
            yield "s3://runs", found
    finally:
        server.stop()


@contextmanager
def gs() -> Iterator[tuple[str, dict[str, str]]]:
    """As :func:`s3`, by gcp-storage-emulator."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1",
                               f"--port={port}", "--in-memory", "--default-bucket=runs"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        found = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
        with environment(found):
            yield "gs://runs", found
    finally:
        server.kill()
        server.wait()


AZURITE = "3.35.0"
# The account that every Azure emulator has (Microsoft's documentation prints its key).
_ACCOUNT, _KEY = "devstoreaccount1", ("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/"
                                      "KBHBeksoGMGw==")


@contextmanager
def abfs() -> Iterator[tuple[str, dict[str, str]]]:
    """As :func:`s3`, by azurite, which npm installs into the cache folder once."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("azurite comes from npm, which is not installed")
    folder = Path(__file__).parents[1] / ".cache" / f"azurite-{AZURITE}"
    if not (folder / "made").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder,
                        f"azurite@{AZURITE}"], check=True, timeout=900)
        (folder / "made").touch()
    port = free_port()
    server = subprocess.Popen([folder / "node_modules/.bin/azurite-blob", "--silent", "--inMemoryPersistence",
                               "--skipApiVersionCheck", "--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort",
                               str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        found = {"AZURE_STORAGE_ACCOUNT": _ACCOUNT, "AZURE_STORAGE_KEY": _KEY,
                 "AZURE_STORAGE_BLOB_ENDPOINT": f"http://127.0.0.1:{port}",
                 "AZURE_STORAGE_DFS_ENDPOINT": f"http://127.0.0.1:{port}"}
        with environment(found):
            filesystem("abfs://runs/x")[0].create_dir("runs")
            yield "abfs://runs", found
    finally:
        server.kill()
        server.wait()


STORES = {"s3": s3, "gs": gs, "abfs": abfs}


class Gate:
    """A port before a service: what goes through it arrives, until it is shut and nothing answers there."""

    def __init__(self, port: int) -> None:
        self._behind, self.port = port, free_port()
        self._open: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self._door = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._let_in, args=(self._door,), daemon=True).start()

    def shut(self) -> None:
        for end in [self._door, *self._open]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _let_in(self, door: socket.socket) -> None:
        with suppress(OSError):  # shut
            while True:
                ends = door.accept()[0], socket.create_connection(("127.0.0.1", self._behind))
                self._open += ends
                for one, other in (ends, ends[::-1]):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass_on(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


@contextmanager
def gated(store: str) -> Iterator[tuple[str, dict[str, str], Gate]]:
    """A store as :data:`STORES` has it, behind a gate that may be shut for a while; the variables lead past it.

    Google's client does not read through the gate what it wrote through it, so look past it.
    """
    with STORES[store]() as (address, found):
        port = next(urlsplit(v).port for v in found.values() if "://" in v)
        assert port is not None
        gate = Gate(port)
        moved = {k: v.replace(f":{port}", f":{gate.port}") for k, v in found.items()}
        try:
            with environment(moved):
                yield address, found, gate
        finally:
            gate.shut()


def _wait(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/storage/v1/b?project=test", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nothing answers on port {port}")


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
