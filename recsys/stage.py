"""Stages: manifests, atomic outputs, and doing nothing twice.

A stage turns inputs into one output folder. The folder appears whole or not at all; it holds a
``manifest.json`` written last, whose ``key`` is a hash of the stage's name, its configuration and
its inputs' contents. A second run with the same key does nothing and says so. A killed run leaves
a hidden ``.NAME.KEY.partial`` folder beside the output, which the next run with the same key is
handed again (``resume=True``) or clears away; bad input leaves nothing behind.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
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
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
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
    previous = read_manifest(out)
    if previous is not None and previous.get("key") == key:
        log.info("%s: up to date, nothing to do (%s)", name, out)
        return {**previous, "cached": True}
    if out.exists() and previous is None and any(out.iterdir()):
        raise InputError("the output folder holds something that is not a stage's output", file=out,
                         expected="an empty or new folder")
    partial = out.parent / f".{out.name}.{key[:12]}.partial"
    finished = read_manifest(partial)
    if finished is not None and finished.get("key") == key:  # killed between the last write and the rename
        _publish(partial, out, key)
        return {**finished, "cached": True}
    if partial.exists() and not resume:
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
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


def _publish(partial: Path, out: Path, key: str) -> None:
    # safetensors writes files for their owner alone; who may read a result is the umask's to say, as of the manifest.
    usual = (partial / MANIFEST).stat().st_mode & 0o777
    for path in partial.iterdir():
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
            path.chmod(usual)
    old = out.parent / f".{out.name}.{key[:12]}.old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
