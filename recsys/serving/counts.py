"""Counts that several threads add to."""

from __future__ import annotations

import threading
from collections import Counter


class Counts(Counter[str]):
    """A Counter whose :meth:`add` loses nothing between threads."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def add(self, **more: int) -> None:
        """Add to several counts at once."""
        with self._lock:
            self.update(more)
