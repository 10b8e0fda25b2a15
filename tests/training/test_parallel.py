from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import ModelConfig, TrainingConfig
from recsys.config.training import ParallelConfig
from recsys.features.batches import Batch, gather, padded
from recsys.features.encoded import Encoded, Jagged
from recsys.models.build import KINDS
from recsys.models.embeddings import SparseOptions, Table, make_embeddings
from recsys.models.ranker import Inputs, Ranker
from recsys.training.optimizers import dense_parameters, make_optimizer
from recsys.training.step import PlainStepper
from recsys.training.world import World
from tests.ranks import run_ranks

TABLES = [Table("ad_id", 40, ("ad_id", "history")), Table("site", 5, ("site",))]
MODEL = ModelConfig(embedding_dim=8, bottom=(8,), top=(16, 8), heads=("click", "engage"))
TRAINING = TrainingConfig(batch_size=32, sparse_lr=0.1, dense_lr=0.01)
ROWS, BATCHES = 32 * 7 - 5, 7


def _data() -> Encoded:
    """Binomial labels of two heads and uneven weights: ranks see very different numbers of trials."""
    r = np.random.default_rng(0)
    history = Jagged(r.integers(0, 40, 2 * ROWS).astype(np.int32), np.arange(ROWS + 1) * 2)
    trials = r.integers(0, 9, (ROWS, 2)).astype(np.float32)
    trials[: ROWS // 2] *= 10
    return Encoded(r.normal(size=(ROWS, 3)).astype(np.float32),
                   np.stack([r.integers(0, 40, ROWS), r.integers(0, 5, ROWS)], 1).astype(np.int32),
                   np.zeros(ROWS, np.int32), (history,), Jagged.empty(ROWS), trials,
                   r.binomial(trials.astype(int), 0.3).astype(np.float32),
                   r.uniform(0.1, 3, ROWS).astype(np.float32))


def _batches(world: World, epoch: int, start: int = 0) -> Iterator[Batch]:
    """Global batch i is the rows i, i + 7, ...; rank r has its r-th part."""
    data, order = _data(), np.random.default_rng(epoch).permutation(ROWS)
    for i in range(start, BATCHES):
        rows = np.array_split(order[i::BATCHES], world.size)[world.rank]
        yield gather(data, rows, ["ad_id", "site", "history"])


def _ranker(backend: str, world: World, parallel: ParallelConfig) -> Ranker:
    torch.manual_seed(3)
    embeddings = make_embeddings(backend, TABLES, 8, SparseOptions.of(TRAINING), torch.device("cpu"), world, parallel)
    inputs = Inputs(embeddings, ("ad_id", "history", "site"), 3)
    return KINDS["dlrm"](inputs, MODEL)


def _weights(model: Ranker) -> dict[str, torch.Tensor]:
    tables = model.embeddings.weights()
    return {**{n: p.detach().clone() for n, p in dense_parameters(model).items()},
            **{f"table.{n}": t.clone() for n, t in tables.items()}}


@cache
def _plain(clip_norm: float | None = None, epochs: int = 3) -> tuple[dict[str, torch.Tensor], list[float]]:
    world, config = World.single(), TRAINING.model_copy(update={"clip_norm": clip_norm})
    model = _ranker("fused", world, config.parallel)
    optimizer = make_optimizer(model, config)
    stepper, losses = PlainStepper(model, optimizer, config), []
    for epoch in range(epochs):
        losses += [float(loss / trials) for loss, trials, *_ in stepper.run(_batches(world, epoch))]
    return _weights(model), losses


def _runs(world: World) -> dict[str, Any]:
    """Everything that two ranks are asked about steps, in one start of processes."""
    from recsys.training.parallel import ParallelStepper

    found: dict[str, Any] = {}
    for name, backend, config in (
            ("pipelined", "sharded", TRAINING),
            ("row-wise", "sharded", TRAINING.model_copy(update={"parallel": ParallelConfig(sharding="row_wise")})),
            ("base", "sharded", TRAINING.model_copy(update={"parallel": ParallelConfig(pipeline=False)})),
            ("dense", "dense", TRAINING),
            ("clipped", "sharded", TRAINING.model_copy(update={"clip_norm": 0.05})),
            ("paused", "sharded", TRAINING), ("left", "sharded", TRAINING)):
        model = _ranker(backend, world, config.parallel)
        optimizer = make_optimizer(model, config)
        if world.rank == 1:
            with torch.no_grad():
                for parameter in dense_parameters(model).values():
                    parameter += 1  # rank 0's values are what counts
        stepper = ParallelStepper(model, optimizer, config, world, 16)
        losses, rows, seen = [], 0, []
        if name == "left":  # an epoch that is left early leaves nothing behind
            steps = stepper.run(_batches(world, 0))
            first = [next(steps), next(steps)]
            steps.close()
            found["between epochs"] = model(padded(next(_batches(world, 9)), 16)).shape
            losses = [world.all_reduce_sum(torch.stack([loss, trials])).tolist() for loss, trials, *_ in first]
            for loss, trials, *_ in stepper.run(_batches(world, 0, 2)):
                losses.append(world.all_reduce_sum(torch.stack([loss, trials])).tolist())
            found[name] = {"losses": [a / b for a, b in losses], "weights": _weights(model)}
            continue
        for epoch in range(3):
            count = 0
            for loss, trials, n, _ in stepper.run(_batches(world, epoch)):
                total = world.all_reduce_sum(torch.stack([loss, trials]))
                losses.append(float(total[0] / total[1]))
                rows, count = rows + n, count + 1
                if name == "paused" and count in (1, 3, BATCHES - 1, BATCHES):
                    with stepper.paused(), torch.no_grad():
                        model(padded(next(_batches(world, 9)), 16))
            seen.append(count)
            model(padded(next(_batches(world, 9)), 16))  # between epochs the model is its own again
        found[name] = {"losses": losses, "rows": rows, "batches": seen, "weights": _weights(model)}
    return found


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_ranks(2, _runs)


def _same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], atol: float = 2e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["pipelined", "row-wise", "base", "paused"])
def test_two_ranks_equal_one_with_the_doubled_batch(two: list, name: str) -> None:
    # With weights and numbers of trials that differ between ranks: an average of the ranks' mean losses would not do.
    weights, losses = _plain()
    np.testing.assert_allclose(two[0][name]["losses"], losses, atol=1e-5)
    _same(two[0][name]["weights"], weights)
    for key, tensor in two[1][name]["weights"].items():  # dense parameters are the same on both, to the bit
        assert torch.equal(tensor, two[0][name]["weights"][key])


