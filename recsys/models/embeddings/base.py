"""What the model, the loop and the checkpoint need of embedding tables, whoever keeps them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from recsys.config import TrainingConfig
from recsys.config.training import SparseOptimizer, TableConfig
from recsys.kernels.dispatch import autocast_dtype

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from recsys.features.bags import Bags

EPS = 1e-8
_BLOCK = 1 << 16  # rows initialised from one seed


@dataclass(frozen=True)
class Table:
    """One embedding table.

    Args:
        name: table name.
        rows: number of rows; row 0 is the out-of-vocabulary row.
        features: keys of the KeyedJaggedTensor that look rows up in it.
        lists: bags may hold several rows, which are averaged; False: none or one, whose sum is the mean.
    """

    name: str
    rows: int
    features: tuple[str, ...]
    lists: bool = True


@dataclass(frozen=True)
class SparseOptions:
    """How tables are trained: one optimizer a table, the same whatever the sharding.

    Args:
        optimizer, lr: of all tables but those that ``tables`` names otherwise.
        l2: L2 of whole tables each step, its gradient is ``l2 * weights``; dense backend only.
        tables: settings of single tables.
        init: rows start uniform within +- init / sqrt(dim).
    """

    optimizer: SparseOptimizer = "rowwise_adagrad"
    lr: float = 0.05
    l2: float = 0.0
    tables: Mapping[str, TableConfig] = field(default_factory=dict)
    init: float = 0.1

    @classmethod
    def of(cls, training: TrainingConfig) -> SparseOptions:
        """What the experiment file's section says."""
        return cls(training.sparse_optimizer, training.sparse_lr, training.embedding_l2, training.tables,
                   training.embedding_init)

    def of_table(self, name: str) -> tuple[SparseOptimizer, float]:
        """Optimizer and learning rate of a table."""
        own = self.tables.get(name, TableConfig())
        return own.optimizer or self.optimizer, self.lr if own.lr is None else own.lr


class Embeddings(nn.Module):
    """Base of the backends; a backend owns its tables' optimizers.

    ``steps`` counts :meth:`step`; it is part of the checkpoint, because Adam's bias correction depends on it.
    """

    sharded = False
    """Whether a lookup needs all ranks."""

    def __init__(self, tables: list[Table], dim: int) -> None:
        super().__init__()
        self.tables, self.dim = tables, dim
        self.steps = torch.zeros((), dtype=torch.int64)

    def forward(self, sparse: KeyedJaggedTensor | Bags) -> torch.Tensor:
        """Mean-pooled embeddings [B, F, D], features in the order of the tables' ``features``; empty bag: zeros."""
        raise NotImplementedError

    def joined(self, sparse: KeyedJaggedTensor | Bags, others: Sequence[torch.Tensor]) -> torch.Tensor:
        """The embeddings with other vectors [B, K, D] behind them: [B, F + sum of K, D], in autocast's dtype."""
        found = self(sparse)
        return torch.cat([found.to(autocast_dtype(found)), *others], dim=1)

    def set_lr(self, factor: float) -> None:
        """Learning rate of the next step: each table's own times ``factor``."""
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the last step (where backward has not already used them up)."""

    def step(self) -> None:
        """Apply the optimizers (nothing to do where backward has done so) and count the step."""
        self.steps += 1

    def weights(self) -> dict[str, torch.Tensor]:
        """Table name -> weights [rows, D]: of all tables where this process has them whole, sharing their memory.

        Sharded tables are collected on rank 0, in its main memory; other ranks get {}; all ranks must call it.
        """
        raise NotImplementedError

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over whole tables [rows, D] by name, in place.

        Raises:
            KeyError, RuntimeError: a table is missing or of another shape.
        """
        for name, target in self.weights().items():
            write_tensor(name, target, weights[name])

    def state(self) -> dict[str, Any]:
        """The optimizers' state by checkpoint name, sharing memory; sharded tables: ShardedTensors.

        ``table_state.NAME`` float32 [rows] (row-wise Adagrad) or [rows, D] (Adagrad, Adam's first moment);
        ``table_state.NAME.second`` [rows, D] (Adam). SGD has none.
        """
        raise NotImplementedError

    def checkpoint_tensors(self) -> dict[str, Any]:
        """Everything that going on needs, by names and shapes that no backend or number of ranks changes.

        ``table.NAME`` [rows, D], :meth:`state`, and ``table_steps``. Tensors or ShardedTensors that share the backend's
        memory: torch.distributed.checkpoint writes them, and reads into them in place; call :meth:`loaded` then.
        """
        found: dict[str, Any] = {f"table.{n}": w for n, w in self.weights().items()}
        return found | self.state() | {"table_steps": self.steps}

    def loaded(self) -> None:
        """To be called after :meth:`checkpoint_tensors` were written to."""

    def plan(self) -> list[dict[str, Any]]:
        """Where each table is: table, rows, dim, sharding, ranks, mib_per_rank (weights and optimizer state)."""
        raise NotImplementedError


