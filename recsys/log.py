"""One logger and one progress bar for the whole engine; both write to standard error."""

from __future__ import annotations

import json
import logging
import sys
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


def progress(unit: str = "rows") -> Progress:
    """A progress bar with rate and time left: ``with progress("texts") as p: t = p.add_task(...)``.

    Off a terminal nothing is drawn, so that logs stay readable.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import Task as _Task

    class Rate(TextColumn):
        def __init__(self) -> None:
            super().__init__("")

        def render(self, task: _Task):  # type: ignore[no-untyped-def]
            from rich.text import Text

            return Text(f"{task.speed or 0:,.0f} {unit}/s")

    console = Console(stderr=True)
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
                    console=console, disable=not console.is_terminal)
