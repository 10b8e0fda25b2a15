"""Checkpoints between numbers of ranks: what two wrote one reads, and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recsys.config import TrainingConfig
from recsys.models.embeddings import make_embeddings
from recsys.training.checkpoint import Checkpoints, TrainState
from recsys.training.optimizers import make_optimizer
from recsys.training.world import World
from tests.models.embeddings.test_backends import TABLES
from tests.models.embeddings.test_sharded import CPU, MIXED_PLAN, TABLE_WISE, train
from tests.ranks import run_ranks

DIM = 8


class _Model(nn.Module):
    def __init__(self, world: World) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embeddings = make_embeddings("auto", TABLES, DIM, MIXED_PLAN, CPU, world, TABLE_WISE)
        self.top = nn.Linear(DIM, 1)


def _step(model: _Model, optimizer: torch.optim.Optimizer, steps: range, world: World) -> None:
    train(model.embeddings, steps, world)
    for step in steps:
        optimizer.zero_grad()
        model.top(torch.full((1, DIM), 1.0 + step)).sum().backward()
        optimizer.step()


def part(world: World, folder: Path, steps: range, go_on: bool) -> dict[str, Any]:
    """Some steps, from the last checkpoint or from the start, and a checkpoint."""
    model = _Model(world)
    optimizer = make_optimizer(model, TrainingConfig())
    checkpoints = Checkpoints(folder, world, keep=3)
    found = checkpoints.latest()
    sums = torch.zeros(2, dtype=torch.float64)
    assert (found is not None) == go_on
    torch.manual_seed(100 + world.rank)
    if found is not None:
        sums = checkpoints.restore(found, model, optimizer)
    first_draw = float(torch.rand(()))
    _step(model, optimizer, steps, world)
    sums += torch.tensor([1.0 + world.rank, 10.0], dtype=torch.float64)
    total = world.all_reduce_sum(sums).tolist()
    state = TrainState(batch=steps.stop, loss=total[0], trials=total[1])
    checkpoints.save(model, optimizer, state, sums)
    train(model.embeddings, range(100, 102), world)  # goes on while the checkpoint is written: it must not show
    checkpoints.close()
    next_draw = float(torch.rand(()))
    again = _Model(world)
    other = Checkpoints(folder, world, keep=3)
    latest = other.latest()
    assert latest is not None
    other.restore(latest, again, make_optimizer(again, TrainingConfig()))
    other.close()
    return {"tables": again.embeddings.weights(), "top": again.top.weight.detach(), "sums": total,
            "draws": (first_draw, next_draw),
            "pieces": {n: len(t["pieces"]) for n, t in latest.manifest["tensors"].items()},
            "files": sorted(latest.manifest["files"])}


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path, first: int, then: int) -> None:
    def ranks(size: int, *args: object) -> list[dict[str, Any]]:
        return [part(World.single(), *args)] if size == 1 else run_ranks(size, part, *args)

    whole = part(World.single(), tmp_path / "whole", range(6), False)
    before = ranks(first, tmp_path / "c", range(3), False)
    after = ranks(then, tmp_path / "c", range(3, 6), True)
    assert before[0]["files"] == [f"rank-{r}.safetensors" for r in range(first)]
    assert before[0]["pieces"]["table.ad_id"] == first  # row-wise
    assert before[0]["pieces"]["table.site"] == 1
    assert after[0]["tables"].keys() == whole["tables"].keys()
    for name, table in after[0]["tables"].items():
        torch.testing.assert_close(table, whole["tables"][name], atol=1e-6, rtol=0)
    for rank in after:
        torch.testing.assert_close(rank["top"], whole["top"])
        assert rank["sums"] == [sum(1.0 + r for n in (first, then) for r in range(n)), 10.0 * (first + then)]
    for now, earlier in zip(after, before, strict=False):
        assert now["draws"][0] == earlier["draws"][1]  # each rank's random numbers go on
    if first == 2:
        assert before[0]["draws"] != before[1]["draws"]
