"""Tables spread over ranks by TorchRec's DistributedModelParallel, their fused update inside backward."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.fused import FusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config.training import ParallelConfig
from recsys.models.embeddings.base import Embeddings, SparseOptions, Table, initial_rows, torch_optimizer
from recsys.models.embeddings.fused import bag_configs, set_iteration
from recsys.models.embeddings.plan import PATH, as_module, describe, make_plan

if TYPE_CHECKING:
    from recsys.training.world import World

# torchrec 1.8 on torch 2.13 uses names that torch is about to change; that says nothing to our users.
for _message in ("Please use DTensor instead", "`torch.distributed.*` is deprecated"):
    warnings.filterwarnings("ignore", message=_message, category=FutureWarning)

_PIECE = 1 << 20  # rows sent at once when a table is collected


class _Arrange(nn.Module):
    """Sums as the ranks return them [B, F * D] to means in the order of the tables [B, F, D].

    TorchRec 1.8's own means divide the lists of a table-wise table twice where another table is row-wise. (A module of
    its own, because the pipeline traces what calls the collection, and plain Python may only stand in modules.)
    """

    def __init__(self, given: list[str], tables: list[Table], dim: int) -> None:
        super().__init__()
        self._wanted, self._dim = [f for t in tables for f in t.features], dim
        self._order = None if given == self._wanted else [given.index(f) for f in self._wanted]
        self._lists = any(t.lists for t in tables)

    def forward(self, values: torch.Tensor, sparse: KeyedJaggedTensor) -> torch.Tensor:
        pooled = values.view(values.shape[0], -1, self._dim)
        if self._order is not None:
            pooled = pooled[:, self._order]
        if not self._lists:
            return pooled
        place = {key: i for i, key in enumerate(sparse.keys())}
        counts_FB = sparse.lengths().view(len(place), -1)[[place[f] for f in self._wanted]]
        return pooled / counts_FB.clamp_min(1).T.unsqueeze(2)


class ShardedEmbeddings(Embeddings):
    """Each rank looks up the rows that it keeps, for all ranks' batches, and receives its own batch's vectors.

    TorchRec divides the gradients by the number of ranks, as averaging data-parallel gradients does: the step scales
    the loss so that the sum over ranks is right.
    """

    sharded = True

    def __init__(self, tables: list[Table], dim: int, options: SparseOptions, device: torch.device, seed: int,
                 world: World, parallel: ParallelConfig) -> None:
        super().__init__(tables, dim)
        self._options, self._world = options, world
        bags = EmbeddingBagCollection(tables=bag_configs(tables, dim, PoolingType.SUM), device=torch.device("meta"))
        for table in tables:
            kind, lr = options.of_table(table.name)
            optimizer, settings = torch_optimizer(kind)
            _apply_optimizer_in_backward(optimizer, [bags.embedding_bags[table.name].weight], {"lr": lr, **settings})
        sharder = EmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs(parallel, device))
        chosen = make_plan(bags, tables, dim, options, parallel, world, sharder, device.type)
        self._plan = describe(chosen, tables, dim, options)
        model = DistributedModelParallel(
            as_module(bags), env=ShardingEnv.from_process_group(world.group()), device=device, sharders=[sharder],
            plan=ShardingPlan({PATH: chosen}),  # type: ignore[dict-item]
            init_data_parallel=False, init_parameters=False)
        self.bags = getattr(model.module, PATH)
        self._optimizer = model.fused_optimizer
        self._arrange = _Arrange(self._given(), tables, dim)
        with torch.no_grad():
            for index, table in enumerate(tables):
                for start, rows in _local(self._tensors()[table.name]):
                    for at, values in initial_rows(seed, index, table.rows, dim, start, start + len(rows),
                                                   options.init):
                        rows[at - start : at - start + len(values)] = values

    def _given(self) -> list[str]:
        """Features in the order in which the sharded collection returns them."""
        return list(self.bags._embedding_names)

    def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """See :class:`Embeddings`. All ranks must call it together, with batches of one size where a table is cut by
        rows."""
        return self._arrange(self.bags(sparse).values(), sparse)

    def set_lr(self, factor: float) -> None:
        """See :class:`Embeddings`."""
        for optimizer in _leaves(self._optimizer):
            names = [n.split(".")[-2] for n in optimizer.params]
            rates = {self._options.of_table(n)[1] for n in names}
            assert len(rates) == 1, f"tables {names} share a kernel but not a learning rate"
            for group in optimizer.param_groups:
                group["lr"] = factor * rates.copy().pop()
            optimizer.zero_grad()  # hands the rate to the kernel

    def _tensors(self) -> dict[str, ShardedTensor]:
        found = self.bags.state_dict()
        return {t.name: found[f"embedding_bags.{t.name}.weight"] for t in self.tables}

    def weights(self) -> dict[str, torch.Tensor]:
        """See :class:`Embeddings`."""
        found = {}
        for name, tensor in self._tensors().items():
            whole = collect(tensor, self._world)
            if whole is not None:
                found[name] = whole
        return found

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See :class:`Embeddings`; each rank takes its own rows, no rank speaks to another."""
        for name, tensor in self._tensors().items():
            if tuple(weights[name].shape) != tuple(tensor.shape):
                raise RuntimeError(f"{name}: got {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}")
            with torch.no_grad():
                for start, rows in _local(tensor):
                    rows.copy_(weights[name][start : start + len(rows)])
        self.loaded()

    def state(self) -> dict[str, Any]:
        """See :class:`Embeddings`; a rank has only the tables of which it keeps rows."""
        found: dict[str, Any] = {}
        for key, moments in self._optimizer.state_dict()["state"].items():
            name = key.split(".")[-2]
            for moment, tensor in moments.items():
                last = moment.rpartition(".")[2].replace("_", "")
                suffix = {"momentum1": "", "expavg": "", "sum": "", "momentum2": ".second", "expavgsq": ".second"}
                if last in suffix:
                    found[f"table_state.{name}{suffix[last]}"] = tensor
        return found

    def checkpoint_tensors(self) -> dict[str, Any]:
        """See :class:`Embeddings`."""
        for kernel in self._kernels():
            kernel.flush()  # rows that are cached on the card go back to the table
        tables = {f"table.{n}": t for n, t in self._tensors().items()}
        return {**tables, **self.state(), "table_steps": self.steps}

    def loaded(self) -> None:
        """See :class:`Embeddings`: caches are forgotten, Adam goes on from the step that was read."""
        for kernel in self._kernels():
            kernel.reset_cache_states()
            set_iteration(kernel, int(self.steps))

    def _kernels(self) -> list[Any]:
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen

        return [m for lookup in self.bags._lookups for m in lookup.modules()
                if isinstance(m, SplitTableBatchedEmbeddingBagsCodegen)]

    def plan(self) -> list[dict[str, Any]]:
        """See :class:`Embeddings`."""
        return self._plan


