"""DLRM (Naumov et al. 2019, arXiv:1906.00091): dot products of all pairs of vectors, and a top MLP.

Shape suffixes: B rows, F vectors, D embedding_dim, M matching numbers, H heads.
"""

from __future__ import annotations

import torch

from recsys.config import ModelConfig
from recsys.features.batches import Batch
from recsys.kernels.dispatch import uses_triton
from recsys.kernels.dot_interaction import dot_interaction, pair_order
from recsys.kernels.lookup_interaction import lookup_interaction
from recsys.models.layers import Heads, hidden_layers
from recsys.models.ranker import Inputs, Ranker


class DLRM(Ranker):
    """Dot products beside the vectors themselves, or (``top_input: dense``) beside the numeric features' alone.

    The paper gives the top MLP the dot products and the bottom MLP's output. All vectors beside them cost a wider first
    layer, and let the top see which id it is and not only how ids agree.
    """

    def __init__(self, inputs: Inputs, config: ModelConfig) -> None:
        super().__init__(inputs, config)
        pairs = self.vectors * (self.vectors - 1) // 2
        self._beside = (0, self.vectors)
        if config.top_input == "dense":
            self._beside = (self.dense_at, self.dense_at + (self.bottom is not None))
        beside = self._beside[1] - self._beside[0]
        heads = len(self.head_names)
        self.top = hidden_layers(beside * self.dim + pairs + self.matches, config.top, heads, config.experts,
                                 config.dropout)
        self.heads = Heads((beside * self.dim + pairs + self.matches, *config.top)[-1], heads)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B, H]; in one pass from tables to dot products where that is what the ranker does."""
        found = getattr(self.embeddings, "as_matrix", None)
        alone = self.vectors == self.dense_at + 1 and self._beside == (self.dense_at, self.vectors)
        if found is None or self.bottom is None or not alone or self.attention is not None \
                or not uses_triton(self.config.kernels, found[0]):
            return super().forward(batch)
        matrix, first_row = found
        crossed = lookup_interaction(matrix, self.embeddings.ids(batch.sparse), first_row, self.bottom(batch.dense),
                                     self.config.kernels)
        return self.heads(self.top(crossed))

    def interact(self, x_BFD: torch.Tensor, match_BM: torch.Tensor) -> torch.Tensor:
        """Logits [B, H]."""
        crossed = dot_interaction(x_BFD, *self._beside, self.config.kernels)
        return self.heads(self.top(torch.cat([crossed, match_BM], dim=1) if self.matches else crossed))

    def from_format_1(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """There the dot products stood in the order (1,0), (2,0), (2,1), (3,0), ...: the top's columns move."""
        rows, columns = torch.tril_indices(self.vectors, self.vectors, -1)
        number = torch.zeros(self.vectors, self.vectors, dtype=torch.int64)
        number[rows, columns] = number[columns, rows] = torch.arange(len(rows))
        left, right = pair_order(self.vectors).unbind(1)
        start = (self._beside[1] - self._beside[0]) * self.dim
        name = "top.0.weight" if self.config.top else "heads.weight"
        moved = weights[name].clone()
        moved[:, start : start + len(rows)] = weights[name][:, start + number[left, right]]
        return {**weights, name: moved}

    def interaction_flops(self) -> int:
        """The dot products, as the product of all with all that computes them."""
        return 2 * self.vectors**2 * self.dim
