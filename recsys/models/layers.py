"""Layers that several rankers share. Shape suffixes: B rows, W width, H heads, E experts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


def mlp(sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers, each followed by ReLU and, where asked for, dropout.

    Args:
        sizes: input width, then the width of each layer; one number alone: the identity.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()] + ([nn.Dropout(dropout)] if dropout else [])
    return nn.Sequential(*layers)


def tower(sizes: Sequence[int], dim: int) -> nn.Sequential:
    """An MLP and a linear layer on top, for what other vectors are compared with: [.., sizes[0]] -> [.., dim]."""
    return nn.Sequential(mlp(sizes), nn.Linear(sizes[-1], dim))


class MixtureOfExperts(nn.Module):
    """Multi-gate mixture of experts (Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with MMoE").

    Every expert is an MLP of the same input; each head mixes the experts by a softmax gate of its own, which reads
    that input too: f_h(x) = sum_e g_h(x)_e f_e(x).

    Args:
        sizes: input width, then the hidden layers of an expert.
    """

    def __init__(self, sizes: Sequence[int], experts: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(sizes, dropout) for _ in range(experts))
        self.gates = nn.Linear(sizes[0], heads * experts)
        self._shape = (heads, experts)

    def forward(self, x_BW: torch.Tensor) -> torch.Tensor:
        """[B, width] -> [B, H, last hidden layer]."""
        gates_BHE = self.gates(x_BW).unflatten(1, self._shape).softmax(-1)
        experts_BEW = torch.stack([expert(x_BW) for expert in self.experts], dim=1)
        return torch.bmm(gates_BHE.to(experts_BEW.dtype), experts_BEW)


def hidden_layers(width: int, hidden: Sequence[int], heads: int, experts: int, dropout: float) -> nn.Module:
    """The layers under the heads: one MLP for all ([B, W]), or with ``experts`` a mixture a head ([B, H, W])."""
    if experts and hidden:
        return MixtureOfExperts((width, *hidden), experts, heads, dropout)
    return mlp((width, *hidden), dropout)


class Heads(nn.Linear):
    """One logit a head: of what all heads share [B, W], or of what each has of its own [B, H, W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, H]."""
        if x.dim() == 2:
            return super().forward(x)
        return (x * self.weight).sum(-1) + self.bias
