"""Batch scoring: Parquet in, SCORES Parquet out, no row lost or doubled, whenever the job is killed.

    manifest = score_batch("work/model", ["work/split/test.parquet"], "work/scores")

The input is cut into shards; each shard becomes one part file and one record. A rerun skips every
shard whose files still have the recorded checksums. Memory holds one batch, one row group of output
and the ads table, whatever the size of the input.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import __version__
from recsys.contracts import SCORES, open_parquet
from recsys.errors import InputError, RecsysError
from recsys.log import log, progress
from recsys.serving.inputs import InputFile, RowReader, Shard, find_inputs, plan_shards, read_inputs
from recsys.serving.job import (
    REJECTED_FILE,
    STAGE,
    Job,
    PartWriter,
    check_folder,
    discard,
    gather_rejected,
    only_writer,
    open_job,
    sweep,
)
from recsys.serving.protocol import HEAD_COLUMNS, ScorerLike, device_of, load_scorer, score_rows
from recsys.serving.rows import REJECTED, ROW, Pairs, reject
from recsys.stage import MANIFEST, read_manifest, sha256_file, sha256_json, write_json

_PROBE_ROWS = 256


@dataclass
class _Work:
    """What scoring a shard needs: it holds no open output, so that another worker could take the shard."""

    scorer: ScorerLike
    pairs: Pairs
    files: list[InputFile]
    schema: pa.Schema
    batch_rows: int


def score_batch(
    model: str | Path,
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    ads: str | Path | None = None,
    shard_rows: int = 200_000,
    batch_rows: int = 16_384,
    keep: Sequence[str] = (),
    device: str = "auto",
    scorer: ScorerLike | None = None,
) -> dict[str, Any]:
    """Score every (request, ad) of the input and write SCORES.

    Args:
        model: model folder (``recsys train``).
        input: Parquet files or globs of impressions, or of requests with a ``candidates`` list.
        output: output folder, new, empty, or of an earlier scoring job.
        ads: ads.parquet; rows with a ``candidates`` list become one row per candidate, whose ad features and bid
            are looked up here (a null list stands for the row's own ``ad_id``). Without it rows are scored as they are.
        shard_rows: input rows of a shard; a shard is the unit of work that a rerun skips.
        batch_rows: most pairs that the model sees at once.
        keep: further input columns to carry into the output (slot, surface, ...).
        device: auto | cpu | cuda.
        scorer: the loaded model of that folder, where the caller has it already.

    Returns:
        The manifest; ``rows`` are input, pairs, scored, rejected (pairs = scored + rejected); ``facts`` has model id,
        schema hash, scored_at, seconds, device and the parts with their SHA-256; ``cached`` is true where every
        shard was finished already.

    Raises:
        InputError: an input file, the ads or the model is not what it should be; nothing of this job is left behind.
        RecsysError: another job writes to the folder, or writing failed; finished shards stay for the rerun.
    """
    if shard_rows < 1 or batch_rows < 1:
        raise InputError("must be at least 1", file="--shard-rows, --batch-rows", got=(shard_rows, batch_rows))
    output, files = Path(output), read_inputs(find_inputs(input))
    check_folder(output)
    scorer = load_scorer(model, device) if scorer is None else scorer
    pairs = Pairs(scorer.columns, keep, batch_rows, None if ads is None else Path(ads))
    work = _Work(scorer, pairs, files, _probe(scorer, pairs, files), batch_rows)
    labels = {"model": model, "ads": ads}
    hashes = {label: sha256_file(path) for label, path in labels.items() if path is not None}
    hashes |= {f"input/{i:05d}/{f.path.name}": f.sha256 for i, f in enumerate(files)}
    config = {"shard_rows": shard_rows, "batch_rows": batch_rows, "keep": list(keep), "model_id": scorer.model_id}
    identity = {"stage": STAGE, "config": config, "inputs": hashes, "version": __version__}
    shards = plan_shards(files, shard_rows)
    was_new = not output.exists() or not any(output.iterdir())
    with only_writer(output):
        job = open_job(output, sha256_json(identity))
        try:
            return _run(job, identity, work, shards)
        except InputError:
            discard(job, shards, was_new)
            raise
        except OSError as error:
            raise RecsysError(f"{output}: {error.strerror or error}; run again to go on from the last shard") from None


def _run(job: Job, identity: dict[str, Any], work: _Work, shards: list[Shard]) -> dict[str, Any]:
    records = [job.finished(s) for s in shards]
    done = sum(r is not None for r in records)
    previous = read_manifest(job.folder)
    rejected_file = job.folder / REJECTED_FILE
    if done == len(shards) and previous is not None and previous.get("key") == job.key \
            and rejected_file.is_file() and sha256_file(rejected_file) == previous["facts"]["rejected_sha256"]:
        log.info("score: up to date, nothing to do (%s)", job.folder)
        return {**previous, "cached": True}
    if done:
        log.info("score: %d of %d shards are finished already (%s)", done, len(shards), job.folder)
    reader: RowReader | None = None
    with progress("rows") as bar:
        total = sum(s.stop - s.start for s in shards)
        task = bar.add_task("score", total=total)
        for i, shard in enumerate(shards):
            if (record := records[i]) is None:
                path = work.files[shard.file].path
                if reader is None or reader.path != path:
                    wanted = work.pairs.wanted(work.files[shard.file].columns, path)
                    reader = RowReader(path, wanted, work.batch_rows)
                records[i] = score_shard(job, shard, work, reader, lambda n: bar.update(task, advance=n))
            else:
                bar.update(task, advance=record["input_rows"])
    finished = [r for r in records if r is not None]
    rejected_rows, rejected_sha = gather_rejected(job, shards, finished)
    manifest = _manifest(job, identity, work, finished, rejected_sha)
    assert manifest["rows"]["rejected"] == rejected_rows, "rejected rows do not add up"
    write_json(job.folder / MANIFEST, manifest)
    sweep(job, shards)
    rows, seconds = manifest["rows"], manifest["facts"]["seconds"]
    log.info("score: %d pairs scored, %d rejected, %.0f pairs/s (%s)", rows["scored"], rows["rejected"],
             rows["scored"] / max(seconds, 1e-9), job.folder)
    return {**manifest, "cached": False}


def score_shard(job: Job, shard: Shard, work: _Work, reader: RowReader,
                on_rows: Callable[[int], None]) -> dict[str, Any]:
    """Score one shard and write its part, its rejected rows and, last, its record.

    Returns:
        The record: part, input_rows, rows, rejected, reasons, seconds, device, sha256, rejected_sha256.
    """
    began, reasons = time.perf_counter(), Counter[str]()
    parts = PartWriter(job.part(shard), work.schema)
    rejects = PartWriter(job.rejected(shard), REJECTED.schema())
    path, at = work.files[shard.file].path, shard.start
    try:
        for table in reader.read(shard.start, shard.stop):
            for pairs, rejected in work.pairs.make(table, path, at):
                scores, refused = _score(work.scorer, pairs, path, work.schema, job.scored_at)
                parts.write(scores)
                for bad in (rejected, refused):
                    rejects.write(bad)
                    reasons.update(f"{c}: {r}" for c, r in zip(bad["column"].to_pylist(), bad["reason"].to_pylist(),
                                                               strict=True))
            at += table.num_rows
            on_rows(table.num_rows)
        record: dict[str, Any] = {"part": job.part(shard).name, "input_rows": shard.stop - shard.start,
                                  "rows": parts.rows, "rejected": rejects.rows, "reasons": dict(reasons)}
        record["sha256"] = parts.close()
        if rejects.rows:
            record["rejected_sha256"] = rejects.close()
        else:
            rejects.abandon()
    except BaseException:
        parts.abandon()
        rejects.abandon()
        raise
    record |= {"seconds": time.perf_counter() - began, "device": device_of(work.scorer)}
    write_json(job.record_file(shard), record)
    return record


def _score(scorer: ScorerLike, pairs: pa.Table, file: Path, schema: pa.Schema,
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


def _probe(scorer: ScorerLike, pairs: Pairs, files: list[InputFile]) -> pa.Schema:
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


def _manifest(job: Job, identity: dict[str, Any], work: _Work, records: list[dict[str, Any]],
              rejected_sha: str) -> dict[str, Any]:
    count: Callable[[str], int] = lambda key: sum(r[key] for r in records)  # noqa: E731
    rows = {"input": count("input_rows"), "pairs": count("rows") + count("rejected"), "scored": count("rows"),
            "rejected": count("rejected")}
    reasons = sum((Counter(r["reasons"]) for r in records), Counter[str]())
    schema = [[f.name, str(f.type), f.nullable] for f in work.schema]
    facts = {
        "model_id": work.scorer.model_id, "scored_at": job.scored_at.isoformat(), "schema": schema,
        "schema_sha256": sha256_json(schema), "seconds": sum(r["seconds"] for r in records),
        "device": ", ".join(sorted({r["device"] for r in records})), "reasons": dict(reasons),
        "rejected_sha256": rejected_sha,
        "parts": [{"name": r["part"], "rows": r["rows"], "sha256": r["sha256"]} for r in records],
    }
    return {**identity, "key": job.key, "rows": rows, "facts": facts,
            "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}


def read_scores(folder: str | Path, columns: list[str] | None = None) -> pa.Table:
    """All SCORES of a finished batch job, in the order of its input.

    Raises:
        InputError: the job is not finished, or a part is missing or damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("stage") != STAGE:
        raise InputError("no finished scoring job", file=folder, expected="a folder with the manifest of recsys score")
    tables = []
    for part in manifest["facts"]["parts"]:
        path = Path(folder) / part["name"]
        if sha256_file(path) != part["sha256"]:
            raise InputError("damaged part", file=path, expected="the checksum of the manifest; score again")
        tables.append(open_parquet(path).read(columns=columns))
    return pa.concat_tables(tables)
