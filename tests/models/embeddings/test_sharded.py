from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config.training import ParallelConfig, TableConfig
from recsys.models.embeddings import SparseOptions, make_embeddings
from recsys.training.world import World
from tests.models.embeddings.test_backends import MIXED, TABLES, F, make_batch
from tests.ranks import run_ranks

CPU = torch.device("cpu")
TABLE_WISE, ROW_WISE = (ParallelConfig(sharding=s) for s in ("table_wise", "row_wise"))
# Tables cut and whole, several features a table, an optimizer and a rate of a table's own.
MIXED_PLAN = SparseOptions("rowwise_adagrad", 0.1, tables={
    "ad_id": TableConfig(sharding="row_wise"), "site": TableConfig(optimizer="sgd", lr=0.02),
    "city": TableConfig(optimizer="adagrad", sharding="row_wise")})

# The other way round: the table with lists whole, another one cut.
LISTS_WHOLE = SparseOptions("rowwise_adagrad", 0.1, tables={
    "ad_id": TableConfig(sharding="table_wise"), "city": TableConfig(sharding="row_wise")})


def joined(a: KeyedJaggedTensor, b: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """The rows of two batches as one."""
    keys, one, two = a.keys(), a.to_dict(), b.to_dict()
    return KeyedJaggedTensor(keys=keys, values=torch.cat([d[k].values() for k in keys for d in (one, two)]),
                             lengths=torch.cat([d[k].lengths() for k in keys for d in (one, two)]))


def _target(step: int, dim: int = 8) -> torch.Tensor:
    return torch.randn(32, F, dim, generator=torch.Generator().manual_seed(1000 + step))


def train(backend: Any, steps: range, world: World) -> None:
    """Batches of 32 rows, of which rank r has its half; the loss is the sum over all rows."""
    for step in steps:
        halves = [make_batch(2 * step), make_batch(2 * step + 1)]
        sparse = joined(*halves) if world.size == 1 else halves[world.rank]
        target = _target(step) if world.size == 1 else _target(step)[16 * world.rank : 16 * world.rank + 16]
        backend.zero_grad()
        (world.size * ((backend(sparse) - target) ** 2).sum()).backward()
        backend.step()


def one_process(options: SparseOptions, backend: str = "fused", steps: range = range(6)) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    made = make_embeddings(backend, TABLES, 8, options, CPU)
    train(made, steps, World.single())
    return made.checkpoint_tensors()


def _parity(world: World) -> dict[str, Any]:
    """Everything that two ranks are asked, in one start of processes."""
    found: dict[str, Any] = {}
    plans = {"table_wise": (SparseOptions("rowwise_adagrad", 0.1), TABLE_WISE),
             "row_wise": (SparseOptions("rowwise_adagrad", 0.1), ROW_WISE), "mixed": (MIXED_PLAN, TABLE_WISE),
             "lists whole": (LISTS_WHOLE, TABLE_WISE), "mixed optimizers": (MIXED, TABLE_WISE),
             "float16": (SparseOptions("rowwise_adagrad", 0.1), ParallelConfig(
                 sharding="row_wise", communication="float16")),
             "bfloat16": (SparseOptions("rowwise_adagrad", 0.1), ParallelConfig(
                 sharding="table_wise", communication="bfloat16")),
             "planner": (SparseOptions("rowwise_adagrad", 0.1), ParallelConfig(sharding="planner"))}
    for name, (options, parallel) in plans.items():
        torch.manual_seed(3)
        made = make_embeddings("sharded", TABLES, 8, options, CPU, world, parallel)
        start = made.weights()
        pooled = made(make_batch(50 + world.rank)).detach().clone()
        train(made, range(6), world)
        found[name] = {"start": start, "pooled": pooled, "plan": made.plan(), "weights": made.weights()}
        rates = []
        for factor in (0.5, 1.0):
            made.set_lr(factor)
            rates.append(sorted({(n.split(".")[-2], round(g["lr"], 6)) for o in _optimizers(made)
                                 for g in o.param_groups for n in o.params}))
        found[name]["rates"] = rates
        other = {n: torch.full(tuple(t.shape), 0.25) for n, t in made._tensors().items()}
        made.load_weights(other)
        found[name]["loaded"] = made.weights()
    torch.manual_seed(3)
    dense = make_embeddings("dense", TABLES, 8, SparseOptions(), CPU, world)
    found["dense plan"] = dense.plan()
    return found


def _optimizers(made: Any) -> list[Any]:
    from recsys.models.embeddings.sharded import _leaves

    return list(_leaves(made._optimizer))


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_ranks(2, _parity)


def _close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert found.keys() == {t.name for t in TABLES}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[f"table.{name}"], atol=atol, rtol=0)


