"""Worker processes agree on what is served: a file says which version of each model, and each says how far it is."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from filelock import FileLock

from recsys.errors import RecsysError
from recsys.log import log
from recsys.serving.http.models import Models, UnknownModelError, yield_to_others
from recsys.stage import write_atomic

UNLOADED = ""


class Control:
    """One worker's view of the folder that all workers of a service share.

    ``wanted.json`` holds model -> [generation, version]; ``worker-PID.json`` holds the generation that the process has
    reached, negative where its load failed. The one that is asked by a client does it first: what cannot be loaded
    never becomes what is wanted.

    Args:
        folder: exists, and is empty when the service starts.
        poll: seconds between two looks.
    """

    def __init__(self, folder: Path, poll: float = 0.2) -> None:
        self._folder, self._poll = folder, poll
        self._wanted, self._own = folder / "wanted.json", folder / f"worker-{os.getpid()}.json"
        self._reached: dict[str, int] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._models: Models | None = None

    def wanted(self) -> dict[str, str]:
        """Model -> version, or :data:`UNLOADED`, of those that a client has asked for; they count as reached."""
        found = self._read(self._wanted)
        self._reached = {name: generation for name, (generation, _) in found.items()}
        return {name: version for name, (_, version) in found.items()}

    def follow(self, models: Models) -> None:
        """Do what other workers' clients ask for, in a thread of its own.

        What was asked for while the models were being loaded is done when this returns: from here on this worker is
        one that :meth:`publish` waits for.
        """
        self._models = models
        self._tell()
        self._catch_up(models)
        self._thread = threading.Thread(target=self._follow, args=(models,), name="control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Follow no more."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self._own.unlink(missing_ok=True)

    def publish(self, name: str, version: str, timeout: float = 120.0) -> bool:
        """Tell the others what this worker has just done, and wait until all have done it, too.

        Returns:
            Whether they have.
        """
        with FileLock(self._folder / "lock"):
            found = self._read(self._wanted)
            generation = 1 + max((g for g, _ in found.values()), default=0)
            write_atomic(self._wanted, json.dumps({**found, name: [generation, version]}))
            if self._serves(name) in (version, None):
                self._reached[name] = generation  # else what another asked for came in between: follow this one, too
        self._tell()
        until = time.monotonic() + timeout
        while time.monotonic() < until and not self._end.is_set():
            others = [self._read(p).get(name, 0) for p in self._folder.glob("worker-*.json") if _alive(p)]
            if all(abs(g) >= generation for g in others):
                return all(g > 0 for g in others)
            time.sleep(self._poll / 4)
        return False

    def _follow(self, models: Models) -> None:
        yield_to_others()
        while not self._end.wait(self._poll):
            try:
                self._catch_up(models)
            except Exception:  # a full disk, a damaged file: without this thread the worker would never follow again
                log.exception("cannot follow what the other workers serve; trying again")

    def _catch_up(self, models: Models) -> None:
        for name, (generation, version) in self._read(self._wanted).items():
            if abs(self._reached.get(name, 0)) >= generation:
                continue
            try:
                if version == UNLOADED:
                    models.unload(name)
                else:
                    models.load(name, version)
                self._reached[name] = generation
            except (RecsysError, UnknownModelError) as error:
                log.error("model %s: version %s, which another worker serves, cannot be loaded here: %s", name,
                          version, error)
                self._reached[name] = -generation
            self._tell()

    def _serves(self, name: str) -> str | None:
        """The version in use here, :data:`UNLOADED`, or None where no models are followed."""
        if self._models is None:
            return None
        try:
            return self._models.get(name).version
        except UnknownModelError:
            return UNLOADED

    def _tell(self) -> None:
        write_atomic(self._own, json.dumps(self._reached))

    @staticmethod
    def _read(path: Path) -> dict:
        try:
            return dict(json.loads(path.read_text()))
        except FileNotFoundError:
            return {}


def _alive(path: Path) -> bool:
    try:
        os.kill(int(path.stem.removeprefix("worker-")), 0)
    except (ProcessLookupError, ValueError):
        path.unlink(missing_ok=True)
        return False
    return True
