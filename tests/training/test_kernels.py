"""Training by the Triton kernels (in their interpreter) beside training by plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import TrainingConfig
from recsys.features.batches import Batch
from recsys.models.embeddings import Table
from recsys.training.optimizers import make_optimizer
from recsys.training.step import PlainStepper
from tests.models import toy

STEPS, ROWS, LENGTH = 200, 6, 3
ITEMS = tuple(f"history@{i}" for i in range(LENGTH))
TABLES = [Table("ad_id", 20, ("ad_id", *ITEMS)), Table("site", 5, ("site",))]


def _batches(steps: int) -> list[Batch]:
    """Few rows with histories of 0 to LENGTH items; the dense block and the site decide the click."""
    r, found, keys = np.random.default_rng(0), [], ["ad_id", "site", *ITEMS]
    for _ in range(steps):
        batch = toy.batch(ROWS)
        long = r.integers(0, LENGTH + 1, ROWS)
        lengths = np.stack([np.ones(ROWS), np.ones(ROWS), *(long > i for i in range(LENGTH))]).astype(np.int32)
        ids = np.where(np.arange(len(keys))[:, None] == 1, r.integers(0, 5, (len(keys), ROWS)),
                       r.integers(0, 20, (len(keys), ROWS))).astype(np.int32)
        sparse = KeyedJaggedTensor(keys=keys, values=torch.from_numpy(ids[lengths > 0]),
                                   lengths=torch.from_numpy(lengths.reshape(-1)), stride=ROWS)
        dense = r.normal(size=(ROWS, toy.DENSE)).astype(np.float32)
        click = r.random(ROWS) < 1 / (1 + np.exp(-(2 * dense[:, 0] + ids[1] - 2)))
        found.append(replace(batch, dense=torch.from_numpy(dense), sparse=sparse,
                             successes=torch.from_numpy(click[:, None].astype(np.float32))))
    return found


def _losses(kernels: str, kind: str, steps: int, history: str) -> np.ndarray:
    torch.manual_seed(1)
    model = toy.ranker(content=False, kind=kind, kernels=kernels, history=history, history_length=LENGTH, tables=TABLES)
    settings = TrainingConfig(dense_lr=0.01)
    stepper = PlainStepper(model, make_optimizer(model, settings), settings)
    return np.array([float(loss / trials) for loss, trials, *_ in stepper.run(iter(_batches(steps)))])


@pytest.mark.parametrize(("kind", "steps", "history"), [
    ("dlrm", 4, "attention"), ("dcnv2", 10, "mean"),
    pytest.param("dlrm", STEPS, "mean", marks=pytest.mark.slow),
    pytest.param("dcnv2", STEPS, "mean", marks=pytest.mark.slow)])
def test_each_steps_loss_is_the_references(kind: str, steps: int, history: str) -> None:
    """Within 1e-4 nats a trial of losses about 0.6: float32, sums in another order, which 200 steps do not amplify."""
    expected = _losses("reference", kind, steps, history)
    if steps == STEPS:
        assert expected[-50:].mean() < expected[:50].mean() - 0.05  # there is something to learn
    for kernels in ("auto", "triton"):
        found = _losses(kernels, kind, steps, history)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4, err_msg=kernels)
