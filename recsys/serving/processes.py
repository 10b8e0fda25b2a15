"""Processes that score beside this one, started before there is a job for them.

Importing what a model needs and loading it takes a process seconds. So they begin as soon as the input's size says that
they will be needed, load the model while the first process loads and plans, and wait for the job's task. Where no job
comes of it, they are killed: they have touched nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

from recsys.errors import RecsysError

_GRACE = 10.0  # seconds to take back a part that is being written


class Processes:
    """A context manager; when it ends, so have its processes.

    Args:
        prepare: called in each when it has started; what it raises is left to ``work`` to meet again.
        work: called in each with what :meth:`give` brings.
    """

    def __init__(self, prepare: Callable[[], Any], work: Callable[..., Any]) -> None:
        self._prepare, self._work = prepare, work
        self._idle: list[tuple[Any, Connection]] = []
        self._busy: dict[Connection, Any] = {}

    def start(self, count: int) -> None:
        """Start processes until ``count`` wait for work."""
        context = multiprocessing.get_context("spawn")
        while len(self._idle) < count:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, os.getpid(), self._prepare, self._work), daemon=True)
            process.start()
            theirs.close()
            self._idle.append((process, ours))

    def give(self, *arguments: Any) -> None:
        """Let one that waits call ``work`` with these arguments."""
        process, pipe = self._idle.pop(0)
        self._busy[pipe] = process
        with suppress(OSError):  # it was killed: results() says so
            pipe.send(arguments)

    def results(self) -> Iterator[bool]:
        """As each ends its work: True, or False where it was killed.

        Raises:
            Exception: what ``work`` raised there.
        """
        while self._busy:
            for pipe in wait_for(list(self._busy)):
                assert isinstance(pipe, Connection)
                process = self._busy.pop(pipe)
                try:
                    error = pipe.recv()
                except (EOFError, OSError):
                    process.join()
                    yield False
                    continue
                process.join()
                if error is not None:
                    raise error
                yield True

    def close(self) -> None:
        """End them: those that wait at once, those that work when they have taken back what they were writing."""
        waiting, working = [p for p, _ in self._idle], list(self._busy.values())
        self._idle, self._busy = [], {}
        for process in waiting:
            process.kill()
        for process in working:
            process.terminate()
        for process in working:
            process.join(_GRACE)
            process.kill()
        for process in [*waiting, *working]:
            process.join()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, parent: int, prepare: Callable[[], Any], work: Callable[..., Any]) -> None:
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first process ends the others
    signal.signal(signal.SIGTERM, _leave)
    with suppress(Exception):
        prepare()
    try:
        arguments = pipe.recv()
    except EOFError:
        return
    try:
        work(*arguments)
    except Exception as error:
        if not isinstance(error, RecsysError):
            error.add_note(traceback.format_exc())
        pipe.send(error)
    else:
        pipe.send(None)


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _die_with_parent(parent: int) -> None:
    """Ask the system to end this process with its parent, however that ends (Linux)."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
