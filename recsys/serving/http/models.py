"""The models that a process serves: versions in folders, loaded and warmed up beside the one in use, then swapped."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.log import log
from recsys.serving.http.block import BlockColumns
from recsys.serving.protocol import HEAD_COLUMNS, ScorerLike, load_scorer
from recsys.serving.requests import warm_up_table

WARM_UP_ROWS = (1, 500, 1000)
_DATATYPES = {"number": "FP32", "category": "BYTES", "row": "INT64", "list": "BYTES"}
_NICE = 10


class UnknownModelError(LookupError):
    """No such model, or not this version of it."""


@dataclass(frozen=True)
class Served:
    """One version of a model, ready to score.

    Attributes:
        name: under which it is served.
        version: its folder's number; "1" for a model folder without versions.
        scorer: the model.
    """

    name: str
    version: str
    scorer: ScorerLike

    @cached_property
    def columns(self) -> list[str]:
        """Input columns."""
        return self.scorer.columns

    @cached_property
    def lists(self) -> frozenset[str]:
        """Columns that hold lists."""
        return frozenset(n for n, kind in self.scorer.kinds.items() if kind == "list")

    @cached_property
    def outputs(self) -> dict[str, str]:
        """Output name -> head."""
        return {HEAD_COLUMNS[h]: h for h in self.scorer.heads}

    @cached_property
    def block(self) -> BlockColumns | None:
        """How requests of plain numbers skip tables."""
        return BlockColumns.of(self.scorer)

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """As the Open Inference Protocol describes a model."""
        inputs = [{"name": n, "datatype": _DATATYPES[k], "shape": [-1, -1] if k == "list" else [-1]}
                  for n, k in self.scorer.kinds.items()]
        outputs = [{"name": n, "datatype": "FP32", "shape": [-1]} for n in self.outputs]
        return {"name": self.name, "versions": versions, "platform": "recsys", "inputs": inputs, "outputs": outputs,
                "model_id": self.scorer.model_id}

    def warm_up(self) -> None:
        """Run the model on as many rows as requests have, so that no request pays for the first time."""
        one = warm_up_table(self.scorer.kinds)
        for rows in WARM_UP_ROWS:
            self.scorer.score(one.take([0] * rows))


class Models:
    """Which version of which model is served.

    A folder is either a model folder, or holds one model folder a version, named by its number (1, 2, 10).

    Args:
        folders: model name -> folder.
        device: auto | cpu | cuda.
        loads: called with (model, outcome) after each attempt.
        load: reads a model folder.

    Attributes:
        checks: called with (model, scorer) before a version is served; an InputError keeps it from being served.
    """

    def __init__(self, folders: Mapping[str, Path], device: str = "auto",
                 loads: Callable[[str, str], None] = lambda *_: None,
                 load: Callable[[Path, str], ScorerLike] = load_scorer) -> None:
        for name in folders:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
                raise InputError("not a name for a model", got=name, expected="letters, digits, '.', '_' and '-'")
        self._folders, self._device, self._loads, self._load = dict(folders), device, loads, load
        self.checks: list[Callable[[str, ScorerLike], None]] = []
        self._served: dict[str, Served] = {}
        self._failed: set[tuple[str, str]] = set()
        self._loading = threading.Lock()

    @property
    def names(self) -> list[str]:
        """All models, loaded or not."""
        return list(self._folders)

    @property
    def ready(self) -> bool:
        """All models are loaded and warm."""
        return len(self._served) == len(self._folders)

    @property
    def first(self) -> Served:
        """The model of the routes that name none.

        Raises:
            UnknownModelError: it is not loaded.
        """
        return self.get(self.names[0])

    def get(self, name: str, version: str | None = None) -> Served:
        """The model in use. A request that has it keeps it, whatever is loaded meanwhile.

        Raises:
            UnknownModelError: no such model, not loaded, or another version is in use.
        """
        served = self._served.get(name)
        if served is None or (version is not None and version != served.version):
            raise UnknownModelError("unknown model" if name not in self._folders else "not loaded" if served is None
                                    else f"version not in use: {served.version} is")
        return served

    def versions(self, name: str) -> list[str]:
        """Versions in the model's folder, oldest first.

        Raises:
            UnknownModelError: no such model.
        """
        if name not in self._folders:
            raise UnknownModelError("unknown model")
        found = [p.name for p in self._folders[name].glob("[0-9]*")
                 if re.fullmatch(r"[1-9][0-9]*", p.name) and p.is_dir()]
        return sorted(found, key=int) or ["1"]

    def load(self, name: str, version: str | None = None) -> Served:
        """Load a version (None: the latest), warm it up, and serve it from then on; until then the old one is served.

        Raises:
            UnknownModelError: no such model or version.
            InputError: not a complete model folder, or refused by a check; what was served goes on being served.
        """
        with self._loading:
            versions = self.versions(name)
            chosen = versions[-1] if version is None else version
            if chosen not in versions:
                raise UnknownModelError("no such version")
            folder = self._folders[name]
            folder = folder / chosen if (folder / chosen).is_dir() else folder
            try:
                served = Served(name, chosen, self._load(folder, self._device))
                served.warm_up()
                for check in self.checks:
                    check(name, served.scorer)
            except InputError as error:
                self._failed.add((name, chosen))
                self._loads(name, "failed")
                log.error("model %s: version %s could not be loaded: %s", name, chosen, error)
                raise
            self._failed.discard((name, chosen))
            self._served[name] = served
            self._loads(name, "loaded")
            log.info("model %s: version %s (%s) is served", name, chosen, served.scorer.model_id)
            return served

    def unload(self, name: str) -> None:
        """Serve the model no more; requests that have it are answered.

        Raises:
            UnknownModelError: no such model.
        """
        if name not in self._folders:
            raise UnknownModelError("unknown model")
        with self._loading:
            self._served.pop(name, None)

    def index(self) -> list[dict[str, str]]:
        """Every version of every model with its state, as Triton's repository index."""
        rows = []
        for name in self._folders:
            served = self._served.get(name)
            for version in self.versions(name):
                used = served is not None and served.version == version
                reason = "could not be loaded" if (name, version) in self._failed else "not in use"
                rows.append({"name": name, "version": version, "state": "READY" if used else "UNAVAILABLE",
                             "reason": "" if used else reason})
        return rows


def yield_to_others() -> None:
    """Let this thread's work wait for the others' (Linux: a thread has a priority of its own): loading is never
    urgent, and one core may be all there is."""
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
