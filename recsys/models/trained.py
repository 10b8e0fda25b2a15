"""What training, checkpoints and model folders need of a model: its dense part and its tables, by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from recsys.models.embeddings import write_tensor


class Trained(nn.Module):
    """Base of what the training loop trains.

    Attributes:
        embeddings: the tables, which train themselves, or None; they stand outside of the dense parameters.
        head_names: what a row of the model's output is about.
    """

    embeddings: Any
    head_names: tuple[str, ...]

    def dense_parameters(self) -> list[nn.Parameter]:
        """Parameters that the dense optimizer trains: all but the embedding tables."""
        return list(self._dense().values())

    def _dense(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.named_parameters() if not n.startswith("embeddings.")}

    def weights(self) -> dict[str, torch.Tensor]:
        """All trained weights by name, on the CPU; tables as ``table.NAME``. What :meth:`load_weights` takes."""
        return {n: w.detach().to("cpu", copy=True).contiguous() for n, w in self._all_weights().items()}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over weights, in place.

        Raises:
            KeyError, RuntimeError: a weight is missing or of another shape.
        """
        for name, target in self._dense().items():
            write_tensor(name, target, weights[name])
        if self.embeddings is not None:
            tables = {n.removeprefix("table."): w for n, w in weights.items() if n.startswith("table.")}
            self.embeddings.load_weights(tables)

    def _all_weights(self) -> dict[str, torch.Tensor]:
        tables = {} if self.embeddings is None else self.embeddings.weights()
        return {**self._dense(), **{f"table.{n}": w for n, w in tables.items()}}

    def with_content(self, content: torch.Tensor) -> Self:
        """The same model on another content matrix [N' + 1, C]; weights are shared, buffers are not."""
        other = copy.copy(self)
        other._buffers = {**self._buffers, "content": content}
        return other
