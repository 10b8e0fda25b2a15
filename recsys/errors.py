"""The one family of errors that a user is meant to read.

Every class carries the exit code that the command line ends with, so that a script can tell
bad input (2) from a question that the evidence cannot answer (3).
"""

from __future__ import annotations

from pathlib import Path


class RecsysError(Exception):
    """Base of all errors that end a command with one line instead of a traceback."""

    exit_code = 1
    reported = False
    """Another rank has printed it."""


class InputError(RecsysError):
    """Something the user handed in is not what it should be.

    Args:
        message: what is wrong, in a few words.
        file: the file (or setting) where it stands.
        column: the column or key, where there is one.
        row: zero-based row within the file, where there is one.
        got: the offending value, shortened to 80 characters.
        expected: what would have been right.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        column: str | None = None,
        row: int | None = None,
        got: object = None,
        expected: str | None = None,
    ) -> None:
        self.message, self.file, self.column, self.row = message, file, column, row
        self.got, self.expected = got, expected
        super().__init__(self._line())

    def _line(self) -> str:
        where = [str(self.file)] if self.file is not None else []
        if self.column is not None:
            where.append(f"column {self.column}")
        if self.row is not None:
            where.append(f"row {self.row}")
        parts = [", ".join(where) + ": " + self.message if where else self.message]
        if self.got is not None:
            text = " ".join(repr(self.got).split())
            parts.append("got " + (text if len(text) <= 80 else text[:77] + "..."))
        if self.expected is not None:
            parts.append("expected " + self.expected)
        return "; ".join(parts)


class Refused(RecsysError):
    """The evidence cannot carry the number that was asked for; the message says why and what would mend it."""

    exit_code = 3


class Stopped(BaseException):
    """Work was asked to end (SIGTERM) and has saved where it stands; the message says where.

    Not an ``Exception``: nothing catches it on the way and nothing is cleared away; the same command goes on. The
    command line exits with 128 + 15, as a process does that SIGTERM has ended.
    """

    exit_code = 143
