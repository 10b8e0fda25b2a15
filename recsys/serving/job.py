"""The output side of a batch job: what is finished and what it says about itself.

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
import fnmatch
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.contracts import open_parquet
from recsys.errors import InputError
from recsys.serving.inputs import Shard
from recsys.serving.places import Place
from recsys.serving.rows import REJECTED
from recsys.stage import MANIFEST, sha256_file, sha256_json
from recsys.storage import join

STAGE = "score"
JOB = "job.json"
REJECTED_FILE = "rejected.parquet"


@dataclass(frozen=True)
class Job:
    """One output folder and the job that fills it.

    Attributes:
        place: output folder.
        key: hash of everything that the scores depend on.
        scored_at: the one time written into every row, fixed when the job first started.
    """

    place: Place
    key: str
    scored_at: dt.datetime
    _seen: dict[int, dict[str, Any]] = field(default_factory=dict, compare=False)

    def part(self, shard: Shard) -> str:
        """Name of the shard's SCORES file."""
        return f"part-{self.name(shard)}.parquet"

    def rejected(self, shard: Shard) -> str:
        """Name of the shard's REJECTED file; there only if rows were rejected."""
        return f"_shards/{self.name(shard)}.rejected.parquet"

    def record_file(self, shard: Shard) -> str:
        """Name of the shard's record, written after its other files."""
        return f"_shards/{self.name(shard)}.json"

    def finished(self, shard: Shard) -> dict[str, Any] | None:
        """The shard's record, if its files are there and are the recorded ones; looked at once in a process."""
        if shard.number in self._seen:
            return self._seen[shard.number]
        try:
            record = json.loads(self.place.read(self.record_file(shard)) or b"")
            if self.place.mark(self.part(shard)) != record["mark"]:
                return None
            if record["rejected"] and self.place.mark(self.rejected(shard)) != record["rejected_mark"]:
                return None
        except (OSError, ValueError, KeyError, InputError):
            return None
        self._seen[shard.number] = record
        return dict(record)

    def name(self, shard: Shard) -> str:
        """What the names of the shard's files have in common."""
        return f"{shard.number:05d}-{sha256_json([self.key, shard.identity()])[:12]}"


def new_job(key: str) -> dict[str, Any]:
    """Contents of job.json for a job that starts now."""
    return {"stage": STAGE, "key": key, "scored_at": dt.datetime.now(dt.UTC).isoformat()}


def check_folder(place: Place) -> dict[str, Any] | None:
    """The job.json of an output folder, or None where it is new or empty.

    Raises:
        InputError: the folder holds something that no batch job wrote, or is a file.
    """
    folder = place.folder
    if isinstance(folder, Path) and folder.exists() and not folder.is_dir():
        raise InputError("is a file", file=folder, expected="an output folder")
    if not [n for n in place.names() if not n.startswith("_shards/") and not n.endswith(".partial")]:
        return None
    try:
        started = json.loads(place.read(JOB) or b"")
        dt.datetime.fromisoformat(started["scored_at"])
        if started["stage"] == STAGE and isinstance(started["key"], str):
            return dict(started)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError("the output folder holds something that is not a scoring job's output", file=folder,
                     expected="an empty or new folder")


def finished_manifest(place: Place) -> dict[str, Any] | None:
    """The manifest, or None where no job is finished there.

    Raises:
        InputError: damaged.
    """
    data = place.read(MANIFEST)
    try:
        return None if data is None else dict(json.loads(data))
    except ValueError as error:
        raise InputError("damaged manifest", file=join(place.folder, MANIFEST), got=str(error),
                         expected="JSON") from None


class PartWriter:
    """Writes one Parquet file that appears under its name only when it is complete.

    Rows are gathered into row groups of 131,072, whatever the size of the tables handed in.
    """

    _GROUP = 1 << 17

    def __init__(self, place: Place, name: str, schema: pa.Schema, plain: list[str] | None = None) -> None:
        self._place, self._name, self._partial = place, name, place.temporary(name)
        self._schema, self._plain = schema, plain or []
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._waiting.append(table)
        self.rows += table.num_rows
        if sum(t.num_rows for t in self._waiting) >= self._GROUP:
            self._flush()

    def close(self) -> tuple[str, str]:
        """Finish the file; returns its SHA-256 and its mark (:meth:`Place.mark`)."""
        self._flush()
        self._open().close()
        sha = sha256_file(self._partial)
        self._place.publish(self._partial, self._name)
        return sha, self._place.mark(self._name) or ""

    def abandon(self) -> None:
        """Leave nothing behind."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError:  # a full disk: there is nothing to keep anyway
            pass
        self._partial.unlink(missing_ok=True)

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            # Dictionaries of values that hardly repeat cost more than they save.
            coded = [n for n in self._schema.names if n not in self._plain]
            self._writer = pq.ParquetWriter(self._partial, self._schema, compression="zstd", use_dictionary=coded)
        return self._writer

    def _flush(self) -> None:
        if self._waiting:
            whole = pa.concat_tables(self._waiting).combine_chunks()
            self._open().write_table(whole, row_group_size=self._GROUP)
            self._waiting = []


def gather_rejected(job: Job, shards: list[Shard], records: list[dict[str, Any]]) -> tuple[int, str, str]:
    """Write OUT/rejected.parquet from the shards' files; returns its rows, SHA-256 and mark."""
    writer = PartWriter(job.place, REJECTED_FILE, REJECTED.schema())
    try:
        for shard, record in zip(shards, records, strict=True):
            if record["rejected"]:
                for batch in open_parquet(join(job.place.folder, job.rejected(shard))).iter_batches():
                    writer.write(pa.Table.from_batches([batch], REJECTED.schema()))
        return (writer.rows, *writer.close())
    except BaseException:
        writer.abandon()
        raise


def sweep(job: Job, shards: list[Shard]) -> None:
    """Delete parts and records of other jobs, locks, and partial files of killed workers, once the manifest stands."""
    mine = {f(s) for s in shards for f in (job.part, job.rejected, job.record_file)}
    patterns = ("part-*.parquet", "_shards/*-*.json", "_shards/*.rejected.parquet", "_shards/*-*.lock", ".*.partial",
                "_shards/.*.partial")
    for name in job.place.names():
        if name not in mine and any(fnmatch.fnmatchcase(name, p) for p in patterns):
            job.place.remove(name)


def discard(job: Job, shards: list[Shard], was_new: bool) -> None:
    """Take back what this job wrote: bad input leaves nothing half-written."""
    for shard in shards:
        for name in (job.record_file(shard), job.rejected(shard), job.part(shard)):
            job.place.remove(name)
    previous = finished_manifest(job.place)
    if previous is not None:  # the finished job before this one stands again
        facts = {"stage": STAGE, "key": previous["key"], "scored_at": previous["facts"]["scored_at"]}
        job.place.put(JOB, (json.dumps(facts, indent=2) + "\n").encode())
        return
    for name in job.place.names():
        if name in (JOB, REJECTED_FILE, "_shards/lock") or name.endswith((".lock", ".partial")):
            job.place.remove(name)
    folder = job.place.folder
    if isinstance(folder, Path):
        for inner in (folder / "_shards", folder):
            if was_new and inner.exists() and not any(inner.iterdir()):
                inner.rmdir()