@pytest.mark.parametrize(("plan", "options"), [
    ("table_wise", SparseOptions("rowwise_adagrad", 0.1)), ("row_wise", SparseOptions("rowwise_adagrad", 0.1)),
    ("planner", SparseOptions("rowwise_adagrad", 0.1)), ("mixed", MIXED_PLAN),
    ("lists whole", LISTS_WHOLE), ("mixed optimizers", MIXED)])
def test_two_ranks_equal_one_with_the_doubled_batch(two: list, plan: str, options: SparseOptions) -> None:
    # Traps 4 and 5: every table has its fused optimizer, and row-wise Adagrad sees whole rows, whatever the sharding.
    _close(two[0][plan]["weights"], one_process(options))
    assert two[1][plan]["weights"] == {}


def test_row_wise_equals_table_wise(two: list) -> None:
    for name, tensor in two[0]["row_wise"]["weights"].items():
        torch.testing.assert_close(tensor, two[0]["table_wise"]["weights"][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("plan", ["float16", "bfloat16"])
def test_quantised_communication_stays_close(two: list, plan: str) -> None:
    exact = one_process(SparseOptions("rowwise_adagrad", 0.1))
    found = two[0][plan]["weights"]
    _close(found, exact, atol=0.02)
    # It is in use: the differences are those of 8 to 11 bits, not of float32.
    assert max(float((t - exact[f"table.{n}"]).abs().max()) for n, t in found.items()) > 2e-5


def test_all_shardings_start_as_one_process_does(two: list) -> None:
    torch.manual_seed(3)
    wanted = make_embeddings("fused", TABLES, 8, SparseOptions(), CPU)
    for plan in ("table_wise", "row_wise", "mixed", "lists whole"):
        for name, tensor in two[0][plan]["start"].items():
            assert torch.equal(tensor, wanted.weights()[name]), (plan, name)
        for rank in (0, 1):  # and each rank receives its own rows' vectors, features in table order
            torch.testing.assert_close(two[rank][plan]["pooled"], wanted(make_batch(50 + rank)))


def test_weights_are_taken_over_by_all_ranks(two: list) -> None:
    for plan in ("table_wise", "row_wise", "mixed"):
        assert all(bool((t == 0.25).all()) for t in two[0][plan]["loaded"].values())


def test_every_table_keeps_its_own_rate(two: list) -> None:
    # Trap 12, on the tables that each rank keeps.
    rates: list[set] = [set(), set()]
    for rank in (0, 1):
        for i in (0, 1):
            rates[i] |= set(two[rank]["mixed"]["rates"][i])
    assert rates[0] == {("ad_id", 0.05), ("city", 0.05), ("site", 0.01)}
    assert rates[1] == {("ad_id", 0.1), ("city", 0.1), ("site", 0.02)}


def test_plan_says_what_is_where(two: list) -> None:
    plan = {row["table"]: row for row in two[0]["mixed"]["plan"]}
    assert plan["ad_id"] == {"table": "ad_id", "rows": 30, "dim": 8, "sharding": "row_wise", "ranks": [0, 1],
                             "mib_per_rank": 0.5 * 30 * 9 * 4 / 2**20, "kernel": "fused"}
    assert plan["site"]["sharding"] == "table_wise"
    assert len(plan["site"]["ranks"]) == 1
    whole_on = [row["ranks"] for row in two[0]["table_wise"]["plan"]]
    assert sorted(whole_on) == [[0], [1], [1]]  # the largest alone
    assert two[0]["mixed"]["plan"] == two[1]["mixed"]["plan"]
    assert {row["sharding"] for row in two[0]["planner"]["plan"]} <= {"table_wise", "row_wise", "table_row_wise"}


def test_one_rank_alone_serves_the_sharded_backend() -> None:
    found = run_ranks(1, _alone)
    wanted = one_process(SparseOptions("rowwise_adagrad", 0.1))
    _close(found[0], wanted)


def _alone(world: World) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    made = make_embeddings("sharded", TABLES, 8, SparseOptions("rowwise_adagrad", 0.1), CPU, world, ROW_WISE)
    train(made, range(6), world)
    return made.weights()
