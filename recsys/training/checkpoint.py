"""The checkpoints of a training run: written while it goes on, verified before they are used (decision 0031).

    checkpoints = Checkpoints(folder, world, keep=2)
    found = checkpoints.latest()          # None, or the newest that is whole
    checkpoints.restore(found, model, optimizer)
    checkpoints.save(model, optimizer, state, sums)   # copies now, writes in a thread
    checkpoints.close()                   # the last one is on disk

Names of the tensors do not depend on how the tables are kept, so a run goes on with another backend's sharding or
another number of ranks: ``dense.PARAMETER``, ``dense_state.PARAMETER.KEY``, what the tables' ``checkpoint_tensors``
gives, and of each rank ``rank.N.random``, ``rank.N.random_cuda`` and ``rank.N.sums``.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from recsys import __version__
from recsys.log import log
from recsys.stage import MANIFEST
from recsys.training.checkpoint_mirror import Mirror
from recsys.training.checkpoint_storage import Damaged, SafetensorsReader, SafetensorsWriter, read_manifest, verify
from recsys.training.optimizers import dense_parameters, load_state_tensors, state_tensors
from recsys.training.world import World

# One process is what we mean where there is one, and torchrec's tables are ShardedTensors: torch warns at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)


@dataclass
class TrainState:
    """Where a training run stands: everything but tensors.

    Attributes:
        epoch, batch: the cursor; the next batch to train on.
        lanes: streams that the rows are dealt to; with the cursor it says which rows were seen.
        step: optimizer steps done over all epochs: the position of both schedules.
        loss, trials: sums of the current epoch, over all ranks.
        best, best_epoch, best_checkpoint: lowest validation loss so far, its epoch, the checkpoint that holds its
            weights.
        stale: evaluations since.
        epochs: one dict a finished epoch; evaluations: one dict an evaluation between them.
        seconds, stalled: of the training loop, over all processes that took part.
        samples: rows trained on, over all ranks.
        done: nothing is left to train.
    """

    epoch: int = 0
    batch: int = 0
    lanes: int = 1
    step: int = 0
    loss: float = 0.0
    trials: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    best_checkpoint: str | None = None
    stale: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    stalled: float = 0.0
    samples: int = 0
    done: bool = False

    @property
    def name(self) -> str:
        """Of the checkpoint at this cursor; names sort as cursors do."""
        return f"epoch-{self.epoch:04d}-batch-{self.batch:09d}"


@dataclass(frozen=True)
class Found:
    """A checkpoint that was verified."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def state(self) -> TrainState:
        """A copy of where the run stood."""
        return TrainState(**json.loads(json.dumps(self.manifest["facts"]["state"])))


def newest(folder: Path, damaged: Callable[[Path, Damaged], None]) -> Found | None:
    """The newest checkpoint of a run that is whole, after every file of it was read and compared with its manifest.

    A checkpoint whose best weights lie in another one that is damaged is as bad as damaged: going on from it would end
    with other weights than the run without the damage.

    Args:
        folder: of the run's checkpoints.
        damaged: told of every newer one that is not whole, and why.
    """
    for one in sorted((p for p in folder.glob("epoch-*") if p.is_dir()), reverse=True):
        try:
            manifest = verify(one)
            best = manifest["facts"]["state"]["best_checkpoint"]
            if best is not None and best != one.name:
                _check_best(folder, best)
        except Damaged as error:
            damaged(one, error)
            continue
        return Found(one, manifest)
    return None


def _check_best(folder: Path, best: str) -> None:
    try:
        verify(folder / best)
    except Damaged as error:
        raise Damaged(f"it needs the best weights so far, in {best}, where {error}") from None