@pytest.mark.parametrize("name", ["pipelined", "base"])
def test_no_epoch_is_empty(two: list, name: str) -> None:
    # Trap 1: without a reset the epochs after the first are silently empty.
    for rank in (0, 1):
        assert two[rank][name]["batches"] == [BATCHES] * 3
    assert two[0][name]["rows"] + two[1][name]["rows"] == 3 * ROWS


def test_the_model_may_be_called_while_steps_are_paused(two: list) -> None:
    # Trap 7: a pipelined model refuses; and evaluating in the middle of an epoch changes no step.
    for key, tensor in two[0]["paused"]["weights"].items():
        assert torch.equal(tensor, two[0]["pipelined"]["weights"][key])


def test_an_epoch_left_early_leaves_no_batch_behind(two: list) -> None:
    weights, losses = _plain(epochs=1)
    assert two[0]["between epochs"] == (16, 2)
    np.testing.assert_allclose(two[0]["left"]["losses"], losses, atol=1e-5)
    _same(two[0]["left"]["weights"], weights)


def test_clipping_is_of_the_gradient_of_all_ranks(two: list) -> None:
    weights, _ = _plain(0.05)
    _same(two[0]["clipped"]["weights"], weights, atol=5e-5)
    free, _ = _plain()
    assert max(float((weights[n] - t).abs().max()) for n, t in free.items()) > 1e-3


def test_dense_tables_are_replicated_and_trained_by_all_ranks(two: list) -> None:
    weights, _ = _plain()
    _same(two[0]["dense"]["weights"], weights, atol=5e-5)


def _steppers(world: World) -> list[str]:
    from recsys.training.parallel import ParallelStepper

    found = []
    for backend, pipeline in (("sharded", True), ("sharded", False), ("dense", True)):
        config = TRAINING.model_copy(update={"parallel": ParallelConfig(pipeline=pipeline)})
        model = _ranker(backend, world, config.parallel)
        stepper = ParallelStepper(model, make_optimizer(model, config), config, world, 16)
        found.append(type(stepper._pipeline).__name__)
    return found


def test_pipeline_is_the_sparse_one_where_there_is_something_to_overlap() -> None:
    (found,) = run_ranks(1, _steppers)
    assert found == ["TrainPipelineSparseDist", "TrainPipelineBase", "TrainPipelineBase"]
