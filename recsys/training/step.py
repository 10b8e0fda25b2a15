"""One optimizer step after another: forward, loss, backward, clipping, both optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from recsys.config import TrainingConfig
from recsys.features.batches import Batch
from recsys.kernels import binomial_loss as fused
from recsys.kernels.dispatch import uses_triton
from recsys.training.optimizers import dense_parameters

Step = tuple[torch.Tensor, torch.Tensor, int]
"""Of this rank's share of a batch: loss summed (nats), trials summed, both scalars on the device; rows."""


Loss = Callable[[torch.Tensor, Batch], tuple[torch.Tensor, torch.Tensor]]


class Stepper(Protocol):
    """How a step is made: in one process, or pipelined over many (recsys.training.parallel)."""

    def run(self, batches: Iterator[Batch]) -> Iterator[Step]:
        """Make one optimizer step a batch; called once an epoch, or where a resumed epoch goes on.

        A step is finished when it is yielded: weights and optimizer states are those after it, whatever batches have
        been read ahead.
        """

    def paused(self) -> AbstractContextManager[None]:
        """Inside, the model may be called directly, between two steps of an epoch."""


def binomial_loss(logits: torch.Tensor, batch: Batch, kernels: str = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log likelihood of successes among trials, summed, and the trials it is a sum over.

    -s log p - (t - s) log(1 - p) = t softplus(z) - s z, weighted by the rows' weights; both results are scalars.
    """
    if uses_triton(kernels, logits):
        counted = fused.binomial_loss(logits, batch.trials, batch.successes, batch.weight, kernels=kernels)
        return counted.loss, counted.sums[:, 1].sum()
    weight = batch.weight.unsqueeze(1)
    loss = (weight * (batch.trials * functional.softplus(logits) - batch.successes * logits)).sum()
    return loss, (weight * batch.trials).sum()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 where ``precision`` says so; weights, gradients and the loss stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


class PlainStepper:
    """One process, one device.

    Args:
        model: the ranker; its ``embeddings`` update themselves.
        optimizer: of the dense parameters.
        config: ``precision``, ``clip_norm``, ``compile``.
        loss: of what ``model.rank`` gives and the batch, summed, and what it is a sum over; None: the binomial.
    """

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, config: TrainingConfig,
                 loss: Loss | None = None) -> None:
        self._loss = loss or partial(binomial_loss, kernels=model.config.kernels)
        self._model, self._optimizer, self._clip, self._precision = model, optimizer, config.clip_norm, config.precision
        self._parameters: list[nn.Parameter] = list(dense_parameters(model).values())
        self._device = self._parameters[0].device
        self._rank: Callable[..., torch.Tensor] = torch.compile(model.rank) if config.compile else model.rank

    def run(self, batches: Iterator[Batch]) -> Iterator[Step]:
        """See :class:`Stepper`."""
        embeddings = self._model.embeddings
        for batch in batches:
            batch = batch.to(self._device)
            self._optimizer.zero_grad(set_to_none=True)
            if embeddings is not None:
                embeddings.zero_grad()
            looked_up = None if embeddings is None else embeddings(batch.sparse)
            with autocast(self._precision, self._device):
                logits = self._rank(looked_up, batch)
            loss, trials = self._loss(logits.float(), batch)
            (loss / trials.clamp_min(1e-12)).backward()
            if self._clip is not None:
                nn.utils.clip_grad_norm_(self._parameters, self._clip)
            self._optimizer.step()
            if embeddings is not None:
                embeddings.step()
            yield loss.detach(), trials, len(batch)

    def paused(self) -> AbstractContextManager[None]:
        """See :class:`Stepper`."""
        return nullcontext()
