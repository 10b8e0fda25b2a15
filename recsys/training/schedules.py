"""Learning rates over a run: two factors by step, one for the embedding tables, one for the dense parameters.

A factor is a pure function of the number of steps done, so the number of steps is all that a resumed run needs; and it
multiplies the rates that optimizers were made with instead of replacing them, so that a table or a parameter group with
a rate of its own keeps its distance from the others.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from recsys.config import ScheduleConfig, TrainingConfig


class HasRate(Protocol):
    """Embedding tables, as far as schedules go."""

    def set_lr(self, factor: float) -> None:
        """Multiply the learning rate that each table was made with."""


def factor(schedule: ScheduleConfig, step: int, total: int) -> float:
    """Factor on the learning rate of the ``step``-th step, counted from 0.

    Warm-up is linear: (step + 1) / warmup_steps, so that the first step already moves. Then 1, decaying linearly or
    along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts) to ``final``, which holds on.

    Args:
        schedule: warm-up and decay.
        step: optimizer steps done before this one, over all epochs.
        total: steps of the whole run; the decay takes what the warm-up leaves of them, but for ``decay_steps``.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.decay == "constant":
        return 1.0
    length = schedule.decay_steps or max(total - schedule.warmup_steps, 1)
    done = min((step - schedule.warmup_steps) / length, 1.0)
    left = 1 - done if schedule.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return schedule.final + (1 - schedule.final) * left


class Schedules:
    """Sets the learning rates of both optimizers before a step.

    Args:
        config: ``sparse_schedule``, ``dense_schedule`` and the base rates.
        total: steps of the whole run.
        optimizer: of the dense parameters; the rate that each group has now is its base rate.
        embeddings: the tables, or None where there are none.
    """

    def __init__(self, config: TrainingConfig, total: int, optimizer: torch.optim.Optimizer,
                 embeddings: HasRate | None) -> None:
        self._config, self._total, self._embeddings = config, total, embeddings
        # The rates, not the groups: loading a state puts new ones in their place.
        self._optimizer, self._base = optimizer, [float(group["lr"]) for group in optimizer.param_groups]
        self._now = (1.0, 1.0)

    def set(self, step: int) -> None:
        """Rates of the step that follows ``step`` finished ones; free where they do not change."""
        config = self._config
        sparse = factor(config.sparse_schedule, step, self._total)
        dense = factor(config.dense_schedule, step, self._total)
        if sparse != self._now[0] and self._embeddings is not None:
            self._embeddings.set_lr(sparse)
        if dense != self._now[1]:
            for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
                group["lr"] = base * dense
        self._now = (sparse, dense)

    def rates(self) -> dict[str, float]:
        """``sparse_lr`` and ``dense_lr`` now in force (of tables and groups without a rate of their own)."""
        return {"sparse_lr": self._config.sparse_lr * self._now[0], "dense_lr": self._config.dense_lr * self._now[1]}
