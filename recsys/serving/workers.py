"""Who scores the shards: this process, processes beside it, or a Ray cluster.

All of them do the same: take a shard that is not finished and that nobody holds, score it, let go. So they mix, with
each other and with workers of other machines. A worker scores with one thread of its own: as many workers as cores
then keep all cores busy without waiting for each other, and a row's score does not depend on how many there are.
"""

from __future__ import annotations

import glob
import importlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from recsys.errors import InputError, RecsysError
from recsys.log import log
from recsys.serving.inputs import Shard
from recsys.serving.job import Job
from recsys.serving.places import place
from recsys.serving.processes import Processes
from recsys.serving.protocol import ScorerLike, load_scorer
from recsys.serving.rows import Pairs
from recsys.serving.shards import Task, Work, score_shard
from recsys.stage import sha256_file
from recsys.storage import as_location, first_line

_WORTH_A_PROCESS = 262_144  # rows: starting one takes a second or two
_RAY_RETRIES = 10  # of one shard, when its node or process is lost
_RAY_SECONDS = 10.0  # for a cluster's address to answer


def default_workers(shards: Sequence[Shard], device: str) -> int:
    """One a core that this process may use, and no more than there is work for; one on a GPU."""
    if not device.startswith("cpu"):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = sum(s.stop - s.start for s in shards)
    return max(1, min(cores, len(shards), rows // _WORTH_A_PROCESS))


def likely_device(device: str) -> str:
    """Where a model asked for on ``device`` will run, as far as is known without PyTorch, which takes a second to load:
    ``auto`` is the CPU where the system shows no GPU."""
    if device == "auto" and not any(glob.glob(f"/dev/{name}") for name in ("nvidia*", "nvhost*", "dxg", "kfd")):
        return "cpu"
    return device


def run_here(job: Job, shards: Sequence[Shard], work: Work, done: Callable[[Shard], None]) -> None:
    """Score what is left in this process, and wait for what others hold."""
    left, attempt = list(shards), 0
    with one_thread():
        while left:
            held = []
            for shard in left:
                if take(job, shard, work):
                    done(shard)
                    attempt = 0
                else:
                    held.append(shard)
            if held:
                wait(attempt)
                attempt += 1
            left = held


def take(job: Job, shard: Shard, work: Work) -> bool:
    """Score a shard unless it is finished; False where another worker holds it."""
    if job.finished(shard) is not None:
        return True
    with job.place.claim(job.name(shard)) as mine:
        if not mine:
            return False
        if job.finished(shard) is None:
            score_shard(job, shard, work)
        return True


def wait(attempt: int) -> None:
    """Pause before asking again: longer each time, up to two seconds, and never in step with others."""
    time.sleep(random.uniform(0.5, 1.0) * min(0.05 * 2**min(attempt, 10), 2.0))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch and Arrow compute with one thread in here."""
    import pyarrow as pa
    import torch

    before = torch.get_num_threads(), pa.cpu_count()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        pa.set_cpu_count(before[1])


def run_processes(processes: Processes, task: Task, job: Job, shards: Sequence[Shard], work: Work, count: int,
                  done: Callable[[Shard], None]) -> None:
    """Score with ``count - 1`` processes beside this one; a killed one's shards are taken over by the others."""
    told: set[Shard] = set()

    def tell(shard: Shard) -> None:
        if shard not in told:
            told.add(shard)
            done(shard)

    processes.start(count - 1)
    try:
        for i in range(1, count):
            processes.give(task, i / count)  # each begins elsewhere, so that they seldom ask for the same shard
        run_here(job, shards, work, tell)
        for finished in processes.results():
            if not finished:
                log.warning("score: a worker was killed; others took its shards")
    finally:
        processes.close()
    run_here(job, [s for s in shards if job.finished(s) is None], work, tell)


def worker_processes(model: str, device: str) -> Processes:
    """Processes that load the model, then take part in the job that they are given."""
    return Processes(partial(_scorer, model, device), _work)


def _work(task: Task, start: float) -> None:
    """A worker in a process of its own: all shards, from a place of its own on."""
    job, work = _opened(task)
    at = int(start * len(task.shards))
    run_here(job, [*task.shards[at:], *task.shards[:at]], work, lambda _: None)


@lru_cache(1)  # loaded while there is no job yet, then used by it
def _scorer(model: str, device: str) -> tuple[str, ScorerLike]:
    """What the folder hashed to before it was loaded, and what it holds."""
    return sha256_file(model), load_scorer(model, device)


def _opened(task: Task) -> tuple[Job, Work]:
    return _load(task.model, task.model_sha256, task.ads, task.files, task.output, task.key, task.scored_at,
                 task.schema, task.batch_rows, task.keep, task.device)


@lru_cache(1)  # a process that serves many tasks of a job loads the model once
def _load(model: str, sha256: str, ads: str | None, files: tuple[Any, ...], output: str, key: str, scored_at: Any,
          schema: Any, batch_rows: int, keep: tuple[str, ...], device: str) -> tuple[Job, Work]:
    found, scorer = _scorer(model, device)
    _scorer.cache_clear()  # the next job of this process, in a Ray cluster, may find another model in that folder
    if found != sha256:  # weights may be the same, and calibration or precision another
        raise RecsysError(f"{model}: was replaced while the job started; run again")
    pairs = Pairs(scorer.columns, keep, batch_rows, None if ads is None else Path(ads))
    return Job(place(as_location(output)), key, scored_at), Work(scorer, pairs, list(files), schema, batch_rows)


def run_ray(task: Task, job: Job, shards: Sequence[Shard], done: Callable[[Shard], None], workers: int | None) -> None:
    """Score as tasks of a Ray cluster, one a shard; Ray starts a killed one again.

    Raises:
        InputError, RecsysError: as :func:`require_ray`; or Ray does not start, or a shard's workers were killed again
            and again.
    """
    ray = require_ray()
    own = not ray.is_initialized()
    if own:
        _start_ray(ray, workers)
    try:
        remote = ray.remote(num_cpus=1, max_retries=_RAY_RETRIES)(_ray_shard)
        handle = ray.put(task)
        pending = {remote.remote(handle, shard): shard for shard in shards}
        while pending:
            ended, _ = ray.wait(list(pending), num_returns=1)
            for reference in ended:
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    lost = str(error).splitlines()[0]
                    raise RecsysError(f"{task.output}: {lost}; run again to go on from the last shard") from None
                done(pending.pop(reference))
    finally:
        if own:
            ray.shutdown()


def require_ray() -> Any:
    """The module ``ray``; asked for before a job writes anything.

    Raises:
        InputError: nobody answers at RAY_ADDRESS.
        RecsysError: Ray is not installed.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise RecsysError("Ray is not installed: pip install 'recsys-ads[ray]', or --engine local") from None
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal() and not ray.is_initialized():
        try:  # Ray itself goes on asking for minutes
            socket.create_connection((host, int(port)), timeout=_RAY_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise InputError("no Ray cluster answers", file="RAY_ADDRESS", got=f"{address} ({error})",
                             expected="the address of a running cluster, or none") from None
    return ray


def _start_ray(ray: Any, workers: int | None) -> None:
    """Join the cluster that RAY_ADDRESS names, else start one on this machine."""
    local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # of many kinds, its own time-outs as plain Exception
        raise RecsysError(f"Ray did not start: {first_line(error)}; run again, or --engine local") from error


def _ray_shard(task: Task, shard: Shard) -> int:
    job, work = _opened(task)
    run_here(job, [shard], work, lambda _: None)
    return os.getpid()
