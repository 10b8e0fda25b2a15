"""The input side of a batch job: which files, which shards, and reading a shard in batches that never move.

A shard is a range of rows of one file. It depends on the files and ``shard_rows`` alone, and the
batches of a shard are counted from its first row: a resumed job sees the batches that an undisturbed
one sees, so its scores are equal to the last bit.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from recsys.contracts import open_parquet
from recsys.errors import InputError
from recsys.storage import file_size, filesystem, is_url


@dataclass(frozen=True)
class InputFile:
    """One Parquet file (or object) of the input, as its footer describes it."""

    path: str | Path
    rows: int
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.path).name


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of input file number ``file``; ``number`` counts shards over the whole job."""

    number: int
    file: int
    start: int
    stop: int

    def identity(self) -> dict[str, int]:
        """The shard as JSON-able values."""
        return asdict(self)


def find_inputs(patterns: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """Files named by paths, addresses (s3://...) and globs of either, in the order given; a glob's matches are sorted.

    Raises:
        InputError: a path that is not there, a folder, a glob without a match, or the same file twice.
    """
    given = [patterns] if isinstance(patterns, str | Path) else list(patterns)
    found: list[str | Path] = []
    for pattern in map(str, given):
        if is_url(pattern):
            found += _objects(pattern)
            continue
        if Path(pattern).is_dir():
            raise InputError("is a folder", file=pattern, expected=f"Parquet files, such as '{pattern}/*.parquet'")
        matches = [Path(pattern)] if Path(pattern).is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not matches:
            raise InputError("no such file", file=pattern, expected="a Parquet file or a glob that matches some")
        found += matches
    if not found:
        raise InputError("no input", file="--input", expected="at least one Parquet file")
    twice = next((p for i, p in enumerate(found) if p in found[:i]), None)
    if twice is not None:
        raise InputError("named twice", file=twice, expected="every input file once")
    return found


def _objects(pattern: str) -> list[str | Path]:
    from pyarrow.fs import FileSelector

    if not any(c in pattern for c in "*?["):
        if file_size(pattern) is None:
            raise InputError("no such file", file=pattern, expected="a Parquet object or a glob that matches some")
        return [pattern]
    system, path = filesystem(pattern)
    fixed = path[: min(path.index(c) for c in "*?[" if c in path)].rpartition("/")[0]
    address = pattern[: len(pattern) - len(path)]
    try:
        listed = system.get_file_info(FileSelector(fixed, recursive=True, allow_not_found=True))
    except OSError as error:
        raise InputError("cannot be listed", file=pattern, got=str(error).splitlines()[0],
                         expected="a reachable endpoint and the right to list") from None
    wanted = re.compile(_translate(path))
    found = sorted(f.path for f in listed if f.is_file and wanted.match(f.path))
    if not found:
        raise InputError("no such file", file=pattern, expected="a glob that matches some Parquet objects")
    return [address + p for p in found]


def _translate(pattern: str) -> str:
    """A glob as a regular expression: ``*`` and ``?`` stay within a folder, ``**/`` crosses folders."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^\]]*\])", pattern)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(p) or (p.replace("[!", "[^") if p[:1] == "[" else re.escape(p)) for p in parts) + r"\Z"


def read_inputs(paths: Sequence[str | Path]) -> list[InputFile]:
    """Rows and columns of every file.

    Raises:
        InputError: a file that is no complete Parquet file, or no row in any of them.
    """
    files = []
    for path in paths:
        parquet = open_parquet(path)
        columns = tuple(parquet.schema_arrow.names)
        files.append(InputFile(path, parquet.metadata.num_rows, columns))
    if not any(f.rows for f in files):
        raise InputError("no rows", file=files[0].path, got="0 rows", expected="at least one row")
    return files


def plan_shards(files: Sequence[InputFile], shard_rows: int) -> list[Shard]:
    """Cut every file into ranges of ``shard_rows`` rows (the last one of a file may be shorter)."""
    ranges = [(i, start, min(start + shard_rows, f.rows))
              for i, f in enumerate(files) for start in range(0, f.rows, shard_rows)]
    return [Shard(n, *r) for n, r in enumerate(ranges)]


class RowReader:
    """Reads row ranges of one Parquet file in fixed batches, holding about one batch in memory.

    Ranges read in ascending order share one pass over the file; a jump skips whole row groups.

    Args:
        path: the file.
        columns: columns to read.
        batch_rows: rows of a batch.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], batch_rows: int) -> None:
        self.path, self._columns, self._batch_rows = path, list(columns), batch_rows
        self._file = open_parquet(path)
        self._position = 0
        self._rest: list[pa.RecordBatch] = []
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._seek(0)

    def read(self, start: int, stop: int) -> Iterator[pa.Table]:
        """Rows [start, stop) as tables of ``batch_rows`` rows, counted from ``start``.

        Raises:
            InputError: the file's pages are damaged.
        """
        if start != self._position:
            self._seek(start)
        while self._position < stop:
            yield self._take(min(self._batch_rows, stop - self._position))

    def _seek(self, row: int) -> None:
        metadata, first, group = self._file.metadata, 0, 0
        while group < metadata.num_row_groups and first + metadata.row_group(group).num_rows <= row:
            first += metadata.row_group(group).num_rows
            group += 1
        groups = list(range(group, metadata.num_row_groups))
        self._batches = self._file.iter_batches(self._batch_rows, row_groups=groups, columns=self._columns)
        self._rest, self._position = [], first
        while self._position < row:
            self._take(min(self._batch_rows, row - self._position))

    def _take(self, rows: int) -> pa.Table:
        have = sum(b.num_rows for b in self._rest)
        while have < rows:
            batch = self._next()
            self._rest.append(batch)
            have += batch.num_rows
        whole = pa.Table.from_batches(self._rest)
        left = whole.slice(rows)
        self._rest = left.to_batches() if left.num_rows else []
        self._position += rows
        return whole.slice(0, rows)

    def _next(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except (pa.ArrowException, OSError, StopIteration) as error:
            if isinstance(error, OSError) and is_url(self.path):
                raise  # more likely the network than the file: finished shards must stay
            got = (str(error).splitlines() or ["fewer rows than its footer says"])[0]
            raise InputError("damaged Parquet file", file=self.path, got=got,
                             expected="a complete Parquet file") from None
