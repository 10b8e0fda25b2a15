"""The choice of a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recsys.config.training import ParallelConfig
from recsys.errors import InputError
from recsys.models.embeddings.base import Embeddings, SparseOptions, Table

if TYPE_CHECKING:
    from recsys.training.world import World

_CPU_KERNELS = ("rowwise_adagrad", "adagrad", "sgd")


def make_embeddings(backend: str, tables: list[Table], dim: int, options: SparseOptions, device: torch.device,
                    world: World | None = None, parallel: ParallelConfig | None = None) -> Embeddings:
    """Embedding tables kept by a backend, freshly initialised from PyTorch's CPU generator.

    Args:
        backend: ``dense`` | ``fused`` | ``sharded`` | ``auto``: sharded under several ranks, else fused.
        tables: their names are distinct.
        dim: width of all of them; a multiple of 4 but for dense.
        options: their optimizers.
        device: where they live.
        world: the ranks; None: this process alone.
        parallel: how ``sharded`` spreads them.

    Raises:
        InputError: settings that the backend cannot serve, named with what it can.
    """
    parallel, ranks = parallel or ParallelConfig(), 1 if world is None else world.size
    if backend == "auto":
        backend = "sharded" if ranks > 1 else "fused"
    _check(backend, tables, options, device, ranks, parallel)
    seed = int(torch.randint(1 << 62, ()).item())
    # A backend is imported when it is made: TorchRec takes a second, its distributed part more.
    # One draw, whatever the backend: all of them, and the dense part after them, start alike.
    with torch.random.fork_rng(devices=[]):
        if backend == "dense":
            from recsys.models.embeddings.dense import DenseEmbeddings

            return DenseEmbeddings(tables, dim, options, device, seed)
        if backend == "fused":
            from recsys.models.embeddings.fused import FusedEmbeddings

            return FusedEmbeddings(tables, dim, options, device, seed)
        from recsys.models.embeddings.sharded import ShardedEmbeddings

        if world is None:
            raise ValueError("the sharded backend needs a world, if only World.single")
        return ShardedEmbeddings(tables, dim, options, device, seed, world, parallel)


def _check(backend: str, tables: list[Table], options: SparseOptions, device: torch.device, ranks: int,
           parallel: ParallelConfig) -> None:
    unknown = sorted(set(options.tables) - {t.name for t in tables})
    if unknown:
        raise InputError("no such embedding table", column=f"training.tables.{unknown[0]}", got=unknown[0],
                         expected=f"one of {', '.join(t.name for t in tables)}")
    if parallel.uvm_caching is not None and (backend != "sharded" or device.type != "cuda"):
        raise InputError("unified memory needs a GPU and the sharded backend", column="training.parallel.uvm_caching",
                         got=f"{backend} on {device.type}", expected="null, or model.embeddings: sharded on a GPU")
    if backend == "dense":
        return
    if options.l2:
        raise InputError("fused kernels would decay only the rows that a batch looks up",
                         column="training.embedding_l2", got=options.l2, expected="0, or model.embeddings: dense")
    for table in tables:
        kind, _ = options.of_table(table.name)
        if device.type == "cpu" and kind not in _CPU_KERNELS:
            raise InputError(f"table {table.name}: no fused CPU kernel of this optimizer",
                             column="training.sparse_optimizer", got=kind,
                             expected=f"{', '.join(_CPU_KERNELS)}; a GPU; or model.embeddings: dense")
    if backend == "fused" and ranks > 1:
        raise InputError("the fused backend serves one rank", column="model.embeddings", got=f"{ranks} ranks",
                         expected="sharded or auto (or dense, for small tables)")