def write_tensor(name: str, target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy ``source``, in place; RuntimeError where the shapes differ."""
    if target.shape != source.shape:
        raise RuntimeError(f"{name}: got {tuple(source.shape)}, expected {tuple(target.shape)}")
    with torch.no_grad():
        target.copy_(source)


def torch_optimizer(kind: SparseOptimizer) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """PyTorch's (or TorchRec's) class of an optimizer and its settings besides the learning rate.

    Row-wise Adagrad: Duchi et al. 2011 with one accumulator a row, as TorchRec has it.
    """
    from torchrec.optim import RowWiseAdagrad  # a second to import, and scoring has no optimizer

    return {
        "rowwise_adagrad": (RowWiseAdagrad, {"eps": EPS}),
        "adagrad": (torch.optim.Adagrad, {"eps": EPS}),
        "adam": (torch.optim.Adam, {"eps": EPS}),
        "sgd": (torch.optim.SGD, {}),
    }[kind]


def state_width(kind: SparseOptimizer, dim: int) -> int:
    """Floats of optimizer state a row."""
    return {"rowwise_adagrad": 1, "adagrad": dim, "adam": 2 * dim, "sgd": 0}[kind]


def initial_rows(seed: int, index: int, rows: int, dim: int, start: int = 0, stop: int | None = None,
                 init: float = 0.1) -> Iterator[tuple[int, torch.Tensor]]:
    """Initial values of rows start .. stop of table number ``index``, in pieces: (first row, float32 [n, D]).

    Each block of rows has a seed of its own, so that a table starts alike however it is sharded, and a rank makes only
    its part. Uniform within +- init / sqrt(dim), small beside the first Adagrad steps, so that rare rows stay near
    zero; row 0, the out-of-vocabulary row, starts without an opinion.
    """
    bound, stop = init / math.sqrt(dim), rows if stop is None else stop
    for first in range(start - start % _BLOCK, stop, _BLOCK):
        entropy = np.random.SeedSequence([seed, index, first]).generate_state(1, np.uint64)[0]
        values = torch.empty(min(_BLOCK, rows - first), dim)
        values.uniform_(-bound, bound, generator=torch.Generator().manual_seed(int(entropy >> np.uint64(1))))
        if first == 0:
            values[0] = 0.0
        low, high = max(start, first), min(stop, first + _BLOCK)
        yield low, values[low - first : high - first]


def initialise(tables: list[Table], weights: Mapping[str, torch.Tensor], dim: int, seed: int,
               init: float) -> None:
    """Write the initial values into whole tables."""
    with torch.no_grad():
        for index, table in enumerate(tables):
            for at, values in initial_rows(seed, index, table.rows, dim, init=init):
                weights[table.name][at : at + len(values)] = values


def local_plan(tables: list[Table], dim: int, options: SparseOptions, kind: str) -> list[dict[str, Any]]:
    """The plan of tables that are whole in each process."""
    return [{"table": t.name, "rows": t.rows, "dim": dim, "sharding": kind, "ranks": [0],
             "mib_per_rank": t.rows * (dim + state_width(options.of_table(t.name)[0], dim)) * 4 / 2**20}
            for t in tables]


def plan_lines(plan: list[dict[str, Any]]) -> list[str]:
    """The plan as a table of text, with what each rank holds in all."""
    if not plan:
        return []
    lines = [f"{'table':<24} {'rows':>13} {'dim':>4}  {'sharding':<14} {'ranks':<10} {'MiB a rank':>10}"]
    for row in plan:
        ranks = row["ranks"]
        shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
        lines.append(f"{row['table']:<24} {row['rows']:>13,} {row['dim']:>4}  {row['sharding']:<14} {shown:<10} "
                     f"{row['mib_per_rank']:>10,.1f}")
    held: dict[int, float] = {}
    for row in plan:
        for rank in row["ranks"]:
            held[rank] = held.get(rank, 0.0) + row["mib_per_rank"]
    return [*lines, "tables and their optimizers in all, MiB: " + ", ".join(
        f"rank {rank}: {held[rank]:,.1f}" for rank in sorted(held))]
