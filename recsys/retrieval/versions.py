"""Versions of an index: folders named by their content, one file that says which is served, and a way back.

``CURRENT.json`` is replaced in one step after the version's folder is whole; a reader sees the old version or the new.
It holds the SHA-256 of each kept version's manifest, which holds those of its files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.stage import MANIFEST, Stage, read_manifest, run_stage, sha256_file, sha256_json, write_json

CURRENT = "CURRENT.json"
_NAME = re.compile(r"[0-9a-f]{12}")


def current(folder: Path) -> dict[str, Any] | None:
    """{"version", "previous", "manifests": {version: SHA-256}}, or None where there is no index.

    Raises:
        InputError: a damaged file.
    """
    path = folder / CURRENT
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        names = [found["version"], *([found["previous"]] if found["previous"] else [])]
        if not all(_NAME.fullmatch(n) and isinstance(found["manifests"][n], str) for n in names):
            raise ValueError("no such versions")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("damaged list of versions", file=path, got=str(error), expected="what recsys index wrote"
                         ) from None
    return dict(found)


def served_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of the version that is served.

    Raises:
        InputError: no index there, or one that was damaged.
    """
    served = current(Path(folder))
    manifest = read_manifest(Path(folder) / served["version"]) if served else None
    if manifest is None:
        raise InputError("not an index", file=folder, expected="a folder made by recsys index")
    return manifest


def publish(folder: Path, config: dict[str, Any], build: Callable[[Stage], None]) -> dict[str, Any]:
    """Build a version unless it is there, make it the current one, keep the one before it, clear older ones.

    Returns:
        The version's manifest, as :func:`recsys.stage.run_stage` gives it.
    """
    from filelock import FileLock

    name = sha256_json(config)[:12]
    served = current(folder)
    if served is not None and served["version"] == name:
        return run_stage("index", folder / name, config=config, inputs={}, build=build)
    if folder.is_dir() and any(not _NAME.fullmatch(p.name) and not p.name.startswith(".") and p.name != CURRENT
                               for p in folder.iterdir()):
        raise InputError("the output folder holds something that is not an index", file=folder,
                         expected="an empty or new folder, or an index made by this version of recsys index")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        manifest = run_stage("index", folder / name, config=config, inputs={}, build=build)
        served = current(folder)
        if served is None or served["version"] != name:
            _point(folder, name, None if served is None else served["version"])
    return manifest


def rollback(folder: str | Path) -> str:
    """Serve the previous version again; what was current becomes the previous one. Returns its name.

    Raises:
        InputError: no index, or no previous version.
    """
    from filelock import FileLock

    folder = Path(folder)
    if current(folder) is None:
        raise InputError("not an index", file=folder, expected="a folder made by recsys index")
    with FileLock(folder / ".lock"):
        served = current(folder)
        if served is None or not served["previous"]:
            raise InputError("no previous version to go back to", file=folder / CURRENT)
        _point(folder, served["previous"], served["version"])
    return str(served["previous"])


def _point(folder: Path, name: str, previous: str | None) -> None:
    before = (current(folder) or {"manifests": {}})["manifests"]
    # A version that is on record keeps the checksum it was published with: hashing it again would bless tampering.
    kept = {n: before.get(n) or sha256_file(folder / n / MANIFEST) for n in (name, previous) if n}
    write_json(folder / CURRENT, {"version": name, "previous": previous, "manifests": kept})
    for old in folder.iterdir():
        stale = old.name.startswith(".") and old.name.endswith(".partial") and old.is_dir()
        if stale or (_NAME.fullmatch(old.name) and old.name not in kept):
            shutil.rmtree(old, ignore_errors=True)
