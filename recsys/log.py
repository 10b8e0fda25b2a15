"""One logger and one progress bar for the whole engine; both write to standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("recsys")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage()}
        return json.dumps(line)


def setup_logging(level: str = "INFO", as_json: bool = False) -> None:
    """Send the engine's log to standard error, as plain lines or as one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


def progress(unit: str = "rows", every: float = 30.0) -> Progress:
    """A progress bar with rate and time left: ``with progress("texts") as p: t = p.add_task(...)``.

    Off a terminal nothing is drawn; a plain log line every ``every`` seconds says the same. A task's field ``info``
    (``p.update(t, info="loss 0.41")``) is shown behind the rate in both.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn
    from rich.progress import Task as _Task
    from rich.progress import TimeRemainingColumn as _Left
    from rich.text import Text

    class Column(ProgressColumn):
        """A column made by a function of the task."""

        def __init__(self, show: Callable[[_Task], str]) -> None:
            super().__init__()
            self._show = show

        def render(self, task: _Task) -> Text:
            return Text(self._show(task))

    def rate(task: _Task) -> str:
        return f"{task.finished_speed or task.speed or 0:,.0f} {unit}/s"

    def info(task: _Task) -> str:
        return str(task.fields.get("info", ""))

    class Bar(Progress):
        """Logs a line now and then where nothing is drawn."""

        logged = time.monotonic()

        def advance(self, task_id: TaskID, advance: float = 1) -> None:
            super().advance(task_id, advance)
            if self.disable and time.monotonic() - self.logged >= every:
                self.logged = time.monotonic()
                task = self._tasks[task_id]
                total = "" if task.total is None else f"/{task.total:,.0f} ({task.percentage:.0f} %)"
                parts = [f"{task.completed:,.0f}{total} {unit}", rate(task), f"{_Left().render(task)} left", info(task)]
                log.info("%s: %s", task.description, ", ".join(p for p in parts if p))

    console = Console(stderr=True)
    return Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Column(rate), _Left(), Column(info),
               console=console, disable=not console.is_terminal)