class Checkpoints:
    """The checkpoints of one training run, in one folder that all ranks see.

    Args:
        folder: of the run; every checkpoint is a folder in it.
        world: the ranks that train together.
        keep: newest checkpoints kept, besides those that hold the best weights of one of them.
        mirror: address in an object store that they are copied to and, where the folder is empty, fetched from.
        identity: hash of what makes this run this run; a mirror of another one is refused.
    """

    def __init__(self, folder: Path, world: World, keep: int, mirror: str | None = None, identity: str = "") -> None:
        self._folder, self._world, self._keep, self._identity = folder, world, keep, identity
        self._mirror = Mirror(mirror, identity) if mirror is not None and world.is_main else None
        self._pending: Future[Any] | None = None
        # A group of its own: the writing thread talks between ranks while training does.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None

    def latest(self) -> Found | None:
        """:func:`newest`, the same on all ranks; what is damaged is named and put aside."""
        if self._mirror is not None:
            self._mirror.fetch(self._folder)
        name = self._newest() if self._world.is_main else None
        name = self._world.broadcast_bytes(None if name is None else name.encode()).decode()
        if not name:
            return None
        folder = self._folder / name
        return Found(folder, read_manifest(folder))

    def _newest(self) -> str:
        bad = []

        def aside(folder: Path, error: Damaged) -> None:
            bad.append(folder)
            log.warning("checkpoint %s is not used: %s", folder, error)
            _put_aside(folder)

        found = newest(self._folder, aside)
        if found is None and bad:
            log.warning("%s holds no checkpoint that is whole: training starts from the beginning", self._folder)
        return "" if found is None else found.folder.name

    def restore(self, found: Found, model: Any, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Take over weights, both optimizers' states and this rank's random state, in place.

        Returns:
            This rank's part of the loop's sums, float64, on the CPU: all of them (:meth:`save`), or, where there are
            other ranks than there were, loss and trials alone.
        """
        reader = SafetensorsReader(found.folder, found.manifest)
        moments = reader.empty("dense_state.")
        own = reader.empty(f"rank.{self._world.rank}.")
        self._load(reader, {**_weights(model), **_table_states(model), **moments, **own})
        if model.embeddings is not None:
            model.embeddings.loaded()
        load_state_tensors(model, optimizer, {n.removeprefix("dense_state."): t for n, t in moments.items()})
        mine = {n.removeprefix(f"rank.{self._world.rank}."): t for n, t in own.items()}
        if "random" in mine:
            torch.set_rng_state(mine["random"])
        if "random_cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["random_cuda"])
        if found.manifest["facts"]["ranks"] == self._world.size:
            return mine["sums"]
        state = found.state  # other ranks: what all of them had goes on as the first one's
        return torch.tensor([state.loss, state.trials] if self._world.is_main else [0.0, 0.0], dtype=torch.float64)

    def load_best(self, state: TrainState, model: Any) -> None:
        """Take over the best weights so far, in place; nothing where they are not known or the model has them."""
        self.wait()
        if state.best_checkpoint is not None:
            folder = self._folder / state.best_checkpoint
            self._load(SafetensorsReader(folder, read_manifest(folder)), _weights(model))
            if model.embeddings is not None:
                model.embeddings.loaded()

    def _load(self, reader: SafetensorsReader, targets: dict[str, Any]) -> None:
        # Every rank reads what it holds; there is nothing to agree on.
        dcp.load(targets, storage_reader=reader, no_dist=True)

    def save(self, model: Any, optimizer: torch.optim.Optimizer, state: TrainState,
             sums: torch.Tensor) -> None:
        """Copy everything that continuing needs, and write it while training goes on; waits for the one before.

        Called by all ranks at the same step; what the manifest says is the first rank's ``state``.

        Args:
            sums: this rank's part of the loop's sums, float64: the epoch's loss and trials, then whatever else.
        """
        self.wait()
        plan = [] if model.embeddings is None else model.embeddings.plan()
        facts = {"state": asdict(state), "ranks": self._world.size, "plan": plan, "identity": self._identity,
                 "versions": {"recsys": __version__, "torch": torch.__version__}}
        own = {"random": torch.get_rng_state(), "sums": sums.cpu()}
        if torch.cuda.is_available():
            own["random_cuda"] = torch.cuda.get_rng_state()
        tensors = {**_weights(model), **_table_states(model),
                   **{f"dense_state.{n}": t for n, t in state_tensors(model, optimizer).items()},
                   **{f"rank.{self._world.rank}.{n}": t for n, t in own.items()}}
        saving: Any = dcp.async_save(
            tensors, storage_writer=SafetensorsWriter(self._folder / state.name, facts), process_group=self._group,
            async_stager=BlockingAsyncStager(), no_dist=self._world.size == 1)
        self._pending = saving
        if self._mirror is not None:
            mirror, folder = self._mirror, self._folder / state.name
            saving.add_done_callback(lambda done: None if done.exception() else mirror.push(folder))

    def wait(self) -> None:
        """Until the checkpoint that is being written is published; then remove those that need not be kept.

        Raises:
            OSError: it could not be written.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except dcp.api.CheckpointException as error:
            reasons = [e for e, _ in error.failures.values()]
            raise next((e for e in reasons if isinstance(e, OSError)), error) from None
        if self._world.is_main:
            self._prune()

    def close(self) -> None:
        """Wait for the last checkpoint, and for its copy."""
        self.wait()
        if self._mirror is not None:
            self._mirror.close()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _prune(self) -> None:
        published = sorted(p.parent for p in self._folder.glob(f"epoch-*/{MANIFEST}"))
        kept = {p.name for p in published[-self._keep :]}
        kept |= {read_manifest(self._folder / n)["facts"]["state"]["best_checkpoint"] for n in kept}
        for folder in published:
            if folder.name not in kept:
                _remove(folder)


def _put_aside(folder: Path) -> None:
    # One that was never finished holds nothing of worth; one that changed since is left to who wants to mend it.
    if (folder / MANIFEST).is_file():
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    else:
        shutil.rmtree(folder)


def _remove(folder: Path) -> None:
    # The manifest first, so that one killed here leaves no checkpoint behind instead of half of one.
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _weights(model: Any) -> dict[str, Any]:
    tables = {} if model.embeddings is None else model.embeddings.checkpoint_tensors()
    return {**{f"dense.{n}": p.detach() for n, p in dense_parameters(model).items()},
            **{n: t for n, t in tables.items() if n.startswith("table.")}}


def _table_states(model: Any) -> dict[str, Any]:
    tables = {} if model.embeddings is None else model.embeddings.checkpoint_tensors()
    return {n: t for n, t in tables.items() if not n.startswith("table.")}
