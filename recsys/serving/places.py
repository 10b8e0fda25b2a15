"""Where a batch job writes: a folder, or an address in an object store; and who works on what.

Both give the same promises: a file appears under its name only when it is whole, and a claim is held by one worker at
a time. In a folder a claim is a lock of the system, which ends with the process, however it ends. An object store has
no locks: a claim is an object, written before the store is asked whose others are there; who sees another's lets go and
tries again later, so that of two at least one yields. Its holder writes it again every 20 s; one that is older than
90 s by the store's clock, or whose process on this machine is gone, counts no more. Two workers on one shard would be
waste, never a wrong result: what they write is the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol

from recsys.errors import RecsysError
from recsys.stage import sha256_file, write_atomic
from recsys.storage import file_size, filesystem, fingerprint, is_url, join, read_bytes

_HEARTBEAT, _EXPIRY = 20.0, 90.0
_START_SECONDS = 3.0  # to see another job's workers at work before this one is refused
_MOST_SECONDS = 60.0  # to wait for another call that is about to start a job, this one perhaps


class Place(Protocol):
    """An output folder, whatever holds it. Names are relative, with ``/``."""

    @property
    def folder(self) -> str | Path:
        """Path or address."""

    def read(self, name: str) -> bytes | None:
        """Contents of a file, or None."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole."""

    def temporary(self, name: str) -> Path:
        """A path on this machine to write a file to, before :meth:`publish`."""

    def publish(self, path: Path, name: str) -> None:
        """Let the file at ``path`` appear under its name; ``path`` is gone then."""

    def mark(self, name: str) -> str | None:
        """What tells the file's contents from others (SHA-256, or the store's fingerprint); None: no such file."""

    def names(self) -> list[str]:
        """All files."""

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

    def claim(self, name: str) -> Any:
        """Context manager that gives whether this worker alone holds the claim."""

    def start(self, key: str, job: dict[str, Any]) -> Any:
        """Context manager to work on the job ``key`` in; gives the contents of job.json, made of ``job`` if need be.

        Raises:
            RecsysError: workers of another job are at work there.
        """


def place(folder: str | Path) -> Place:
    """The place of a path or an address."""
    return ObjectPlace(str(folder)) if is_url(folder) else FolderPlace(Path(folder))


def _job_of(where: Place) -> Any:
    return json.loads(where.read("job.json") or b"null")


