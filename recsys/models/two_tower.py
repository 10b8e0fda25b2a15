"""Two towers: a vector of the user and one of the ad, whose cosine says how likely this ad is this user's next click.

Neither tower sees the other's side, so the ads' vectors are made ahead and lie in an index; a request costs one user
vector and a search (Covington et al. 2016, RecSys; Yi et al. 2019, RecSys). Shape suffixes: B rows, F features,
E embedding_dim, C content_dim, D length of the towers' vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from recsys.config import RetrieverConfig
from recsys.errors import InputError
from recsys.features.batches import Batch
from recsys.models.frequency import StreamingFrequency
from recsys.models.layers import mlp
from recsys.models.trained import Trained

AD = "ad_id"


@dataclass(frozen=True)
class TowerInputs:
    """What the towers read.

    Attributes:
        embeddings: module KeyedJaggedTensor -> mean-pooled vectors [B, F, E], or None.
        features: their names, in the order of the lookup's second dimension.
        user, ad: those of ``features`` that each tower reads.
        user_dense, ad_dense: columns of the dense block that each reads.
        content: frozen content vectors [N + 1, C], row 0 zero, or None.
        of_content: those of ``ad`` that are prefixes of a semantic id, the broadest first.
        has_history: batches hold the content rows of the user's history.
        ads: rows of the table ``ad_id``; 0 where that is no feature.
    """

    embeddings: Any
    features: tuple[str, ...]
    user: tuple[str, ...]
    ad: tuple[str, ...]
    user_dense: tuple[int, ...]
    ad_dense: tuple[int, ...]
    content: torch.Tensor | None
    of_content: tuple[str, ...]
    has_history: bool
    ads: int


class TwoTower(Trained):
    """The towers, and the estimate of how often each ad is drawn that their training corrects by.

    Args:
        inputs: what they read.
        config: sizes.

    Raises:
        InputError: nothing to tell one ad, or one user, from another.
    """

    content: torch.Tensor
    head_names = ("retrieve",)

    def __init__(self, inputs: TowerInputs, config: RetrieverConfig) -> None:
        super().__init__()
        self.config, self.embeddings = config, inputs.embeddings
        self.register_buffer("content", inputs.content, persistent=False)
        self._user = [i for i, f in enumerate(inputs.features) if f in inputs.user]
        self._ad = [i for i, f in enumerate(inputs.features) if f in inputs.ad]
        self._ad_names = [f for f in inputs.features if f in inputs.ad]
        # Share of the hiding rows that hide each of them: all hide the id, a deep level sooner than a broad one.
        levels = len(inputs.of_content)
        self._hidden = {self._ad_names.index(n): (i + 1) / levels for i, n in enumerate(inputs.of_content)}
        if AD in self._ad_names:
            self._hidden[self._ad_names.index(AD)] = 1.0
        self._user_dense, self._ad_dense = list(inputs.user_dense), list(inputs.ad_dense)
        self._has_history = inputs.has_history and inputs.content is not None
        wide = 0 if inputs.content is None else inputs.content.shape[1]
        if not wide and AD not in self._ad_names:
            raise InputError("ads without id or content", column="retrievers", got=list(inputs.features),
                             expected=f"the feature {AD}, or a retriever with content")
        widths = {"user": len(self._user) * config.embedding_dim + len(self._user_dense) + wide * self._has_history,
                  "ad": len(self._ad) * config.embedding_dim + len(self._ad_dense) + wide}
        if not widths["user"]:
            raise InputError("nothing is known of a user", column="retrievers", got=list(inputs.features),
                             expected="a user feature or a history")
        self.user_tower, self.ad_tower = (
            nn.Sequential(mlp((widths[side], *hidden), config.dropout),
                          nn.Linear((widths[side], *hidden)[-1], config.dim))
            for side, hidden in (("user", config.user), ("ad", config.ad)))
        self.shared = None
        if self._has_history:
            self.shared = nn.Linear(wide, config.dim, bias=False)
            nn.init.eye_(self.shared.weight)
        self.frequency = StreamingFrequency(inputs.ads if inputs.content is None else len(inputs.content),
                                            config.frequency_rate)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Unit vectors [B, 2, D]: of each row's user, and of its ad."""
        return self.rank(None if self.embeddings is None else self.embeddings(batch.sparse), batch)

    def rank(self, looked_up: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        """As :meth:`forward`, from looked-up vectors [B, F, E]: dense arithmetic alone."""
        history_BC = self._history(batch) if self._has_history else None
        user_BD = self.user_tower(self._user_inputs(looked_up, history_BC, batch))
        ad_BD = self.ad_tower(self._ad_inputs(looked_up, batch))
        if self.shared is not None and history_BC is not None:
            user_BD = user_BD + self.shared(history_BC)
            ad_BD = ad_BD + self.shared(self.content[batch.content_row])
        return functional.normalize(torch.stack([user_BD, ad_BD], dim=1).float(), dim=2)

    def _history(self, batch: Batch) -> torch.Tensor:
        values, lengths = batch.history_content
        return functional.embedding_bag(values, self.content, torch.cumsum(lengths, 0) - lengths, mode="mean")

    def _user_inputs(self, looked_up: torch.Tensor | None, history_BC: torch.Tensor | None, batch: Batch
                     ) -> torch.Tensor:
        parts = [batch.dense[:, self._user_dense]]
        if looked_up is not None:
            parts.append(looked_up[:, self._user].flatten(1))
        if history_BC is not None:
            parts.append(history_BC)
        return torch.cat(parts, dim=1)

    def _ad_inputs(self, looked_up: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        parts = [batch.dense[:, self._ad_dense]]
        if looked_up is not None and self._ad:
            of_ad = looked_up[:, self._ad]
            of_ad = of_ad * self._shown(batch).unsqueeze(2)
            parts.append(of_ad.flatten(1))
        if self.content is not None:
            parts.append(self.content[batch.content_row])
        return torch.cat(parts, dim=1)

    def _shown(self, batch: Batch) -> torch.Tensor:
        """1 where a feature of the ad may be looked at, 0 where it is unknown or hidden; [B, ad's features]."""
        sparse: Any = batch.sparse
        rows = [sparse[name].values() > 0 for name in self._ad_names]
        if self.training and self.config.id_dropout:
            # An ad that hides its id, and its semantic id from some level on, looks like one that training never saw:
            # after Volkovs, Yu and Poutanen 2017 (DropoutNet, NeurIPS).
            chance = torch.rand(len(batch), device=batch.dense.device) / self.config.id_dropout  # hidden: below 1
            for i, depth in self._hidden.items():
                rows[i] = rows[i] & (chance >= depth)
        return torch.stack(rows, dim=1).float()

    def items(self, batch: Batch) -> torch.Tensor:
        """Which ad each row shows, as the frequency estimate counts them: content rows, or rows of its table."""
        return batch.content_row if self.content is not None else batch.sparse[AD].values().long()

    def flops_per_row(self) -> int:
        """Multiply-adds counted as two, of one row forward through both towers."""
        return sum(2 * m.in_features * m.out_features for m in self.modules() if isinstance(m, nn.Linear))
