"""FinalMLP (Mao et al. 2023, arXiv:2304.00902): two MLPs on differently gated inputs, met in a bilinear fusion.

Shape suffixes: B rows, F vectors, D embedding_dim, M matching numbers, W = F D + M, H heads, K fusion heads, X and Y
widths of the streams' last layers, x = X / K, y = Y / K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from recsys.config import ModelConfig
from recsys.errors import InputError
from recsys.models.layers import hidden_layers, mlp
from recsys.models.ranker import Inputs, Ranker


class FeatureGate(nn.Module):
    """Scales every input by 2 sigmoid(MLP(inputs)), in (0, 2), the paper's feature selection; it starts at 1.

    The paper lets one or a few chosen features decide a gate; which they should be is not known of an arbitrary log,
    so all decide, through the narrow hidden layer.
    """

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        last = nn.Linear((width, *hidden)[-1], width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.gate = nn.Sequential(mlp((width, *hidden)), last)

    def forward(self, x_BW: torch.Tensor) -> torch.Tensor:
        """The gated inputs [B, W]."""
        return 2 * torch.sigmoid(self.gate(x_BW)) * x_BW


class BilinearFusion(nn.Module):
    """b + u'x + v'y + sum over K parts of x_k' W_k y_k, with weights of its own a head."""

    def __init__(self, x: int, y: int, parts: int, heads: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(heads))
        self.first = nn.Parameter(torch.empty(heads, x).uniform_(-(x**-0.5), x**-0.5))
        self.second = nn.Parameter(torch.empty(heads, y).uniform_(-(y**-0.5), y**-0.5))
        # Xavier for a K-th of the streams: a part's product has the size of one of its factors.
        self.product = nn.Parameter(torch.randn(heads, parts, x // parts, y // parts) * (2 * parts / (x + y)) ** 0.5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Logits [B, H] of streams [B, X] and [B, Y] that all heads share, or [B, H, X] and [B, H, Y]."""
        heads, parts, wide, high = self.product.shape
        x_BHX, y_BHY = (t.unsqueeze(1) if t.dim() == 2 else t for t in (x, y))
        linear = (x_BHX * self.first).sum(-1) + (y_BHY * self.second).sum(-1) + self.bias
        x_BHKx = x_BHX.unflatten(-1, (parts, wide)).expand(-1, heads, -1, -1)
        y_BHKy = y_BHY.unflatten(-1, (parts, high)).expand(-1, heads, -1, -1)
        return linear + torch.einsum("bhkx,hkxy,bhky->bh", x_BHKx, self.product, y_BHKy)


class FinalMLP(Ranker):
    """Two streams; ``streams`` says their layers, ``gates`` the hidden layers of their gates, ``fusion_heads`` K.

    Raises:
        InputError: the last layers of the streams are no multiples of ``fusion_heads``.
    """

    def __init__(self, inputs: Inputs, config: ModelConfig) -> None:
        super().__init__(inputs, config)
        width, heads = self.vectors * self.dim + self.matches, len(self.head_names)
        sizes = [(width, *hidden)[-1] for hidden in config.streams]
        if any(size % config.fusion_heads for size in sizes):
            raise InputError("streams do not fall into equal parts", column="model.fusion_heads",
                             got=config.fusion_heads,
                             expected=f"a divisor of {sizes[0]} and {sizes[1]}, the streams' last layers")
        self.gates = nn.ModuleList(FeatureGate(width, config.gates) for _ in config.streams if config.gates)
        self.streams = nn.ModuleList(hidden_layers(width, hidden, heads, config.experts, config.dropout)
                                     for hidden in config.streams)
        self.heads = BilinearFusion(sizes[0], sizes[1], config.fusion_heads, heads)

    def interact(self, x_BFD: torch.Tensor, match_BM: torch.Tensor) -> torch.Tensor:
        """Logits [B, H]."""
        x_BW = torch.cat([x_BFD.flatten(1), match_BM], dim=1)
        gated = [gate(x_BW) for gate in self.gates] or [x_BW, x_BW]
        return self.heads(*(stream(x) for stream, x in zip(self.streams, gated, strict=True)))

    def interaction_flops(self) -> int:
        """The bilinear fusion and the gates' products."""
        products = self.heads.product
        return 2 * products.numel() + 2 * len(self.gates) * (self.vectors * self.dim + self.matches)