def codecs(parallel: ParallelConfig, device: torch.device) -> Any:
    """TorchRec's codecs for ``parallel.communication``; None: float32.

    Gradients of a mean over a large batch are smaller than float16 can hold, so they travel as bfloat16 in both.
    """
    if parallel.communication == "float32":
        return None
    forward = CommType.FP16 if parallel.communication == "float16" else CommType.BF16
    return get_qcomm_codecs_registry(QCommsConfig(forward_precision=forward, backward_precision=CommType.BF16),
                                     device=device)


def collect(tensor: ShardedTensor, world: World) -> torch.Tensor | None:
    """A sharded table whole, in rank 0's main memory, sent in pieces; None on other ranks. All ranks must call it."""
    whole = torch.empty(tuple(tensor.shape), dtype=tensor.dtype) if world.is_main else None
    mine = dict(_local(tensor))
    for shard in tensor.metadata().shards_metadata:
        start, count = shard.shard_offsets[0], shard.shard_sizes[0]
        owner = shard.placement.rank()  # type: ignore[union-attr]
        for at in range(0, count, _PIECE):
            n = min(_PIECE, count - at)
            piece = mine[start][at : at + n].contiguous() if world.rank == owner else None
            if world.is_main:
                if piece is None:
                    piece = torch.empty((n, *tensor.shape[1:]), dtype=tensor.dtype, device=world.device)
                    dist.recv(piece, owner)
                assert whole is not None
                whole[start + at : start + at + n] = piece
            elif piece is not None:
                dist.send(piece, 0)
    return whole


def _local(tensor: ShardedTensor) -> Iterator[tuple[int, torch.Tensor]]:
    """First row and rows of each part of a table that this rank keeps."""
    for shard in tensor.local_shards():
        yield shard.metadata.shard_offsets[0], shard.tensor.detach()


def _leaves(optimizer: Any) -> Iterator[FusedOptimizer]:
    if isinstance(optimizer, CombinedOptimizer):
        for _, part in optimizer.optimizers:
            yield from _leaves(part)
    elif optimizer.params:
        yield optimizer
