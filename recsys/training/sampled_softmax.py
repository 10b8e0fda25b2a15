"""The loss of two towers: softmax over the ads of the batch, corrected for how often each of them is in one.

In a batch of clicks, an ad stands among the negatives as often as it is clicked, so a softmax over the batch learns how
much more a user likes it than others do, and popular ads are held down. Here the other n - 1 ads of the batch stand for
all ads: each has weight 1 / ((n - 1) q), q being its probability of being drawn, which makes the sum over them an
unbiased estimate of the sum over all ads but the row's own, and the softmax one over all ads (importance sampling of
the partition function: Bengio and Senecal 2008, IEEE Transactions on Neural Networks 19(4); in batches, with q from a
stream, Yi et al. 2019, RecSys: recsys.models.frequency). The row's own ad was given, not drawn, and keeps its weight of
1. Yi et al. correct it like the others; where ads are few enough to be in every batch, that does not find the click
probabilities.
"""

from __future__ import annotations

import math

import torch

from recsys.features.batches import Batch
from recsys.models.two_tower import TwoTower


class InBatchSoftmax:
    """Loss of a batch; updates the model's estimate of the ads' frequencies while it is in training mode.

    Rows with a success are a user each and an ad each; rows without one (hard negatives: shown, and not clicked) are
    an ad each.
    """

    def __init__(self, model: TwoTower) -> None:
        self._model, config = model, model.config
        self._temperature, self._log_q = config.temperature, config.log_q

    def __call__(self, vectors_B2D: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy summed over the rows with a success, and the successes it is a sum over, weighted; scalars."""
        logits, target, weight = self.logits(vectors_B2D, batch)
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        return (weight * loss).sum(), weight.sum()

    def logits(self, vectors_B2D: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Corrected logits [P, B] of the P rows with a success, the column of each one's own ad, and its weight."""
        items = self._model.items(batch)
        if self._model.training:
            self._model.frequency.update(items)
        rows = torch.nonzero(batch.successes[:, 0] > 0).squeeze(1)
        logits = vectors_B2D[rows, 0] @ vectors_B2D[:, 1].T / self._temperature
        if self._log_q:
            expected = self._model.frequency.log_probability(items) + math.log(max(len(items) - 1, 1))
            own = torch.nn.functional.one_hot(rows, len(items)).bool()
            logits = torch.where(own, logits, logits - expected)
        # The same ad in another row is no negative of this one.
        same = items[rows].unsqueeze(1) == items
        if not self._model.config.hard_negatives:  # a validation slice has the rows that training leaves out
            same |= batch.successes[:, 0] <= 0
        same[torch.arange(len(rows), device=rows.device), rows] = False
        logits = logits.masked_fill(same, torch.finfo(logits.dtype).min)
        return logits, rows, batch.weight[rows] * batch.successes[rows, 0]
