"""Which rank keeps which rows of which table (docs/decisions/0029-sharding.md).

Tables are whole on one rank (table-wise) or cut by rows over all (row-wise), nothing else: a data-parallel table would
leave the fused optimizer without a warning, and a column-wise one would give row-wise Adagrad another accumulator for
each part of a row, and could not be read back by another number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import distributed as dist
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import CacheParams, ParameterSharding, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recsys.config.training import ParallelConfig
from recsys.errors import InputError
from recsys.models.embeddings.base import SparseOptions, Table, state_width

if TYPE_CHECKING:
    from recsys.training.world import World

PATH = "bags"
"""Name of the collection within the module that is sharded."""

# Whole rows stay together, so that the optimizers' arithmetic is that of one device.
ALLOWED = (ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value)


def table_bytes(table: Table, dim: int, options: SparseOptions) -> int:
    """Bytes of a table and its optimizer's state, float32."""
    return table.rows * (dim + state_width(options.of_table(table.name)[0], dim)) * 4


def placements(tables: list[Table], dim: int, options: SparseOptions, parallel: ParallelConfig,
               ranks: int) -> dict[str, int | None]:
    """Table name -> the rank that keeps it whole, or None: cut by rows over all ranks.

    Whole tables go, largest first, to the rank that has least so far; so the plan depends on the tables alone.
    """
    found: dict[str, int | None] = {}
    load = [0] * ranks
    for table in sorted(tables, key=lambda t: (-table_bytes(t, dim, options), t.name)):
        own = options.tables.get(table.name)
        kind = (own.sharding if own is not None else None) or parallel.sharding
        if kind in ("auto", "planner"):
            kind = "row_wise" if ranks > 1 and table.rows >= max(parallel.row_wise_from, ranks) else "table_wise"
        if kind == "row_wise":
            if table.rows < ranks:
                raise InputError(f"table {table.name} has fewer rows than there are ranks",
                                 column=f"training.tables.{table.name}.sharding", got=f"row_wise, {table.rows} rows",
                                 expected="table_wise")
            found[table.name] = None
            load = [b + table_bytes(table, dim, options) // ranks for b in load]
        else:
            at = load.index(min(load))
            found[table.name] = at
            load[at] += table_bytes(table, dim, options)
    return {t.name: found[t.name] for t in tables}


def make_plan(bags: EmbeddingBagCollection, tables: list[Table], dim: int, options: SparseOptions,
              parallel: ParallelConfig, world: World, sharder: EmbeddingBagCollectionSharder,
              device_type: str) -> dict[str, ParameterSharding]:
    """TorchRec's plan of the collection; with ``sharding: planner`` the one that TorchRec's planner makes.

    Raises:
        InputError: the planner chose what would change the training's arithmetic.
    """
    kernel = EmbeddingComputeKernel.FUSED.value
    cache = None
    if parallel.uvm_caching is not None:
        kernel = EmbeddingComputeKernel.FUSED_UVM_CACHING.value
        cache = CacheParams(load_factor=parallel.uvm_caching)
    if parallel.sharding == "planner":
        plan = _planned(bags, tables, options, world, sharder, device_type, kernel, cache)
    else:
        wanted = placements(tables, dim, options, parallel, world.size)
        plan = dict(construct_module_sharding_plan(
            bags, {n: row_wise(compute_kernel=kernel) if at is None else table_wise(rank=at, compute_kernel=kernel)
                   for n, at in wanted.items()},
            sharder=sharder, world_size=world.size, local_size=world.local_size, device_type=device_type))
        for sharding in plan.values():
            sharding.cache_params = cache
    check_plan(plan)
    return plan


def _planned(bags: EmbeddingBagCollection, tables: list[Table], options: SparseOptions, world: World,
             sharder: EmbeddingBagCollectionSharder, device_type: str, kernel: str,
             cache: CacheParams | None) -> dict[str, ParameterSharding]:
    constraints = {}
    for table in tables:
        own = options.tables.get(table.name)
        types = [own.sharding] if own is not None and own.sharding else list(ALLOWED)
        constraints[table.name] = ParameterConstraints(sharding_types=types, compute_kernels=[kernel],
                                                       cache_params=cache)
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world.size, local_world_size=world.local_size, compute_device=device_type),
        constraints=constraints, debug=False)
    holder = as_module(bags)
    if dist.is_initialized():
        plan = planner.collective_plan(holder, [sharder], dist.group.WORLD)
    else:
        plan = planner.plan(holder, [sharder])
    return dict(plan.plan[PATH])  # type: ignore[arg-type]


def as_module(bags: EmbeddingBagCollection) -> Any:
    """The collection under :data:`PATH` in a module of its own, as TorchRec's tools want to be handed it."""
    from torch import nn

    holder = nn.Module()
    holder.add_module(PATH, bags)
    return holder


def check_plan(plan: Mapping[str, ParameterSharding]) -> None:
    """Refuse data-parallel and column-wise tables, whoever chose them."""
    for name, sharding in plan.items():
        if sharding.sharding_type not in ALLOWED:
            raise InputError(f"table {name}: this sharding would change its optimizer's arithmetic",
                             column="training.parallel.sharding", got=sharding.sharding_type,
                             expected=" or ".join(ALLOWED))


def describe(plan: Mapping[str, ParameterSharding], tables: list[Table], dim: int,
             options: SparseOptions) -> list[dict[str, Any]]:
    """The plan as plain rows, see :meth:`Embeddings.plan`."""
    rows = []
    for table in tables:
        sharding = plan[table.name]
        shards = list(sharding.sharding_spec.shards) if sharding.sharding_spec is not None else []  # type: ignore[attr-defined]
        part = max((s.shard_sizes[0] for s in shards), default=table.rows) / table.rows
        rows.append({"table": table.name, "rows": table.rows, "dim": dim, "sharding": sharding.sharding_type,
                     "ranks": sorted({int(s.placement.rank()) for s in shards if s.shard_sizes[0]}),
                     "mib_per_rank": part * table_bytes(table, dim, options) / 2**20,
                     "kernel": sharding.compute_kernel})
    return rows
