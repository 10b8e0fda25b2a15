"""DLRM with a content tower (Naumov et al. 2019, arXiv:1906.00091).

Embedding bags for categorical and list features, a bottom MLP for numeric ones, a tower for the ad's content vector
and one for the mean content vector of the user's history; dot products of all pairs; a top MLP; one logit a head.
Shape suffixes: B rows, F vectors, D embedding_dim, C content_dim, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from recsys.config import ModelConfig
from recsys.features.batches import Batch
from recsys.kernels.dot_interaction import dot_interaction
from recsys.models.embeddings import Table, make_embeddings


def mlp(sizes: tuple[int, ...], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers, each followed by ReLU and, where asked for, dropout."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()] + ([nn.Dropout(dropout)] if dropout else [])
    return nn.Sequential(*layers)


class DLRM(nn.Module):
    """The ranker.

    Args:
        tables: embedding tables, with the features that use them.
        dense_width: width of the dense block; 0: no bottom MLP.
        config: sizes.
        heads: names of the outputs.
        content: frozen content vectors [N + 1, C], row 0 zero, or None; never trained, never in the state dict.
        has_history: the user's history is there, so a user content tower is built.
        sparse_lr: learning rate of the embedding tables (their optimizer lives in the backend).
    """

    def __init__(self, tables: list[Table], dense_width: int, config: ModelConfig, heads: tuple[str, ...],
                 content: torch.Tensor | None = None, has_history: bool = False, sparse_lr: float = 0.05,
                 device: torch.device | str = "cpu") -> None:
        super().__init__()
        device, dim = torch.device(device), config.embedding_dim
        self.embeddings = make_embeddings(config.embeddings, tables, dim, sparse_lr, device) if tables else None
        bottom = (dense_width, *config.bottom)
        self.bottom = nn.Sequential(mlp(bottom), nn.Linear(bottom[-1], dim)) if dense_width else None
        self.content: torch.Tensor
        self.register_buffer("content", None if content is None else content.to(device), persistent=False)
        self.ad_tower = self.user_tower = None
        vectors, width = sum(len(t.features) for t in tables) + (dense_width > 0), 0
        if content is not None:
            size = content.shape[1]
            self.ad_tower = nn.Sequential(mlp((size, 4 * dim)), nn.Linear(4 * dim, dim))
            vectors += 1
            if has_history:
                self.user_tower = nn.Sequential(mlp((size, 4 * dim)), nn.Linear(4 * dim, dim))
                vectors, width = vectors + 1, size + 1
        width += vectors * dim + vectors * (vectors - 1) // 2
        self.top = mlp((width, *config.top), config.dropout)
        self.heads = nn.Linear((width, *config.top)[-1], len(heads))
        self.head_names = heads
        self._vectors, self._dim = vectors, dim
        self.to(device)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B, H]."""
        parts: list[torch.Tensor] = []
        match: list[torch.Tensor] = []
        if self.embeddings is not None:
            parts.append(self.embeddings(batch.sparse))
        if self.bottom is not None:
            parts.append(self.bottom(batch.dense).unsqueeze(1))
        if self.ad_tower is not None:
            ad_BC = self.content[batch.content_row]
            parts.append(self.ad_tower(ad_BC).unsqueeze(1))
            if self.user_tower is not None:
                user_BC = self._history_mean(*batch.history_content)
                parts.append(self.user_tower(user_BC).unsqueeze(1))
                # What matches between ad and user is a product of the two: given, not left to be learnt by ReLUs.
                match = [ad_BC * user_BC, functional.cosine_similarity(ad_BC, user_BC, dim=1).unsqueeze(1)]
        x_BFD = torch.cat(parts, dim=1)
        return self.heads(self.top(torch.cat([x_BFD.flatten(1), dot_interaction(x_BFD), *match], dim=1)))

    def _history_mean(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        offsets = torch.cumsum(lengths, 0) - lengths
        return functional.embedding_bag(values, self.content, offsets, mode="mean")

    def dense_parameters(self) -> list[nn.Parameter]:
        """Parameters that the dense optimizer trains: all but the embedding tables."""
        return [p for n, p in self.named_parameters() if not n.startswith("embeddings.")]

    def set_base_rates(self, rates: Mapping[int, float]) -> None:
        """Start each head's bias at the log odds of its base rate, so that the first steps need not learn it."""
        with torch.no_grad():
            for head, rate in rates.items():
                rate = min(max(rate, 1e-6), 1 - 1e-6)
                self.heads.bias[head] = torch.logit(torch.tensor(rate))

    def weights(self) -> dict[str, torch.Tensor]:
        """All trained weights by name, on the CPU; tables as ``table.NAME``. What :meth:`load_weights` takes."""
        dense = {n: p for n, p in self.named_parameters() if not n.startswith("embeddings.")}
        tables = {} if self.embeddings is None else self.embeddings.weights()
        found = dense | {f"table.{n}": w for n, w in tables.items()}
        return {n: w.detach().to("cpu", copy=True).contiguous() for n, w in found.items()}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over weights, in place.

        Raises:
            KeyError, RuntimeError: a weight is missing or of another shape.
        """
        dense = {n: p for n, p in self.named_parameters() if not n.startswith("embeddings.")}
        tables = {} if self.embeddings is None else self.embeddings.weights()
        with torch.no_grad():
            for name, target in (dense | {f"table.{n}": w for n, w in tables.items()}).items():
                if target.shape != weights[name].shape:
                    raise RuntimeError(f"{name}: got {tuple(weights[name].shape)}, expected {tuple(target.shape)}")
                target.copy_(weights[name])

    def flops_per_row(self) -> int:
        """Multiply-adds counted as two, of one row forward: linear layers and dot products; lookups are not counted."""
        linear = sum(2 * m.in_features * m.out_features for m in self.modules() if isinstance(m, nn.Linear))
        return linear + 2 * self._vectors**2 * self._dim
