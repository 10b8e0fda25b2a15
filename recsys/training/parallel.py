"""Optimizer steps of several ranks: TorchRec's train pipelines around the same loss and optimizers as one process.

While a batch is computed, the next one's ids already travel to the ranks that keep their rows
(``TrainPipelineSparseDist``). The dense parameters are whole on every rank and their gradients averaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from recsys.config import TrainingConfig
from recsys.features.batches import Batch, padded
from recsys.models.embeddings.sharded import ShardedEmbeddings
from recsys.training.optimizers import dense_parameters
from recsys.training.step import Step, autocast, binomial_loss
from recsys.training.world import World


@dataclass
class InFlight(Pipelineable):
    """A batch as TorchRec's pipelines move it between streams."""

    batch: Batch
    rows: int
    """How many of its rows are not padding."""

    @property
    def sparse(self) -> KeyedJaggedTensor:
        """Its ids: what the pipeline looks for."""
        return self.batch.sparse

    def to(self, device: torch.device, non_blocking: bool = True) -> InFlight:
        """On another device."""
        return InFlight(self.batch.to(device), self.rows)

    def record_stream(self, stream: torch.Stream) -> None:
        """Its memory is used on ``stream`` too."""
        for value in vars(self.batch).values():
            for part in value if isinstance(value, tuple) else (value,):
                if part is not None:
                    part.record_stream(stream)


class _Loss(nn.Module):
    """From looked-up vectors to the loss: one node of the pipeline's graph, so plain Python may be in it."""

    def __init__(self, model: Any, config: TrainingConfig, world: World) -> None:
        super().__init__()
        rank = torch.compile(model.rank) if config.compile else model.rank
        self._rank, self._precision, self._world = [rank], config.precision, world  # listed: not a submodule twice
        self._kernels = model.config.kernels

    def forward(self, looked_up: torch.Tensor | None, flight: InFlight) -> tuple[torch.Tensor, Step]:
        batch, world = flight.batch, self._world
        total = (batch.weight.unsqueeze(1) * batch.trials).sum()
        # While the ranks add up their trials, the model computes.
        adding = dist.all_reduce(total, async_op=True) if world.size > 1 else None
        with autocast(self._precision, world.device):
            logits = self._rank[0](looked_up, batch)
        loss, trials, histogram = binomial_loss(logits.float(), batch, self._kernels)
        if adding is not None:
            adding.wait()
        # All gradients are averaged over ranks (TorchRec divides the tables'), so times their number: what is minimised
        # is the loss of all ranks by the trials of all ranks, as if one rank had the whole batch.
        return world.size * loss / total.clamp_min(1e-12), Step(loss.detach(), trials, flight.rows, histogram)


class _Model(nn.Module):
    def __init__(self, model: Any, config: TrainingConfig, world: World) -> None:
        super().__init__()
        self.embeddings, self.loss = model.embeddings, _Loss(model, config, world)

    def forward(self, flight: InFlight) -> tuple[torch.Tensor, Step]:
        looked_up = None if self.embeddings is None else self.embeddings(flight.sparse)
        return self.loss(looked_up, flight)


class _Optimizers:
    """What a pipeline calls before the forward and after the backward pass."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, config: TrainingConfig, world: World) -> None:
        self._embeddings, self._optimizer = model.embeddings, optimizer
        self._clip, self._world = config.clip_norm, world
        self._dense: list[nn.Parameter] = list(dense_parameters(model).values())
        self._replicated = list(self._dense)
        if self._embeddings is not None and not isinstance(self._embeddings, ShardedEmbeddings):
            self._replicated += self._embeddings.parameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        if self._embeddings is not None:
            self._embeddings.zero_grad()

    def step(self) -> None:
        average_gradients(self._replicated, self._world)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._dense, self._clip)
        self._optimizer.step()
        if self._embeddings is not None:
            self._embeddings.step()


class ParallelStepper:
    """Steps of all ranks together, see :class:`recsys.training.step.Stepper`; all must make as many.

    Args:
        model: the ranker; its ``embeddings`` update themselves.
        optimizer: of the dense parameters.
        config: ``precision``, ``clip_norm``, ``compile``, ``parallel.pipeline``.
        world: the ranks.
        rows: every batch is padded to so many rows, the same on all ranks (``StreamLoader.largest``).
    """

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, config: TrainingConfig, world: World,
                 rows: int) -> None:
        self._rows = rows
        wrapped = _Model(model, config, world)
        both: Any = _Optimizers(model, optimizer, config, world)
        # Without sharded tables nothing travels; the base pipeline copies the next batch to the card, no more.
        self._overlaps = config.parallel.pipeline and isinstance(model.embeddings, ShardedEmbeddings)
        kind = TrainPipelineSparseDist if self._overlaps else TrainPipelineBase
        self._pipeline: Any = kind(wrapped, both, world.device)
        share_parameters(dense_parameters(model).values(), world)

    def run(self, batches: Iterator[Batch]) -> Iterator[Step]:
        """See :class:`recsys.training.step.Stepper`."""
        # A pipeline that has come to the end of an epoch finds the next one empty, unless it is told to begin anew;
        # and what it had read ahead, where an epoch was left early, is not this epoch's.
        self._pipeline.reset()
        flights = (InFlight(padded(batch, self._rows), len(batch)) for batch in batches)
        try:
            while True:
                try:
                    step = self._pipeline.progress(flights)
                except StopIteration:
                    return
                yield step
        finally:
            self._release()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """See :class:`recsys.training.step.Stepper`."""
        attached = self._release()
        yield
        if attached and self._pipeline.contexts:
            # What is under way is kept: only the forward passes change places.
            self._pipeline.attach(sparse_dist=False)

    def _release(self) -> bool:
        """Give the model its own forward passes back: while they are the pipeline's, nobody else may call it."""
        if not self._overlaps or not self._pipeline._model_attached:
            return False
        self._pipeline.detach()
        return True


def average_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Average gradients over ranks, in place; a parameter that no loss of this rank depends on counts as zero.

    One sum of one buffer in the order of the parameters: unlike DistributedDataParallel's buckets, which settle after
    the first step, a resumed run adds in the same order as one that was never stopped.
    """
    if world.size == 1 or not parameters:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world.size
    parts = flat.split([g.numel() for g in grads])
    torch._foreach_copy_(grads, [part.view_as(g) for part, g in zip(parts, grads, strict=True)])


def share_parameters(parameters: Any, world: World) -> None:
    """Give every rank rank 0's values, in place."""
    if world.size > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)
