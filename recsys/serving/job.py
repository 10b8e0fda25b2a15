"""The output side of a batch job: what is finished, what it says about itself, and one writer at a time.

    OUT/job.json                        the job's key and its one `scored_at`; written first
    OUT/part-00000-HASH.parquet         SCORES of shard 0; HASH is of the job's key and the shard
    OUT/_shards/00000-HASH.json         the shard's record: rows, seconds, SHA-256 of its files; its commit mark
    OUT/_shards/00000-HASH.rejected.parquet
    OUT/rejected.parquet                REJECTED of all shards
    OUT/manifest.json                   written last; a folder without it is not a finished job

Parts stand in the output folder from the start, because an object store cannot rename a folder: a
reader goes by the manifest (:func:`recsys.serving.read_scores`).
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.contracts import open_parquet
from recsys.errors import InputError, RecsysError
from recsys.serving.inputs import Shard
from recsys.serving.rows import REJECTED
from recsys.stage import read_manifest, sha256_file, sha256_json, write_json

STAGE = "score"
JOB = "job.json"
REJECTED_FILE = "rejected.parquet"


@dataclass(frozen=True)
class Job:
    """One output folder and the job that fills it.

    Attributes:
        folder: output folder.
        key: hash of everything that the scores depend on.
        scored_at: the one time written into every row, fixed when the job first started.
    """

    folder: Path
    key: str
    scored_at: dt.datetime

    def part(self, shard: Shard) -> Path:
        """The shard's SCORES file."""
        return self.folder / f"part-{self._name(shard)}.parquet"

    def rejected(self, shard: Shard) -> Path:
        """The shard's REJECTED file; there only if rows were rejected."""
        return self.folder / "_shards" / f"{self._name(shard)}.rejected.parquet"

    def record_file(self, shard: Shard) -> Path:
        """The shard's record, written after its other files."""
        return self.folder / "_shards" / f"{self._name(shard)}.json"

    def finished(self, shard: Shard) -> dict[str, Any] | None:
        """The shard's record, if its files are there and have the recorded checksums."""
        try:
            record = json.loads(self.record_file(shard).read_text())
            if sha256_file(self.part(shard)) != record["sha256"]:
                return None
            if record["rejected"] and sha256_file(self.rejected(shard)) != record["rejected_sha256"]:
                return None
        except (OSError, ValueError, KeyError, InputError):
            return None
        return dict(record)

    def _name(self, shard: Shard) -> str:
        return f"{shard.number:05d}-{sha256_json([self.key, shard.identity()])[:12]}"


def open_job(folder: Path, key: str) -> Job:
    """Start a job in a folder, or take up the one with the same key that was started there.

    Raises:
        InputError: the folder holds something that no batch job wrote.
    """
    now = dt.datetime.now(dt.UTC)
    started = check_folder(folder)
    if started is not None and started["key"] == key:
        return Job(folder, key, dt.datetime.fromisoformat(started["scored_at"]))
    write_json(folder / JOB, {"stage": STAGE, "key": key, "scored_at": now.isoformat()})
    return Job(folder, key, now)


def check_folder(folder: Path) -> dict[str, Any] | None:
    """The job.json of an output folder, or None where it is new or empty.

    Raises:
        InputError: the folder holds something that no batch job wrote, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file", file=folder, expected="an output folder")
    if not folder.exists() or not any(p.name != "_shards" for p in folder.iterdir()):
        return None
    try:
        started = json.loads((folder / JOB).read_text())
        dt.datetime.fromisoformat(started["scored_at"])
        if started["stage"] == STAGE and isinstance(started["key"], str):
            return dict(started)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError("the output folder holds something that is not a scoring job's output", file=folder,
                     expected="an empty or new folder")


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it ends."""
    (folder / "_shards").mkdir(parents=True, exist_ok=True)
    with (folder / "_shards" / "lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecsysError(f"{folder}: another scoring job is writing there") from None
        yield


class PartWriter:
    """Writes one Parquet file that appears under its name only when it is complete.

    Rows are gathered into row groups of 131,072, whatever the size of the tables handed in.
    """

    _GROUP = 1 << 17

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._writer = pq.ParquetWriter(self._partial, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._schema, self.rows = schema, 0

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._waiting.append(table)
        self.rows += table.num_rows
        if sum(t.num_rows for t in self._waiting) >= self._GROUP:
            self._flush()

    def close(self) -> str:
        """Finish the file; returns its SHA-256."""
        self._flush()
        self._writer.close()
        os.replace(self._partial, self._path)
        return sha256_file(self._path)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._writer.close()
        self._partial.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._waiting:
            whole = pa.concat_tables(self._waiting).combine_chunks()
            self._writer.write_table(whole, row_group_size=self._GROUP)
            self._waiting = []


def gather_rejected(job: Job, shards: list[Shard], records: list[dict[str, Any]]) -> tuple[int, str]:
    """Write OUT/rejected.parquet from the shards' files; returns its rows and SHA-256."""
    writer = PartWriter(job.folder / REJECTED_FILE, REJECTED.schema())
    try:
        for shard, record in zip(shards, records, strict=True):
            if record["rejected"]:
                for batch in open_parquet(job.rejected(shard)).iter_batches():
                    writer.write(pa.Table.from_batches([batch], REJECTED.schema()))
        return writer.rows, writer.close()
    except BaseException:
        writer.abandon()
        raise


def sweep(job: Job, shards: list[Shard]) -> None:
    """Delete parts and records of other jobs, and partial files of killed ones, once the manifest stands."""
    mine = {f(s).name for s in shards for f in (job.part, job.rejected, job.record_file)}
    for pattern in ("part-*.parquet", "_shards/*-*.json", "_shards/*.rejected.parquet", ".*.partial",
                    "_shards/.*.partial"):
        for path in job.folder.glob(pattern):
            if path.name not in mine:
                path.unlink(missing_ok=True)


def discard(job: Job, shards: list[Shard], was_new: bool) -> None:
    """Take back what this job wrote: bad input leaves nothing half-written."""
    for shard in shards:
        for path in (job.record_file(shard), job.rejected(shard), job.part(shard)):
            path.unlink(missing_ok=True)
    previous = read_manifest(job.folder)
    if previous is not None:  # the finished job before this one stands again
        facts = {"stage": STAGE, "key": previous["key"], "scored_at": previous["facts"]["scored_at"]}
        write_json(job.folder / JOB, facts)
        return
    for name in (JOB, REJECTED_FILE, "_shards/lock"):
        (job.folder / name).unlink(missing_ok=True)
    for folder in (job.folder / "_shards", job.folder):
        if was_new and not any(folder.iterdir()):
            folder.rmdir()
