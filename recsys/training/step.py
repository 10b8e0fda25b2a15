"""One optimizer step after another: forward, loss, backward, clipping, both optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from recsys.config import TrainingConfig
from recsys.features.batches import Batch
from recsys.kernels import binomial_loss as fused
from recsys.training.optimizers import dense_parameters

BINS = 1 << 14
"""Of the histogram of log odds: 0.0024 wide each, so that an AUC is right to 0.01 from the first steps on, when all
predictions are alike, and later to 0.001."""


class Step(NamedTuple):
    """What a step says of this rank's share of a batch, before its update; tensors on the device, without gradients.

    Attributes:
        loss, trials: sums (nats), scalars.
        rows: of the share.
        histogram: float32 [heads, BINS, 2], successes and failures by bin of the log odds; None for other losses than
            the binomial.
    """

    loss: torch.Tensor
    trials: torch.Tensor
    rows: int
    histogram: torch.Tensor | None = None


Loss = Callable[[torch.Tensor, Batch], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]
"""Loss summed, what it is a sum over, and the histogram, of what ``model.rank`` gives and the batch."""


class Stepper(Protocol):
    """How a step is made: in one process, or pipelined over many (recsys.training.parallel)."""

    def run(self, batches: Iterator[Batch]) -> Iterator[Step]:
        """Make one optimizer step a batch; called once an epoch, or where a resumed epoch goes on.

        A step is finished when it is yielded: weights and optimizer states are those after it, whatever batches have
        been read ahead.
        """

    def paused(self) -> AbstractContextManager[None]:
        """Inside, the model may be called directly, between two steps of an epoch."""


def binomial_loss(logits: torch.Tensor, batch: Batch,
                  kernels: str = "auto") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Negative log likelihood of successes among trials, summed, the trials it is a sum over, and
    :attr:`Step.histogram`: one pass (:func:`recsys.kernels.binomial_loss.binomial_loss`)."""
    counted = fused.binomial_loss(logits, batch.trials, batch.successes, batch.weight, BINS, kernels)
    return counted.loss, counted.sums[:, 1].sum(), counted.histogram


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
        loss: None: the binomial.
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
            loss, trials, histogram = self._loss(logits.float(), batch)
            (loss / trials.clamp_min(1e-12)).backward()
            if self._clip is not None:
                nn.utils.clip_grad_norm_(self._parameters, self._clip)
            self._optimizer.step()
            if embeddings is not None:
                embeddings.step()
            yield Step(loss.detach(), trials, len(batch), histogram)

    def paused(self) -> AbstractContextManager[None]:
        """See :class:`Stepper`."""
        return nullcontext()
