"""``nn.EmbeddingBag`` a table: any PyTorch, any dimension, any optimizer, L2 of whole tables; for small tables."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.models.embeddings.base import (
    Embeddings,
    SparseOptions,
    Table,
    initialise,
    local_plan,
    torch_optimizer,
)


class DenseEmbeddings(Embeddings):
    """Gradients of whole tables, so a step costs as much as the tables are large. The oracle of the other backends.

    Under several ranks each has all tables; the step sums their gradients as it does those of the dense part.
    """

    def __init__(self, tables: list[Table], dim: int, options: SparseOptions, device: torch.device,
                 seed: int) -> None:
        super().__init__(tables, dim)
        self._options = options
        self._module_list = nn.ModuleList(nn.EmbeddingBag(t.rows, dim, mode="mean", device=device) for t in tables)
        initialise(tables, self.weights(), dim, seed, options.init)
        self._optimizers: list[torch.optim.Optimizer] = []
        for table, bag in zip(tables, self._bags, strict=True):
            kind, lr = options.of_table(table.name)
            cls, settings = torch_optimizer(kind)
            optimizer = cls([bag.weight], lr=lr, **settings)  # type: ignore[call-arg]
            if kind == "adam":  # PyTorch makes Adam's moments at the first step; a checkpoint is read before it
                optimizer.state[bag.weight].update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(bag.weight, requires_grad=False),
                    exp_avg_sq=torch.zeros_like(bag.weight, requires_grad=False))
            self._optimizers.append(optimizer)

    @property
    def _bags(self) -> list[nn.EmbeddingBag]:
        return [cast(nn.EmbeddingBag, b) for b in self._module_list]

    def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """See :class:`Embeddings`."""
        bags = sparse.to_dict()
        found = []
        for table, bag in zip(self.tables, self._bags, strict=True):
            for feature in table.features:
                jagged = bags[feature]
                offsets = torch.cumsum(jagged.lengths(), 0) - jagged.lengths()
                found.append(bag(jagged.values().long(), offsets.long()))
        return torch.stack(found, dim=1)

    def set_lr(self, factor: float) -> None:
        """See :class:`Embeddings`."""
        for table, optimizer in zip(self.tables, self._optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = factor * self._options.of_table(table.name)[1]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See :class:`Embeddings`."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """See :class:`Embeddings`."""
        for bag, optimizer in zip(self._bags, self._optimizers, strict=True):
            weight = bag.weight
            if self._options.l2 and weight.grad is not None:
                weight.grad.add_(weight.detach(), alpha=self._options.l2)
            state = optimizer.state.get(weight, {})
            if "step" in state:
                state["step"].fill_(int(self.steps))
            optimizer.step()
        super().step()

    def weights(self) -> dict[str, torch.Tensor]:
        """See :class:`Embeddings`."""
        return {t.name: bag.weight.data for t, bag in zip(self.tables, self._bags, strict=True)}

    def state(self) -> dict[str, Any]:
        """See :class:`Embeddings`."""
        found = {}
        for table, bag, optimizer in zip(self.tables, self._bags, self._optimizers, strict=True):
            state = optimizer.state.get(bag.weight, {})
            if "sum" in state:  # row-wise Adagrad keeps [rows, 1]
                rowwise = state["sum"].shape[1] < self.dim or self._options.of_table(table.name)[0] == "rowwise_adagrad"
                found[f"table_state.{table.name}"] = state["sum"].view(-1) if rowwise else state["sum"]
            elif "exp_avg" in state:
                found[f"table_state.{table.name}"] = state["exp_avg"]
                found[f"table_state.{table.name}.second"] = state["exp_avg_sq"]
        return found

    def plan(self) -> list[dict[str, Any]]:
        """See :class:`Embeddings`."""
        return local_plan(self.tables, self.dim, self._options, "replicated")
