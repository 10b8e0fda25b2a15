"""DCN V2 (Wang et al. 2021, arXiv:2008.13535): low-rank cross layers, and an MLP on top of them.

The cross network stands under the MLP (stacked), as in MLPerf's DLRM-DCNv2, and not beside it (parallel): so the
mixture of experts has one place to be, and the paper finds neither structure ahead on all data.
Shape suffixes: B rows, F vectors, D embedding_dim, M matching numbers, W = F D + M, H heads.
"""

from __future__ import annotations

import torch
from torch import nn

from recsys.config import ModelConfig
from recsys.kernels.cross_layer import cross_layer
from recsys.models.layers import Heads, hidden_layers
from recsys.models.ranker import Inputs, Ranker


class CrossLayer(nn.Module):
    """x' = x0 * (U V x + b) + x: with every layer the polynomial in the inputs rises by one degree.

    Args:
        width: W.
        rank: rows of V and columns of U; 0: one full matrix in their place.
        kernels: ``ModelConfig.kernels``.
    """

    def __init__(self, width: int, rank: int, kernels: str = "auto") -> None:
        super().__init__()
        self._kernels = kernels
        self.down = nn.Linear(width, rank, bias=False) if 0 < rank < width else nn.Identity()
        self.up = nn.Linear(rank if 0 < rank < width else width, width)
        # The variance of W x is that of x, as for one Xavier matrix: the layers must not blow up with their number.
        for matrix in (self.down, self.up):
            if isinstance(matrix, nn.Linear):
                nn.init.xavier_normal_(matrix.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x0_BW: torch.Tensor, x_BW: torch.Tensor) -> torch.Tensor:
        """The next layer's input [B, W]."""
        down = self.down.weight if isinstance(self.down, nn.Linear) else None
        return cross_layer(x0_BW, x_BW, down, self.up.weight, self.up.bias, self._kernels)


class DCNv2(Ranker):
    """Explicit crosses of all inputs up to degree ``cross_layers`` + 1, then ``top``."""

    def __init__(self, inputs: Inputs, config: ModelConfig) -> None:
        super().__init__(inputs, config)
        width, heads = self.vectors * self.dim + self.matches, len(self.head_names)
        self.cross = nn.ModuleList(CrossLayer(width, config.cross_rank, config.kernels)
                                   for _ in range(config.cross_layers))
        self.top = hidden_layers(width, config.top, heads, config.experts, config.dropout)
        self.heads = Heads((width, *config.top)[-1], heads)

    def interact(self, x_BFD: torch.Tensor, match_BM: torch.Tensor) -> torch.Tensor:
        """Logits [B, H]."""
        x0_BW = torch.cat([x_BFD.flatten(1), match_BM], dim=1)
        x_BW = x0_BW
        for layer in self.cross:
            x_BW = layer(x0_BW, x_BW)
        return self.heads(self.top(x_BW))

    def interaction_flops(self) -> int:
        """The products with x0 and the sums."""
        return 2 * len(self.cross) * (self.vectors * self.dim + self.matches)
