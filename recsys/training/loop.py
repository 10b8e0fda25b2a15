"""The training of one model, from its last checkpoint to its best weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recsys.config import TrainingConfig
from recsys.errors import RecsysError, Stopped
from recsys.features.stream import StreamLoader
from recsys.log import log
from recsys.models.trained import Trained
from recsys.training.checkpoint import Checkpoints, Found, TrainState
from recsys.training.journal import Journal
from recsys.training.metrics import auc_and_bound
from recsys.training.schedules import Schedules
from recsys.training.step import BINS, Stepper
from recsys.training.stop import StopRequest
from recsys.training.world import World

Heads = list[dict[str, Any]]
_AGREE_STEPS = 8  # steps between the questions that several ranks ask each other: stop? save?


@dataclass
class TrainingRun:
    """One model's training run.

    Attributes:
        model, optimizer: freshly made; ``optimizer`` is of the dense parameters.
        stepper: makes the steps.
        loader: training rows, of this rank.
        validate: metrics of the model on held-out rows, one dict a head, the same on all ranks; None: no validation.
        config: the experiment file's section.
        checkpoints, journal, world: where the run is kept, told, and spread.
    """

    model: Trained
    optimizer: torch.optim.Optimizer
    stepper: Stepper
    loader: StreamLoader
    validate: Callable[[], Heads] | None
    config: TrainingConfig
    checkpoints: Checkpoints
    journal: Journal
    world: World

    def train(self, state: TrainState, found: Found | None = None) -> TrainState:
        """Train to the end; the model then holds the weights of the best evaluation, or the last without validation.

        Args:
            state: where the run stands; advanced in place.
            found: the checkpoint that ``state`` comes from, None at the start.

        Returns:
            The final state.

        Raises:
            RecsysError: the loss is not finite any more.
            Stopped: SIGTERM came; everything is saved.
        """
        self.state = state
        device = next(self.model.parameters()).device
        # Sums stay on the device and are read now and then: reading them every step would make a GPU wait.
        # Loss and trials of the epoch, then successes and failures by head and bin since the journal's last line.
        heads = len(self.model.head_names)
        self._sums = torch.zeros(2 + heads * BINS * 2, dtype=torch.float64, device=device)
        self._histogram = self._sums[2:].view(heads, BINS, 2)
        self._schedules = Schedules(self.config, self.config.epochs * self.loader.batches, self.optimizer,
                                    self.model.embeddings)
        if found is not None:
            sums = self.checkpoints.restore(found, self.model, self.optimizer)
            self._sums[: len(sums)].copy_(sums)
            log.info("goes on from %s", found.folder)
        self._schedules.set(self.state.step)
        try:
            with StopRequest() as self._stop:
                while not self.state.done:
                    self._epoch()
            self.checkpoints.load_best(self.state, self.model)
        finally:
            self.checkpoints.close()
        return self.state

    def _epoch(self) -> None:
        state, config = self.state, self.config
        self.model.train()
        self._saved = self._clock = time.perf_counter()
        self._rows = 0
        with self.loader.epoch(state.epoch, state.batch) as self._batches:
            for made in self.stepper.run(self._batches):
                self._sums[:2] += torch.stack([made.loss, made.trials])
                if made.histogram is not None:
                    self._histogram += made.histogram
                self._rows += made.rows
                state.batch += 1
                state.step += 1
                self.journal.advance(made.rows)
                if state.step % config.log_steps == 0:
                    self._tell()
                last = state.batch == self.loader.batches
                better = False
                if config.evaluate_steps and state.step % config.evaluate_steps == 0 and not last:
                    better = self._evaluate()
                self._schedules.set(state.step)
                stop, due = self._agree()
                if state.done:
                    state.epochs.append({"epoch": state.epoch, "batches": state.batch,
                                         "loss": state.loss / max(state.trials, 1e-12),
                                         "validation": state.evaluations[-1]["validation"]})
                if better or due or stop or state.done:
                    self._save()
                if stop:
                    raise Stopped(f"SIGTERM: saved after step {state.step:,} ({state.name})")
                if state.done:
                    return
        if state.batch != self.loader.batches:
            raise RuntimeError(f"epoch {state.epoch} ended after {state.batch} of {self.loader.batches} batches")
        self._end_of_epoch()

    def _end_of_epoch(self) -> None:
        state = self.state
        self._tell()
        line: dict[str, Any] = {"epoch": state.epoch, "loss": state.loss / max(state.trials, 1e-12)}
        state.epoch, state.batch = state.epoch + 1, 0
        self._evaluate(line)
        state.epochs.append(line)
        state.loss, state.trials = 0.0, 0.0
        self._sums.zero_()
        state.done = state.done or state.epoch >= self.config.epochs
        self._save()
        # Asked of all ranks whatever the step: a SIGTERM during the evaluation must not wait for another epoch.
        if self.world.all_reduce_sum(np.array([self._stop.asked], np.int64))[0]:
            raise Stopped(f"SIGTERM: saved after epoch {state.epoch:,} ({state.name})")

    def _evaluate(self, line: dict[str, Any] | None = None) -> bool:
        """Measure on the validation slice: is this the best so far, is it time to stop?

        Args:
            line: of the epoch that ends here; None within an epoch.

        Returns:
            Whether the weights are the best so far, and so must be saved.
        """
        state = self.state
        if self.validate is None:
            return False
        epoch = state.epoch if line is None else line["epoch"]
        self._settle()
        with self.stepper.paused():
            heads = self.validate()
        self.model.train()
        self._clock = time.perf_counter()
        self.journal.evaluation(epoch=epoch, step=state.step,
                                heads=dict(zip(self.model.head_names, heads, strict=True)))
        if line is not None:
            line["validation"] = heads[0]
        else:
            state.evaluations.append({"epoch": epoch, "step": state.step, "validation": heads[0]})
        score = float(sum(h["log_loss"] or 0.0 for h in heads))
        better = state.best is None or score < state.best
        if better:
            state.best, state.best_epoch, state.best_checkpoint, state.stale = score, epoch, state.name, 0
        else:
            state.stale += 1
        state.done = bool(self.config.patience and state.stale >= self.config.patience)
        return better

    def _agree(self) -> tuple[bool, bool]:
        """Whether to stop, and whether a checkpoint is due: the same answer on all ranks, after the same step."""
        stop = self._stop.asked
        due = time.perf_counter() - self._saved > self.config.checkpoint_seconds
        if self.world.size == 1:
            return stop, due
        if self.state.step % _AGREE_STEPS:
            return False, False
        asked = self.world.all_reduce_sum(np.array([stop, due and self.world.is_main], np.int64))
        return bool(asked[0]), bool(asked[1])

    def _settle(self) -> None:
        """Bring the state's sums and clocks up to the last step; all ranks together."""
        state = self.state
        loss, trials, rows, stalled = self.world.all_reduce_sum(
            np.array([*self._sums[:2].tolist(), self._rows, self._batches.stalled / self.world.size],
                     np.float64)).tolist()
        if not np.isfinite(loss):
            raise RecsysError(f"training diverged in epoch {state.epoch}: the loss is not finite; lower "
                              f"training.dense_lr ({self.config.dense_lr}) or training.sparse_lr "
                              f"({self.config.sparse_lr}), or set training.clip_norm")
        now = time.perf_counter()
        state.loss, state.trials, state.samples = loss, trials, state.samples + int(rows)
        state.seconds, state.stalled = state.seconds + now - self._clock, state.stalled + stalled
        self._clock, self._rows, self._batches.stalled = now, 0, 0.0

    def _tell(self) -> None:
        self._settle()
        state, histogram = self.state, self.world.all_reduce_sum(self._histogram.cpu().numpy())
        self._histogram.zero_()
        auc = {name: auc_and_bound(hits, misses)[0] for name, (hits, misses)
               in zip(self.model.head_names, np.moveaxis(histogram, 2, 1), strict=True) if hits.any() and misses.any()}
        self.journal.step(epoch=state.epoch, step=state.step, samples=state.samples, loss=state.loss,
                          trials=state.trials, seconds=state.seconds, stalled=state.stalled, auc=auc,
                          **self._schedules.rates())

    def _save(self) -> None:
        self._settle()
        self.checkpoints.save(self.model, self.optimizer, self.state, self._sums)
        self._saved = time.perf_counter()
