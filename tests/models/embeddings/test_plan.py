from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, data_parallel
from torchrec.distributed.utils import add_params_from_parameter_sharding
from torchrec.modules.embedding_modules import EmbeddingBagCollection

import recsys
from recsys.config.training import ParallelConfig, TableConfig
from recsys.errors import InputError
from recsys.models.embeddings import SparseOptions, Table
from recsys.models.embeddings.fused import bag_configs
from recsys.models.embeddings.plan import PATH, as_module, check_plan, describe, make_plan, placements
from recsys.training.world import World

TABLES = [Table("huge", 1_000_000, ("huge",)), Table("big", 60_000, ("big",)), Table("mid", 40_000, ("mid",)),
          Table("small", 30_000, ("small",)), Table("tiny", 3, ("tiny",))]
OPTIONS = SparseOptions()


def _bags(dim: int = 16) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=bag_configs(TABLES, dim), device=torch.device("meta"))


def _plan(parallel: ParallelConfig, device_type: str = "cpu", size: int = 4, options: SparseOptions = OPTIONS) -> dict:
    world = World(0, size, torch.device("cpu"), local_size=size)
    return make_plan(_bags(), TABLES, 16, options, parallel, world, EmbeddingBagCollectionSharder(), device_type)


def test_large_tables_are_cut_and_small_ones_go_where_there_is_least() -> None:
    assert placements(TABLES, 16, OPTIONS, ParallelConfig(), 2) == {"huge": None, "big": 0, "mid": 1, "small": 1,
                                                                    "tiny": 0}
    assert placements(TABLES, 16, OPTIONS, ParallelConfig(), 1) == dict.fromkeys((t.name for t in TABLES), 0)
    assert placements(TABLES[::-1], 16, OPTIONS, ParallelConfig(), 2)["big"] == 0  # the order does not matter
    assert set(placements(TABLES[:4], 16, OPTIONS, ParallelConfig(sharding="row_wise"), 2).values()) == {None}
    own = SparseOptions(tables={"huge": TableConfig(sharding="table_wise"), "mid": TableConfig(sharding="row_wise")})
    found = placements(TABLES, 16, own, ParallelConfig(), 2)
    assert (found["huge"], found["mid"], found["big"]) == (0, None, 1)


def test_a_table_of_fewer_rows_than_ranks_is_not_cut() -> None:
    with pytest.raises(InputError, match=r"table tiny has fewer rows than there are ranks.*got 'row_wise, 3 rows'"):
        placements(TABLES, 16, OPTIONS, ParallelConfig(sharding="row_wise"), 4)


@pytest.mark.parametrize(("how", "name"), [(data_parallel(), "data_parallel"),
                                           (column_wise(ranks=[0, 1]), "column_wise")])
def test_data_parallel_and_column_wise_tables_are_refused(how: object, name: str) -> None:
    # Traps 4 and 5.
    bags = _bags()
    plan = construct_module_sharding_plan(bags, {t.name: how for t in TABLES},  # type: ignore[arg-type]
                                          sharder=EmbeddingBagCollectionSharder(), world_size=2, local_size=2,
                                          device_type="cpu")
    with pytest.raises(InputError, match=f"table huge: .*got '{name}'; expected table_wise or row_wise"):
        check_plan(plan)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_torchrecs_planner_is_kept_from_choosing_them(device_type: str) -> None:
    # The planner alone makes small tables data-parallel (trap 4); with our constraints it cannot.
    free = EmbeddingShardingPlanner(topology=Topology(world_size=4, local_world_size=4, compute_device=device_type),
                                    debug=False).plan(as_module(_bags()), [EmbeddingBagCollectionSharder()])
    assert "data_parallel" in {s.sharding_type for s in free.plan[PATH].values()}
    held = _plan(ParallelConfig(sharding="planner"), device_type)
    assert {s.sharding_type for s in held.values()} <= {"table_wise", "row_wise", "table_row_wise"}
    assert {s.compute_kernel for s in held.values()} == {"fused"}


@pytest.mark.parametrize("sharding", ["auto", "planner"])
def test_tables_in_unified_memory_are_cached_on_the_card(sharding: str) -> None:
    plan = _plan(ParallelConfig(sharding=sharding, uvm_caching=0.25), "cuda")
    for table in plan.values():
        assert table.compute_kernel == "fused_uvm_caching"
        assert add_params_from_parameter_sharding({}, table)["cache_load_factor"] == 0.25
        assert all("cuda" in str(s.placement) for s in table.sharding_spec.shards)
    assert all(t.cache_params is None for t in _plan(ParallelConfig(), "cuda").values())


def test_rows_of_the_plan() -> None:
    rows = {r["table"]: r for r in describe(_plan(ParallelConfig()), TABLES, 16, OPTIONS)}
    assert rows["huge"] == {"table": "huge", "rows": 1_000_000, "dim": 16, "sharding": "row_wise",
                            "ranks": [0, 1, 2, 3], "mib_per_rank": 1_000_000 * 17 * 4 / 4 / 2**20, "kernel": "fused"}
    assert rows["tiny"]["sharding"] == "table_wise"
    assert len(rows["tiny"]["ranks"]) == 1


def test_sharded_quantised_inference_is_not_used_unprepared() -> None:
    # Trap 15: on a CPU torchrec.shard_quant_model needs set_propogate_device(True); export here is whole instead.
    sources = [p.read_text() for p in Path(recsys.__file__).parent.rglob("*.py")]
    assert all("set_propogate_device(True)" in s for s in sources if "shard_quant_model" in s)
