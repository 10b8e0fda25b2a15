"""TorchRec's FusedEmbeddingBagCollection: one kernel for all tables, their update inside backward; one device."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.models.embeddings.base import (
    Embeddings,
    SparseOptions,
    Table,
    initialise,
    local_plan,
    torch_optimizer,
)

# torchrec 1.8 asks torch 2.13 a deprecated question at the first lookup; the warning says nothing to our users.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def bag_configs(tables: list[Table], dim: int, pooling: PoolingType | None = None) -> list[EmbeddingBagConfig]:
    """TorchRec's description of the tables, all pooled alike, so that one kernel serves them.

    Sums where no bag holds more than one row: the same as means, for a sixth less time forward and backward on a CPU.
    """
    if pooling is None:
        pooling = PoolingType.MEAN if any(t.lists for t in tables) else PoolingType.SUM
    return [EmbeddingBagConfig(name=t.name, embedding_dim=dim, num_embeddings=t.rows, feature_names=list(t.features),
                               pooling=pooling) for t in tables]


def set_iteration(kernel: Any, step: int) -> None:
    """Let an FBGEMM kernel go on from a step: Adam's bias correction depends on it."""
    iteration = getattr(kernel, "iter", None)
    if isinstance(iteration, torch.Tensor) and iteration.numel():
        iteration.fill_(step)


class FusedEmbeddings(Embeddings):
    """A step costs as much as the rows that were looked up. Tables of one optimizer and rate share a kernel."""

    def __init__(self, tables: list[Table], dim: int, options: SparseOptions, device: torch.device,
                 seed: int) -> None:
        super().__init__(tables, dim)
        self._options = options
        groups: dict[tuple[Any, float], list[Table]] = {}
        for table in tables:
            groups.setdefault(options.of_table(table.name), []).append(table)
        self._groups = list(groups)
        self._module_list = nn.ModuleList()
        for (kind, lr), members in groups.items():
            optimizer, settings = torch_optimizer(kind)
            self._module_list.append(FusedEmbeddingBagCollection(
                bag_configs(members, dim), optimizer_type=optimizer,
                optimizer_kwargs={"lr": lr, **settings}, device=device))
        wanted = [f for t in tables for f in t.features]
        given = [f for members in groups.values() for t in members for f in t.features]
        self._order = None
        if given != wanted:
            self._order = torch.tensor([given.index(f) for f in wanted], device=device)
        initialise(tables, self.weights(), dim, seed, options.init)

    @property
    def _bags(self) -> list[FusedEmbeddingBagCollection]:
        return [cast(FusedEmbeddingBagCollection, b) for b in self._module_list]

    def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """See :class:`Embeddings`."""
        found = [bags(sparse).values() for bags in self._bags]
        values = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        pooled = values.view(values.shape[0], -1, self.dim)
        return pooled if self._order is None else pooled.index_select(1, self._order)

    def set_lr(self, factor: float) -> None:
        """See :class:`Embeddings`."""
        for (_, lr), bags in zip(self._groups, self._bags, strict=True):
            optimizer = bags.fused_optimizer()
            for group in optimizer.param_groups:
                group["lr"] = factor * lr
            optimizer.zero_grad()  # hands the rate to the kernel

    def weights(self) -> dict[str, torch.Tensor]:
        """See :class:`Embeddings`."""
        found = {n: b.weight.data for bags in self._bags for n, b in bags.embedding_bags.items()}
        return {t.name: found[t.name] for t in self.tables}

    def state(self) -> dict[str, Any]:
        """See :class:`Embeddings`."""
        found = {}
        for bags in self._bags:
            state = bags.fused_optimizer().state_dict()["state"]
            for name in bags.embedding_bags:
                moments = state.get(f"{name}.weight", {})  # SGD keeps nothing
                for key, suffix in (("momentum_1", ""), ("momentum_2", ".second")):
                    moment = moments.get(f"{name}.weight.{key}")
                    if moment is not None and moment.numel():
                        found[f"table_state.{name}{suffix}"] = moment
        return {n: found[n] for t in self.tables for n in (f"table_state.{t.name}", f"table_state.{t.name}.second")
                if n in found}

    def loaded(self) -> None:
        """Adam's bias correction goes on from the step that was read."""
        for bags in self._bags:
            for module in bags._emb_modules:
                set_iteration(module._emb_module, int(self.steps))

    def plan(self) -> list[dict[str, Any]]:
        """See :class:`Embeddings`."""
        return local_plan(self.tables, self.dim, self._options, "whole")
