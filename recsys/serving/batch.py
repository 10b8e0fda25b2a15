"""Batch scoring: Parquet in, SCORES Parquet out, no row lost or doubled, whenever a worker is killed.

    manifest = score_batch("work/model", ["work/split/test.parquet"], "work/scores")

The input is cut into shards; each shard becomes one part file and one record. Any number of workers, processes of this
call or further calls on other machines, take shards that nobody else has; a rerun skips every shard whose files still
are the recorded ones. A worker holds one batch, one row group of output and the ads table, however large the input.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from recsys import __version__
from recsys.contracts import open_parquet
from recsys.errors import InputError, RecsysError
from recsys.log import log, progress
from recsys.serving.inputs import Shard, find_inputs, plan_shards, read_inputs
from recsys.serving.job import (
    REJECTED_FILE,
    STAGE,
    Job,
    check_folder,
    discard,
    finished_manifest,
    gather_rejected,
    new_job,
    sweep,
)
from recsys.serving.places import place
from recsys.serving.processes import Processes
from recsys.serving.protocol import ScorerLike, device_of, load_scorer
from recsys.serving.rows import Pairs
from recsys.serving.shards import Task, Work, probe
from recsys.serving.workers import (
    default_workers,
    likely_device,
    require_ray,
    run_here,
    run_processes,
    run_ray,
    wait,
    worker_processes,
)
from recsys.stage import MANIFEST, sha256_file, sha256_json
from recsys.storage import as_location, is_url, join

Engine = Literal["local", "ray"]


def score_batch(
    model: str | Path,
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    ads: str | Path | None = None,
    shard_rows: int = 131_072,
    batch_rows: int = 16_384,
    keep: Sequence[str] = (),
    device: str = "auto",
    scorer: ScorerLike | None = None,
    workers: int | None = None,
    engine: Engine = "local",
) -> dict[str, Any]:
    """Score every (request, ad) of the input and write SCORES.

    Args:
        model: model folder (``recsys train``) or bundle (``recsys export``).
        input: Parquet files, addresses (s3://, gs://, abfs://) or globs of impressions, or of requests with a
            ``candidates`` list.
        output: output folder or address, new, empty, or of an earlier scoring job. Several calls for the same job share
            its shards.
        ads: ads.parquet; rows with a ``candidates`` list become one row per candidate, whose ad features and bid
            are looked up here (a null list stands for the row's own ``ad_id``). Without it rows are scored as they are.
        shard_rows: input rows of a shard; a shard is the unit of work that a rerun skips.
        batch_rows: most pairs that the model sees at once.
        keep: further input columns to carry into the output (slot, surface, ...).
        device: auto | cpu | cuda.
        scorer: the loaded model of that folder, where the caller has it already; then all is done in this process.
        workers: processes on this machine; default: one a core, where there is work for them. On a GPU one.
        engine: ``ray``: shards are tasks of the Ray cluster that is running, or of one started on this machine; model
            and output must be reachable from its nodes under the same names.

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
    if workers is not None and workers < 1:
        raise InputError("must be at least 1", file="--workers", got=workers)
    if engine == "ray" and scorer is not None:
        raise InputError("a model in this process cannot be sent to Ray", file="--engine", expected="a model folder")
    if engine == "ray":
        require_ray()
    output, files = as_location(output), read_inputs(find_inputs(input))
    target, shards = place(output), plan_shards(files, shard_rows)
    check_folder(target)
    with worker_processes(_named(model), device) as processes:
        if engine == "local" and scorer is None and target.read(MANIFEST) is None:
            # They load the model while this process does; where there is no work in the end, they go again.
            processes.start(min(workers or default_workers(shards, likely_device(device)), len(shards)) - 1)
        loaded = load_scorer(model, device) if scorer is None else scorer
        pairs = Pairs(loaded.columns, keep, batch_rows, None if ads is None else Path(ads))
        work = Work(loaded, pairs, files, probe(loaded, pairs, files), batch_rows)
        labels = {"model": model, "ads": ads}
        hashes = {label: sha256_file(path) for label, path in labels.items() if path is not None}
        hashes |= {f"input/{i:05d}/{f.name}": sha256_file(f.path) for i, f in enumerate(files)}
        config = {"shard_rows": shard_rows, "batch_rows": batch_rows, "keep": list(keep), "model_id": loaded.model_id}
        identity = {"stage": STAGE, "config": config, "inputs": hashes, "version": __version__}
        key, was_new = sha256_json(identity), not target.names()
        # From here on the folder is written to.
        try:
            with target.start(key, new_job(key)) as started:
                job = Job(target, key, dt.datetime.fromisoformat(started["scored_at"]))
                task = Task(_named(model), hashes["model"], None if ads is None else _named(ads),
                            tuple(replace(f, path=_named(f.path)) for f in files), tuple(shards), _named(output), key,
                            job.scored_at, work.schema, batch_rows, tuple(keep), device)
                try:
                    return _run(job, identity, work, shards, task, engine, workers,
                                processes if scorer is None else None)
                except InputError:
                    discard(job, shards, was_new)
                    raise
        except OSError as error:
            raise RecsysError(f"{output}: {error.strerror or error}; run again to go on from the last shard") from None


def _named(path: str | Path) -> str:
    """What a worker that may start in another folder finds it by."""
    return str(path) if is_url(path) else str(Path(path).absolute())


def _run(job: Job, identity: dict[str, Any], work: Work, shards: list[Shard], task: Task, engine: Engine,
         workers: int | None, processes: Processes | None) -> dict[str, Any]:
    left = [s for s in shards if job.finished(s) is None]
    if not left and (previous := _intact(job)) is not None:
        if _names_parts(previous, job, shards):
            log.info("score: up to date, nothing to do (%s)", job.place.folder)
            return {**previous, "cached": True}
        job.place.remove(MANIFEST)  # and written anew
    if len(left) < len(shards):
        log.info("score: %d of %d shards are finished already (%s)", len(shards) - len(left), len(shards),
                 job.place.folder)
    with progress("rows") as bar:
        total = bar.add_task("score", total=sum(s.stop - s.start for s in shards))

        def done(shard: Shard) -> None:
            bar.update(total, advance=shard.stop - shard.start)

        for shard in shards:
            if shard not in left:
                done(shard)
        if engine == "ray":
            run_ray(task, job, left, done, workers)
        elif left:
            count = min(workers or default_workers(left, device_of(work.scorer)), len(left))
            if processes is not None and count > 1:
                run_processes(processes, task, job, left, work, count, done)
            else:
                run_here(job, left, work, done)
    return _finish(job, identity, work, shards)


def _intact(job: Job) -> dict[str, Any] | None:
    """The manifest of this job, where it is there and its rejected rows are."""
    previous = finished_manifest(job.place)
    if previous is None or previous.get("key") != job.key \
            or job.place.mark(REJECTED_FILE) != previous["facts"]["rejected_mark"]:
        return None
    return previous


def _names_parts(manifest: dict[str, Any], job: Job, shards: list[Shard]) -> bool:
    """Whether a manifest names the parts that are there: in a store, where a part that is written again is another
    object, a worker that had lost its claim may have done so behind the manifest."""
    marks = [record["mark"] for s in shards if (record := job.finished(s)) is not None]
    return marks == [part["mark"] for part in manifest["facts"]["parts"]]


def _finish(job: Job, identity: dict[str, Any], work: Work, shards: list[Shard]) -> dict[str, Any]:
    """Write the manifest, or find that another worker has."""
    records = [r for s in shards if (r := job.finished(s)) is not None]
    if len(records) < len(shards):
        raise RecsysError(f"{job.place.folder}: {len(shards) - len(records)} of {len(shards)} shards are not finished; "
                          "run again to go on")
    attempt = 0
    while True:
        with job.place.claim("manifest") as mine:
            if (there := _intact(job)) is not None:
                return {**there, "cached": False}
            if mine:
                rejected_rows, sha, mark = gather_rejected(job, shards, records)
                manifest = _manifest(job, identity, work, records, sha, mark)
                assert manifest["rows"]["rejected"] == rejected_rows, "rejected rows do not add up"
                job.place.put(MANIFEST, (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode())
                sweep(job, shards)
                break
        wait(attempt)
        attempt += 1
    rows, seconds = manifest["rows"], manifest["facts"]["seconds"]
    log.info("score: %d pairs scored, %d rejected, %.0f pairs/s a worker (%s)", rows["scored"], rows["rejected"],
             rows["scored"] / max(seconds, 1e-9), job.place.folder)
    return {**manifest, "cached": False}


def _manifest(job: Job, identity: dict[str, Any], work: Work, records: list[dict[str, Any]], rejected_sha: str,
              rejected_mark: str) -> dict[str, Any]:
    count: Callable[[str], int] = lambda key: sum(r[key] for r in records)  # noqa: E731
    rows = {"input": count("input_rows"), "pairs": count("rows") + count("rejected"), "scored": count("rows"),
            "rejected": count("rejected")}
    reasons = sum((Counter(r["reasons"]) for r in records), Counter[str]())
    schema = [[f.name, str(f.type), f.nullable] for f in work.schema]
    facts = {
        "model_id": work.scorer.model_id, "scored_at": job.scored_at.isoformat(), "schema": schema,
        "schema_sha256": sha256_json(schema), "seconds": sum(r["seconds"] for r in records),
        "device": ", ".join(sorted({r["device"] for r in records})), "reasons": dict(reasons),
        "rejected_sha256": rejected_sha, "rejected_mark": rejected_mark,
        "parts": [{"name": r["part"], "rows": r["rows"], "sha256": r["sha256"], "mark": r["mark"]} for r in records],
    }
    return {**identity, "key": job.key, "rows": rows, "facts": facts,
            "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}


def read_scores(folder: str | Path, columns: list[str] | None = None) -> pa.Table:
    """All SCORES of a finished batch job, in the order of its input.

    Raises:
        InputError: the job is not finished, or a part is missing or damaged.
    """
    where = place(as_location(folder))
    manifest = finished_manifest(where)
    if manifest is None or manifest.get("stage") != STAGE:
        raise InputError("no finished scoring job", file=folder, expected="a folder with the manifest of recsys score")
    tables = []
    for part in manifest["facts"]["parts"]:
        path = join(where.folder, part["name"])
        if where.mark(part["name"]) != part["mark"]:
            raise InputError("damaged part", file=path, expected="the checksum of the manifest; score again")
        tables.append(open_parquet(path).read(columns=columns))
    return pa.concat_tables(tables)
