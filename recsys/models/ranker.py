"""What every ranker shares: the vectors that it interacts, its heads, its weights and how it is counted.

A ranker reads embedding bags of categorical and list features, a bottom MLP of the numeric ones, a tower of the ad's
content vector and one of the content of the user's history. From these it makes F vectors of length D a row; what
comes then is the subclass's ``interact``. Shape suffixes: B rows, F vectors, D embedding_dim, C content_dim, M matching
numbers of ad and user, L items of a history, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from recsys.config import ModelConfig
from recsys.errors import InputError
from recsys.features.batches import Batch
from recsys.kernels.dispatch import autocast_dtype
from recsys.models.attention import TargetAttention, latest
from recsys.models.layers import tower
from recsys.models.packed_linear import PackedLinear
from recsys.models.trained import Trained

_AD = "ad_id"


@dataclass(frozen=True)
class Inputs:
    """What a ranker reads.

    Attributes:
        embeddings: module KeyedJaggedTensor -> mean-pooled vectors [B, features, D], or None where there are no
            tables; on one device or sharded over many, the ranker does not know.
        features: their names, in the order of the lookup's second dimension. With ``history: attention`` the item
            ``i`` of the list feature NAME is the feature ``NAME@i``.
        dense_width: width of the dense block; 0: no bottom MLP.
        content: frozen content vectors [N + 1, C], row 0 zero, or None; never trained, never in the state dict.
        has_history: batches hold the user's history, so that content is also matched with it.
    """

    embeddings: Any
    features: tuple[str, ...]
    dense_width: int
    content: torch.Tensor | None = None
    has_history: bool = False


class Ranker(Trained):
    """Base of the rankers; a subclass sets ``heads`` and defines :meth:`interact` and :meth:`interaction_flops`.

    Args:
        inputs: what it reads.
        config: sizes; ``config.heads`` are the outputs.

    Raises:
        InputError: attention over a history without anything that says which ad is shown.
    """

    heads: Any  # a module with a ``bias`` [H]
    content: torch.Tensor

    def __init__(self, inputs: Inputs, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.config, self.head_names = config, config.heads
        self.embeddings = inputs.embeddings
        self.bottom = tower((inputs.dense_width, *config.bottom), dim) if inputs.dense_width else None
        self.register_buffer("content", inputs.content, persistent=False)
        self.ad_tower = self.user_tower = self.attention = self.content_attention = None
        self._sections = _sections(inputs.features if config.history == "attention" else ())
        histories = [name for name, _ in self._sections if name not in ("", _AD)]
        if inputs.content is not None:
            self.ad_tower = tower((inputs.content.shape[1], 4 * dim), dim)
            if inputs.has_history:
                self.user_tower = tower((inputs.content.shape[1], 4 * dim), dim)
        if histories:
            if _AD not in inputs.features and self.ad_tower is None:
                raise InputError("history attention without an ad", column="model.history", got=list(inputs.features),
                                 expected=f"the feature {_AD}, or an arm with content")
            self.attention = nn.ModuleDict({n: TargetAttention(dim, config.attention, kernels=config.kernels)
                                            for n in histories})
        if self.user_tower is not None and config.history == "attention":
            self.content_attention = TargetAttention(self.content.shape[1], config.attention, dim,
                                                     config.kernels)
        looked_up = sum(1 if name in histories else count for name, count in self._sections) or len(inputs.features)
        self.dim, self.dense_at = dim, looked_up
        self.vectors = looked_up + sum(m is not None for m in (self.bottom, self.ad_tower, self.user_tower))
        self.matches = self.content.shape[1] + 1 if self.user_tower is not None else 0

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B, H]."""
        if self.embeddings is None or self.attention is not None:
            return self.rank(None if self.embeddings is None else self.embeddings(batch.sparse), batch)
        others, _, match = self._others(batch)
        return self._interacted(self.embeddings.joined(batch.sparse, others), match)

    def rank(self, looked_up: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        """Logits [B, H] from looked-up vectors [B, features, D] and the rest of a batch: dense arithmetic alone."""
        others, ad_BD, match = self._others(batch)
        parts = others
        if looked_up is not None:
            # Narrowed once, here: else the joined vectors are widened to float32, and narrowed again by each product.
            parts = [*self._pooled(looked_up.to(autocast_dtype(looked_up)), ad_BD, batch), *others]
        return self._interacted(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), match)

    def _interacted(self, x_BFD: torch.Tensor, match: list[torch.Tensor]) -> torch.Tensor:
        return self.interact(x_BFD, torch.cat(match, dim=1) if match else x_BFD.new_zeros(x_BFD.shape[0], 0))

    def _others(self, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor | None, list[torch.Tensor]]:
        """Vectors [B, 1, D] that are not looked up, the ad's content [B, D] where there is one, and what matches."""
        parts: list[torch.Tensor] = []
        match: list[torch.Tensor] = []
        ad_BD = None
        if self.bottom is not None:
            parts.append(self.bottom(batch.dense).unsqueeze(1))
        if self.ad_tower is not None:
            ad_BC = self.content[batch.content_row]
            ad_BD = self.ad_tower(ad_BC)
            parts.append(ad_BD.unsqueeze(1))
            if self.user_tower is not None:
                user_BC = self._user_content(ad_BC, batch)
                parts.append(self.user_tower(user_BC).unsqueeze(1))
                # What matches between ad and user is a product of the two: given, not left to be learnt by ReLUs.
                match = [ad_BC * user_BC, functional.cosine_similarity(ad_BC, user_BC, dim=1).unsqueeze(1)]
        return parts, ad_BD, match

    def interact(self, x_BFD: torch.Tensor, match_BM: torch.Tensor) -> torch.Tensor:
        """Logits [B, H] of a row's F vectors and its M matching numbers."""
        raise NotImplementedError

    def interaction_flops(self) -> int:
        """Operations of :meth:`interact` besides its linear layers, one row forward."""
        return 0

    def _pooled(self, looked_up: torch.Tensor, ad_BD: torch.Tensor | None, batch: Batch) -> list[torch.Tensor]:
        if self.attention is None:
            return [looked_up]
        # One split and not a slice each: backward would fill and add up the whole [B, features, D] for every slice.
        parts = looked_up.split([count for _, count in self._sections], dim=1)
        query = next((p.squeeze(1) for (name, _), p in zip(self._sections, parts, strict=True) if name == _AD), ad_BD)
        keys = {name: i for i, name in enumerate(batch.sparse.keys())}
        there = batch.sparse.lengths().view(len(keys), -1) > 0
        plain, pooled = [], []
        for (name, count), part_BLD in zip(self._sections, parts, strict=True):
            if name not in self.attention:
                plain.append(part_BLD)
                continue
            there_BL = there[keys[f"{name}@0"] : keys[f"{name}@{count - 1}"] + 1].T
            pooled.append(self.attention[name](query, part_BLD, there_BL).unsqueeze(1))
        return [*plain, *pooled]

    def _user_content(self, ad_BC: torch.Tensor, batch: Batch) -> torch.Tensor:
        values, lengths = batch.history_content
        if self.content_attention is None:
            return functional.embedding_bag(values, self.content, torch.cumsum(lengths, 0) - lengths, mode="mean")
        rows_BL, there_BL = latest(values, lengths, self.config.history_length)
        return self.content_attention(ad_BC, self.content[rows_BL], there_BL)

    def set_base_rates(self, rates: Mapping[int, float]) -> None:
        """Start each head's bias at the log odds of its base rate, so that the first steps need not learn it."""
        with torch.no_grad():
            for head, rate in rates.items():
                rate = min(max(rate, 1e-6), 1 - 1e-6)
                self.heads.bias[head] = torch.logit(torch.tensor(rate))

    def from_format_1(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of a model folder of format 1 (all of which are DLRMs) as this ranker keeps them."""
        return weights

    def flops_per_row(self) -> int:
        """Multiply-adds counted as two, of one row forward: linear layers and interaction; lookups are not counted."""
        flops = self.interaction_flops()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | PackedLinear):
                items = self.config.history_length if name.startswith(("attention.", "content_attention.")) else 1
                flops += 2 * module.in_features * module.out_features * items
        return flops


def correct_for_sampling(model: Ranker, keep: float | Sequence[float]) -> None:
    """Undo, in place, that training saw only a share ``keep`` of the failures, so that probabilities are calibrated.

    Sampled odds are p / ((1 - p) keep), so the logit is too high by -log(keep), whatever the row: the bias of each head
    takes the difference. This is the re-calibration q = p / (p + (1 - p) / w) of He et al. 2014 ("Practical Lessons
    from Predicting Clicks on Ads at Facebook", section 6.3) written for logits.

    Args:
        model: trained on the sample; not to be trained any further.
        keep: share of the failures that was kept, or one share a head. Exact where it does not depend on the row; of a
            head whose failures are partly successes of another (and so always kept), the share over all its failures
            makes the mean right.

    Raises:
        ValueError: a share outside (0, 1], or not one a head.
    """
    shares = [keep] * len(model.head_names) if isinstance(keep, float | int) else list(keep)
    if len(shares) != len(model.head_names) or not all(0 < s <= 1 for s in shares):
        raise ValueError(f"shares in (0, 1], one a head ({len(model.head_names)}), not {shares}")
    with torch.no_grad():
        bias = model.heads.bias
        bias += torch.log(torch.tensor(shares, dtype=torch.float64)).to(bias)


def _sections(features: Sequence[str]) -> list[tuple[str, int]]:
    """Runs of features in their order, and how many each: plain ones (""), the ad alone, and the items ``NAME@0``,
    ``NAME@1``, ... of a list feature (NAME)."""
    found: list[tuple[str, int]] = []
    for feature in features:
        name, _, item = feature.rpartition("@")
        if name and item.isdecimal():
            if int(item):
                assert found[-1] == (name, int(item)), f"items of {name} apart or out of order"
                found[-1] = (name, int(item) + 1)
            else:
                assert name not in dict(found), f"items of {name} apart"
                found.append((name, 1))
        elif feature != _AD and found and not found[-1][0]:
            found[-1] = ("", found[-1][1] + 1)
        else:
            found.append((_AD if feature == _AD else "", 1))
    return found
