"""Metrics of one ranker or of an ensemble over labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from recsys.features.batches import Batch, padded
from recsys.features.stream import StreamLoader
from recsys.models.ranker import Ranker
from recsys.training.metrics import StreamingMetrics
from recsys.training.world import World


def evaluate(models: Sequence[Ranker], loader: StreamLoader, world: World,
             rows: int | None = None) -> list[dict[str, Any]]:
    """Metrics of the models' mean probability, one dict a head, the same on all ranks. Draws no random numbers.

    Args:
        models: one ranker, or an ensemble; left in evaluation mode.
        loader: this rank's share of labelled rows; their order does not matter.
        world: the ranks; all of them call this together.
        rows: about so many rows of the loader's, from its start; None: all.
    """
    heads = len(models[0].head_names)
    metrics = StreamingMetrics(heads)
    for model in models:
        model.eval()
    with loader.epoch() as batches, torch.no_grad():
        for batch in islice(batches, None if rows is None else -(-rows // loader.batch_size)):
            # Sharded tables are looked up by all ranks together, with batches of one size.
            even = padded(batch, loader.largest) if world.size > 1 else batch
            logits = mean_logits(models, even.to(world.device))[: len(batch)]
            weight = batch.weight.numpy()[:, None].astype(np.float64)
            metrics.update(logits, batch.trials.numpy() * weight, batch.successes.numpy() * weight,
                           _numpy(batch.user), _numpy(batch.surface))
    metrics.reduce(world)
    return [metrics.result(head) for head in range(heads)]


def _numpy(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()


def mean_logits(models: Sequence[Ranker], batch: Batch) -> np.ndarray:
    """Log odds of the models' mean probability, float64 [B, H]."""
    z = np.stack([model(batch).double().cpu().numpy() for model in models])
    if len(z) == 1:
        return np.asarray(z[0])
    # log p and log (1 - p) of the mean, each by log-sum-exp, so that extreme odds stay exact
    return np.asarray(np.logaddexp.reduce(-np.logaddexp(0, -z)) - np.logaddexp.reduce(-np.logaddexp(0, z)))
