"""Stages: manifests, atomic outputs, and doing nothing twice.

A stage turns inputs into one output folder. The folder appears whole or not at all; it holds a
``manifest.json`` written last, whose ``key`` is a hash of the stage's name, its configuration and
its inputs' contents. A second run with the same key does nothing and says so. A killed run leaves
a hidden ``.NAME.KEY.partial`` folder beside the output, which the next run with the same key is
handed again (``resume=True``) or clears away; bad input leaves nothing behind. Of two processes at the same work one
waits, and then finds it done.
"""

from __future__ import annotations

import datetime as dt
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys import __version__
from recsys.errors import InputError, RecsysError
from recsys.log import log
from recsys.storage import fingerprint, is_url

MANIFEST = "manifest.json"


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of a byte string."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode())


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's contents; a folder hashes as its manifest, or else as all its files.

    An object in a store hashes as its size, ETag and end (:func:`recsys.storage.fingerprint`): it is not fetched twice.
    """
    if is_url(path):
        return fingerprint(str(path))
    path = Path(path)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return sha256_file(path / MANIFEST)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return sha256_json([[str(p.relative_to(path)), sha256_file(p)] for p in files])
    if not path.is_file():
        raise InputError("no such file", file=path)
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old contents or the new, never half of either."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is an error, because most readers refuse it."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path | dt.datetime | dt.date):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")


@dataclass
class Stage:
    """What a build function is handed: a folder to write into and a place for what the manifest should say."""

    folder: Path
    rows: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    resumable: Callable[[], bool] = lambda: False
    """Asked when a resumable stage ends in an error: is there something to go on from, not to be cleared away?"""

    def path(self, name: str) -> Path:
        """A path inside the output folder; its parent exists."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where the folder is not a finished stage's output."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError as error:
        raise InputError("damaged manifest", file=path, got=str(error), expected="JSON") from None
    return dict(manifest)


def run_stage(
    name: str,
    out: str | Path,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str | Path],
    build: Callable[[Stage], None],
    resume: bool = False,
) -> dict[str, Any]:
    """Run ``build`` unless the output folder already holds the result of the same inputs and configuration.

    Args:
        name: stage name, part of the key.
        out: output folder; replaced as a whole if it holds another key's result.
        config: everything besides the inputs that the result depends on; JSON-able.
        inputs: label -> file or folder; hashed by content.
        build: writes into ``stage.folder`` and fills ``stage.rows`` and ``stage.facts``.
        resume: hand a killed run's partial folder of the same key to ``build`` again instead of clearing it.

    Returns:
        The manifest, with ``cached`` true where nothing was done.
    """
    out = Path(out)
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise InputError("not a folder", file=path, got="a file", expected="a new or existing folder")
    hashes = {label: sha256_file(path) for label, path in sorted(inputs.items())}
    identity = {"stage": name, "config": dict(config), "inputs": hashes, "version": __version__}
    key = sha256_json(identity)
    if (there := _finished(out, name, key)) is not None:
        return there
    if out.exists() and read_manifest(out) is None and any(out.iterdir()):
        raise InputError("the output folder holds something that is not a stage's output", file=out,
                         expected="an empty or new folder")
    partial = out.parent / f".{out.name}.{key[:12]}.partial"
    with alone_in(partial):
        if (there := _finished(out, name, key)) is not None:  # by whom this process has waited for
            return there
        finished = read_manifest(partial)
        if finished is not None and finished.get("key") == key:  # killed between the last write and the rename
            _publish(partial, out, key)
            return {**finished, "cached": True}
        if not resume:
            _clear(partial)
        stage = Stage(partial)
        try:
            build(stage)
        except RecsysError:
            if not (resume and stage.resumable()):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        except Exception:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        manifest = {**identity, "key": key, "rows": stage.rows, "facts": stage.facts,
                    "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}
        write_json(partial / MANIFEST, manifest)
        _publish(partial, out, key)
        return {**manifest, "cached": False}


def _finished(out: Path, name: str, key: str) -> dict[str, Any] | None:
    manifest = read_manifest(out)
    if manifest is None or manifest.get("key") != key:
        return None
    log.info("%s: up to date, nothing to do (%s)", name, out)
    return {**manifest, "cached": True}


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, against other processes that ask likewise, and wait for one that has it.

    The lock is the system's, so that a killed process lets go; where a file system has none, nobody waits. A folder
    that is empty in the end is removed.
    """
    told = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # renamed or removed by who had it
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            if not told:
                log.info("another process works in %s: waiting until it has ended", folder)
                told = True
            time.sleep(0.1)
            continue
        except OSError:
            pass
        if _stands(folder, held):
            break
        os.close(held)  # the lock of a folder that is elsewhere by now
    try:
        yield
    finally:
        if _stands(folder, held):  # else it is another process's
            with suppress(OSError):
                folder.rmdir()
        os.close(held)


def _stands(folder: Path, opened: int) -> bool:
    """Whether the folder of that name still is the one that was opened."""
    try:
        return os.path.samestat(os.fstat(opened), folder.stat())
    except FileNotFoundError:
        return False


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _publish(partial: Path, out: Path, key: str) -> None:
    # safetensors writes files for their owner alone; who may read a result is the umask's to say, as of the manifest.
    usual = (partial / MANIFEST).stat().st_mode & 0o777
    for path in partial.iterdir():
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
            path.chmod(usual)
    old = out.parent / f".{out.name}.{key[:12]}.old"
    while True:
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.replace(out, old)
        try:
            os.replace(partial, out)
            break
        except OSError as error:  # a process with another key was as fast
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    shutil.rmtree(old, ignore_errors=True)
