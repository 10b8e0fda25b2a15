"""Scoring one shard: rows in, a part, rejected rows and a record out; the same bytes whoever does it."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.contracts import SCORES
from recsys.errors import InputError
from recsys.serving.inputs import InputFile, RowReader, Shard
from recsys.serving.job import Job, PartWriter
from recsys.serving.protocol import HEAD_COLUMNS, ScorerLike, device_of, score_rows
from recsys.serving.rows import REJECTED, ROW, Pairs, reject

_PROBE_ROWS = 256
_PLAIN = ["request_id", *HEAD_COLUMNS.values(), "expected_value"]


@dataclass
class Work:
    """What scoring a shard needs."""

    scorer: ScorerLike
    pairs: Pairs
    files: list[InputFile]
    schema: pa.Schema
    batch_rows: int
    reader: RowReader | None = None

    def rows_of(self, file: int) -> RowReader:
        """A reader of an input file; the last one is kept, as shards mostly follow each other."""
        path = self.files[file].path
        if self.reader is None or self.reader.path != path:
            self.reader = RowReader(path, self.pairs.wanted(self.files[file].columns, path), self.batch_rows)
        return self.reader


@dataclass(frozen=True)
class Task:
    """A job as a worker in another process is told of it: what :class:`Work` and :class:`Job` are made from."""

    model: str
    model_sha256: str
    ads: str | None
    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    output: str
    key: str
    scored_at: dt.datetime
    schema: pa.Schema
    batch_rows: int
    keep: tuple[str, ...]
    device: str


def score_shard(job: Job, shard: Shard, work: Work, on_rows: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Score one shard and write its part, its rejected rows and, last, its record.

    Returns:
        The record: part, input_rows, rows, rejected, reasons, seconds, device, and SHA-256 and mark of the files.
    """
    began, reasons = time.perf_counter(), Counter[str]()
    parts = PartWriter(job.place, job.part(shard), work.schema, _PLAIN)
    rejects = PartWriter(job.place, job.rejected(shard), REJECTED.schema())
    path, at = work.files[shard.file].path, shard.start
    try:
        for table in work.rows_of(shard.file).read(shard.start, shard.stop):
            for pairs, rejected in work.pairs.make(table, path, at):
                scores, refused = _score(work.scorer, pairs, path, work.schema, job.scored_at)
                parts.write(scores)
                for bad in (rejected, refused):
                    if bad.num_rows:
                        rejects.write(bad)
                        reasons.update(f"{c}: {r}" for c, r in zip(bad["column"].to_pylist(),
                                                                   bad["reason"].to_pylist(), strict=True))
            at += table.num_rows
            if on_rows is not None:
                on_rows(table.num_rows)
        record: dict[str, Any] = {"part": job.part(shard), "input_rows": shard.stop - shard.start,
                                  "rows": parts.rows, "rejected": rejects.rows, "reasons": dict(reasons)}
        if (there := job.finished(shard)) is not None:
            # In an object store a claim can expire under its holder; what another worker has finished stays as it is.
            parts.abandon()
            rejects.abandon()
            return there
        record["sha256"], record["mark"] = parts.close()
        if rejects.rows:
            record["rejected_sha256"], record["rejected_mark"] = rejects.close()
        else:
            rejects.abandon()
    except BaseException:
        work.reader = None  # it stands in the middle of a batch
        parts.abandon()
        rejects.abandon()
        raise
    record |= {"seconds": time.perf_counter() - began, "device": device_of(work.scorer)}
    job.place.put(job.record_file(shard), (json.dumps(record, indent=2) + "\n").encode())
    return record


def probe(scorer: ScorerLike, pairs: Pairs, files: list[InputFile]) -> pa.Schema:
    """Score the first rows of every file before anything is written; returns the schema of the parts."""
    if "click" not in scorer.heads:
        raise InputError("model without a click head", got=list(scorer.heads), expected="click among the heads")
    heads = [c for h, c in HEAD_COLUMNS.items() if h in scorer.heads]
    names = ["request_id", "user_id", "ad_id", *heads, "expected_value", "model_id", "scored_at"]
    schema: pa.Schema | None = None
    for file in files:
        reader = RowReader(file.path, pairs.wanted(file.columns, file.path), _PROBE_ROWS)
        for table in reader.read(0, min(file.rows, _PROBE_ROWS)):
            for made, _ in pairs.make(table, file.path, 0):
                kept = [made.schema.field(n) for n in pairs.keep]
                mine = pa.schema([*SCORES.schema(names), *(pa.field(f.name, f.type) for f in kept)])
                if schema is not None and mine != schema:
                    raise InputError("kept columns of other types than in the first file", file=file.path,
                                     got=[str(f.type) for f in kept], expected="equal types in all files")
                schema = mine
                _score(scorer, made, file.path, schema, dt.datetime.now(dt.UTC))
    assert schema is not None, "read_inputs refuses an input without rows"
    return schema


def _score(scorer: ScorerLike, pairs: pa.Table, file: str | Path, schema: pa.Schema,
           scored_at: dt.datetime) -> tuple[pa.Table, pa.Table]:
    """SCORES of the pairs, and those for which the model gives no probability."""
    n, empty = pairs.num_rows, REJECTED.schema().empty_table()
    if n == 0:
        return schema.empty_table(), empty
    heads = score_rows(scorer, pairs.select(scorer.columns), file)
    good = np.ones(n, bool)
    for values in heads.values():
        good &= (values >= 0) & (values <= 1)  # false for NaN
    click = pa.array(heads["click"])
    columns: dict[str, Any] = {name: pairs[name] for name in pairs.column_names if name != ROW}
    columns |= {HEAD_COLUMNS[h]: pa.array(v) for h, v in heads.items()}
    columns["expected_value"] = pc.multiply(click, pairs["bid"])
    columns["model_id"] = pa.repeat(pa.scalar(scorer.model_id), n)
    columns["scored_at"] = pa.repeat(pa.scalar(scored_at, schema.field("scored_at").type), n)
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    if good.all():
        return table, empty
    mask = pa.array(good)
    return table.filter(mask), reject(pairs.filter(pc.invert(mask)), file, "model", "no finite probability")
