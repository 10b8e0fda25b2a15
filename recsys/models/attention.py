"""Target attention: what a user engaged with, weighted by the ad that is shown.

After the Deep Interest Network (Zhou et al. 2018, arXiv:1706.06978): a small MLP scores each item of the history
against the ad. Scores go through a softmax over the items that are there (the paper leaves them as they are), and the
last layer starts at zero: so attention starts as the mean over the history, and what it adds is learnt.
Shape suffixes: B rows, L items of a history, D width of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from recsys.kernels.dispatch import uses_triton
from recsys.kernels.target_attention import target_attention
from recsys.models.layers import mlp


class TargetAttention(nn.Module):
    """Weights of the items of a history.

    Args:
        size: width of the ad's vector and of an item's.
        hidden: hidden layers of the scoring MLP.
        dim: both are projected to this width by one matrix before they are compared; None: compared as they are.
        kernels: ``ModelConfig.kernels``; the Triton kernel takes one hidden layer, deeper ones are PyTorch's.
    """

    def __init__(self, size: int, hidden: Sequence[int], dim: int | None = None, kernels: str = "auto") -> None:
        super().__init__()
        self._kernels, self._layers = kernels, len(hidden)
        self.project = nn.Linear(size, dim, bias=False) if dim else nn.Identity()
        last = nn.Linear((4 * (dim or size), *hidden)[-1], 1, bias=False)
        nn.init.zeros_(last.weight)
        self.score = nn.Sequential(mlp((4 * (dim or size), *hidden)), last)

    def forward(self, ad_BD: torch.Tensor, items_BLD: torch.Tensor, there_BL: torch.Tensor) -> torch.Tensor:
        """The history as one vector.

        Args:
            ad_BD: the ad's vector.
            items_BLD: the items' vectors.
            there_BL: bool, False for the places at its end that a short history leaves empty; what stands there is not
                looked at.

        Returns:
            [B, D], the weighted mean of the items; zeros for an empty history.
        """
        items = self.project(items_BLD)
        if self._layers == 1 and uses_triton(self._kernels, items_BLD):
            (hidden, _), last = cast(Any, self.score)
            rows, length, _ = items.shape
            starts = torch.arange(rows, device=items.device) * length
            return target_attention(self.project(ad_BD), items.flatten(0, 1), items_BLD.flatten(0, 1), starts,
                                    there_BL.sum(1), length, hidden.weight, hidden.bias, last.weight[0], "triton")
        ad = self.project(ad_BD).unsqueeze(1)
        if self._layers and self._kernels != "reference":
            scores_BL = self._factored(ad, items).squeeze(2).float()
        else:
            ad = ad.expand_as(items)
            scores_BL = self.score(torch.cat([ad, items, ad - items, ad * items], dim=2)).squeeze(2).float()
        # The smallest number and not -inf: a row without any item would be 0/0, and its gradient with it.
        scores_BL = scores_BL.masked_fill(~there_BL, torch.finfo(scores_BL.dtype).min)
        weights_BL = scores_BL.softmax(1) * there_BL
        return torch.bmm(weights_BL.unsqueeze(1), items_BLD.float()).squeeze(1)

    def _factored(self, ad_B1D: torch.Tensor, items_BLD: torch.Tensor) -> torch.Tensor:
        # The first layer on [ad; item; ad - item; ad * item] is one matrix of the ad, once a row, one of the item and
        # one of the product: faster than joining the four (benchmarks/kernels_cpu.py).
        (first, *further), last = cast(Any, self.score)
        of_ad, of_item, of_difference, of_product = first.weight.split(ad_B1D.shape[2], dim=1)
        units = functional.linear(torch.cat([items_BLD, ad_B1D * items_BLD], dim=2),
                                  torch.cat([of_item - of_difference, of_product], dim=1))
        units = units + functional.linear(ad_B1D, of_ad + of_difference, first.bias)
        for layer in further:
            units = layer(units)
        return last(units)


def latest(values: torch.Tensor, lengths: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last ``count`` entries of each list, the very last first.

    Args:
        values: [sum of lengths], lists end to end, each in the order of time.
        lengths: [B].

    Returns:
        Entries [B, count] and bool [B, count], which of them are there; the others are 0.
    """
    back = torch.arange(count, device=values.device)
    there = back < lengths.unsqueeze(1)
    at = torch.cumsum(lengths, 0).unsqueeze(1) - back  # into the padded values, one further on
    padded = torch.cat([values.new_zeros(1), values])
    return padded[torch.where(there, at, 0)], there
