"""Looking on while other processes work: what they take away in that moment is no error."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable
from pathlib import Path


def live_glob(folder: Path, pattern: str) -> list[Path]:
    """``folder.glob(pattern)`` of folders that are renamed or removed meanwhile: pathlib's own raises then."""
    return [folder / p for p in glob.iglob(pattern, root_dir=folder, recursive=True, include_hidden=True)]


def wait_until(true: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
    """Look every 50 ms. A machine may be slow, so the time is only there that nothing waits for ever."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what}: not after {seconds} s"
        time.sleep(0.05)


def command_line(pid: int) -> str:
    """Of a process, or nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children_of(pid: int, word: str = "") -> set[int]:
    """Those that any of its threads has started and whose command line has ``word``."""
    found: set[int] = set()
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return found
    for task in tasks:
        try:
            found |= {int(c) for c in Path(f"/proc/{pid}/task/{task}/children").read_text().split()}
        except (FileNotFoundError, ProcessLookupError):
            continue
    return {c for c in found if word in command_line(c)}