class FolderPlace:
    """A folder of a file system that has locks (a local one, NFS 4)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """See :class:`Place`."""
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, data: bytes) -> None:
        """See :class:`Place`."""
        write_atomic(self.folder / name, data)

    def temporary(self, name: str) -> Path:
        """See :class:`Place`."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")

    def publish(self, path: Path, name: str) -> None:
        """See :class:`Place`."""
        os.replace(path, self.folder / name)

    def mark(self, name: str) -> str | None:
        """See :class:`Place`."""
        path = self.folder / name
        return sha256_file(path) if path.is_file() else None

    def names(self) -> list[str]:
        """See :class:`Place`."""
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())

    def remove(self, name: str) -> None:
        """See :class:`Place`."""
        (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """See :class:`Place`."""
        with self._open(f"{name}.lock") as handle:
            yield _locked(handle, fcntl.LOCK_EX)

    @contextmanager
    def start(self, key: str, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """See :class:`Place`. Workers of a job share a lock; who replaces another job must hold it alone."""
        until, most = (time.monotonic() + seconds for seconds in (_START_SECONDS, _MOST_SECONDS))
        with self._open("lock") as handle:
            while True:
                started = _job_of(self)
                mine = started is not None and started["key"] == key
                if _locked(handle, fcntl.LOCK_SH if mine else fcntl.LOCK_EX):
                    now = _job_of(self)
                    if mine and now == started:
                        break
                    if not mine and now == started:
                        self.put("job.json", json.dumps(job, indent=2).encode())
                    # An exclusive lock does not become a shared one in one step: let go, look again.
                    fcntl.flock(handle, fcntl.LOCK_UN)
                    continue
                if started and _locked(handle, fcntl.LOCK_SH):  # others hold it, none alone: the workers of that job
                    fcntl.flock(handle, fcntl.LOCK_UN)
                    limit = until
                else:  # somebody is writing job.json; on a slow disk that takes as long as it takes
                    until, limit = time.monotonic() + _START_SECONDS, most
                if _job_of(self) != started:
                    continue
                if time.monotonic() > limit:
                    raise RecsysError(f"{self.folder}: another scoring job is writing there")
                time.sleep(0.02)
            yield started

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        folder = self.folder / "_shards"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("ab") as handle:
            yield handle


def _locked(handle: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class ObjectPlace:
    """An address that :mod:`recsys.storage` knows."""

    def __init__(self, folder: str) -> None:
        self.folder = folder.rstrip("/")
        self._system, self._root = filesystem(self.folder)

    def read(self, name: str) -> bytes | None:
        """See :class:`Place`."""
        path = str(join(self.folder, name))
        return None if file_size(path) is None else read_bytes(path)

    def put(self, name: str, data: bytes) -> None:
        """See :class:`Place`."""
        with self._system.open_output_stream(f"{self._root}/{name}") as stream:
            stream.write(data)

    def temporary(self, name: str) -> Path:
        """See :class:`Place`."""
        handle, path = tempfile.mkstemp(prefix="recsys-", suffix=".partial")
        os.close(handle)
        return Path(path)

    def publish(self, path: Path, name: str) -> None:
        """See :class:`Place`. An object appears when its upload is complete."""
        with path.open("rb") as source, self._system.open_output_stream(f"{self._root}/{name}") as stream:
            while piece := source.read(8 << 20):
                stream.write(piece)
        path.unlink()

    def mark(self, name: str) -> str | None:
        """See :class:`Place`."""
        path = str(join(self.folder, name))
        return None if file_size(path) is None else fingerprint(path)

    def names(self) -> list[str]:
        """See :class:`Place`."""
        return sorted(self._listed(""))

    def remove(self, name: str) -> None:
        """See :class:`Place`."""
        with suppress(FileNotFoundError):
            self._system.delete_file(f"{self._root}/{name}")

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """See :class:`Place`."""
        with self._claimed(name) as mine:
            yield not self._others(f"_shards/{name}.claim-", mine)

    @contextmanager
    def _claimed(self, name: str) -> Iterator[str]:
        """An object that says that this worker is there, kept fresh; gives its name."""
        mine = f"_shards/{name}.claim-{_process_table()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.put(mine, b"{}")
        done = threading.Event()
        beat = threading.Thread(target=self._beat, args=(mine, done), daemon=True)
        beat.start()
        try:
            yield mine
        finally:
            done.set()
            beat.join()
            self.remove(mine)

    @contextmanager
    def start(self, key: str, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """See :class:`Place`."""
        until, most = (time.monotonic() + seconds for seconds in (_START_SECONDS, _MOST_SECONDS))
        while True:
            began = time.monotonic()
            started = _job_of(self)
            if started is not None and started["key"] == key:
                with self._claimed("run"):
                    # Said first, then looked at: who replaces the job sees this worker, or this worker the new job.
                    if _job_of(self) == started:
                        yield started
                        self._others("_shards/", None)  # clears away what the dead have left
                        return
            else:
                with self.claim("job") as alone:
                    if alone and self._replace(started, job):
                        continue
                if alone and _job_of(self) == started:  # its workers are there
                    limit = until
                else:  # another call is about to start a job, this one perhaps
                    until, limit = time.monotonic() + _START_SECONDS, most
                if time.monotonic() > limit:
                    raise RecsysError(f"{self.folder}: another scoring job is writing there")
            # By how long an attempt takes in this store, so that two calls do not go on meeting each other.
            time.sleep(random.uniform(0.05, 0.3) + random.uniform(0.0, 2.0) * (time.monotonic() - began))

    def _replace(self, old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
        """Make ``new`` the job of this place, unless workers of the old one are there."""
        before = self.read("job.json")
        if self._others("_shards/", None, but="_shards/job.claim-") or json.loads(before or b"null") != old:
            return False
        self.put("job.json", json.dumps(new, indent=2).encode())
        if self._others("_shards/", None, but="_shards/job.claim-"):  # one came in between
            if before is None:
                self.remove("job.json")
            else:
                self.put("job.json", before)
            return False
        return True

    def _beat(self, name: str, done: threading.Event) -> None:
        while not done.wait(_HEARTBEAT):
            with suppress(OSError):
                self.put(name, b"{}")

    def _others(self, prefix: str, mine: str | None, but: str = "\0") -> list[str]:
        """Claims under a prefix that still count; those that do not are cleared away."""
        listed = {n: t for n, t in self._listed("_shards").items() if ".claim-" in n and n.startswith(prefix)}
        now, alive = listed.get(mine or "", time.time_ns()), []
        for name, at in listed.items():
            table, pid, _ = name.rpartition(".claim-")[2].rsplit("-", 2)
            gone = table == _process_table() and not _runs(int(pid))
            if gone or now - at > _EXPIRY * 1e9:
                self.remove(name)
            elif name != mine and not name.startswith(but):
                alive.append(name)
        return alive

    def _listed(self, under: str) -> dict[str, int]:
        from pyarrow.fs import FileSelector

        root = f"{self._root}/{under}".rstrip("/")
        found = self._system.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        return {f.path[len(self._root) + 1 :]: f.mtime_ns or 0 for f in found if f.is_file}


@cache
def _process_table() -> str:
    """What makes a process id one of this machine: containers may have a host's name in common, and not its ids."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # no Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(os.stat("/proc/self/ns/pid").st_ino)]
    return f"{parts[0]}-{hashlib.sha256(''.join(parts).encode()).hexdigest()[:8]}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
