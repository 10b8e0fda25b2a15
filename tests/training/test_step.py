from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.config import TrainingConfig
from recsys.features.batches import Batch, gather
from recsys.features.encoded import Encoded, Jagged
from recsys.training.optimizers import make_optimizer
from recsys.training.step import PlainStepper, binomial_loss
from tests.models.toy import DENSE, ranker

ROWS = 512


def _batches(count: int = 20) -> list[Batch]:
    """Rows whose click the dense block and the site decide."""
    found = []
    for seed in range(count):
        r = np.random.default_rng(seed)
        history = Jagged(r.integers(0, 9, 2 * ROWS).astype(np.int32), np.arange(ROWS + 1) * 2)
        dense, ids = r.normal(size=(ROWS, DENSE)).astype(np.float32), r.integers(0, 5, (ROWS, 2)).astype(np.int32)
        click = r.random(ROWS) < 1 / (1 + np.exp(-(dense[:, 0] + ids[:, 1] - 2)))
        data = Encoded(dense, ids, r.integers(0, 9, ROWS).astype(np.int32), (history,), history,
                       np.ones((ROWS, 1), np.float32), click[:, None].astype(np.float32))
        found.append(gather(data, np.arange(ROWS), ["ad_id", "site", "history"]))
    return found


def _train(batches: list[Batch], **config: object) -> tuple[torch.nn.Module, list[float]]:
    torch.manual_seed(1)
    model = ranker()
    settings = TrainingConfig(**{"dense_lr": 0.01, **config})
    stepper = PlainStepper(model, make_optimizer(model, settings), settings)
    return model, [float(loss / trials) for loss, trials, *_ in stepper.run(iter(batches))]


def test_loss_is_the_binomial_likelihood_over_the_weighted_trials() -> None:
    batch = _batches(1)[0]
    z = torch.randn(ROWS, 1)
    loss, trials, histogram = binomial_loss(z, batch)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z, batch.successes, reduction="sum")
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(trials) == ROWS
    assert histogram.sum((0, 1)).tolist() == [float(batch.successes.sum()), ROWS - float(batch.successes.sum())]


def test_a_step_a_batch_and_every_loss_is_told() -> None:
    batches = _batches(7)
    torch.manual_seed(1)
    model = ranker()
    steps = list(PlainStepper(model, make_optimizer(model, TrainingConfig()), TrainingConfig()).run(iter(batches)))
    assert [step.rows for step in steps] == [ROWS] * 7
    assert not any(loss.requires_grad for loss, *_ in steps)
    assert list(PlainStepper(model, make_optimizer(model, TrainingConfig()), TrainingConfig()).run(iter([]))) == []


def test_training_lowers_the_loss() -> None:
    _, losses = _train(_batches())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.02


def test_bfloat16_is_close_to_float32_and_weights_stay_float32() -> None:
    batches = _batches()
    plain, exact = _train(batches)
    half, close = _train(batches, precision="bfloat16")
    assert exact != close
    assert close == pytest.approx(exact, abs=0.01)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    logits = np.stack([m.eval()(batches[0]).detach().numpy().ravel() for m in (plain, half)])
    assert np.corrcoef(logits)[0, 1] > 0.999


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_clipping_bounds_the_dense_gradient(clip: float) -> None:
    batches = _batches(1)
    torch.manual_seed(1)
    before = {n: p.detach().clone() for n, p in ranker().named_parameters()}
    model, _ = _train(batches, clip_norm=clip, dense_optimizer="sgd", dense_lr=1.0)
    moved = [(p.detach() - before[n]).flatten() for n, p in model.named_parameters() if not n.startswith("embeddings.")]
    free, _ = _train(batches, dense_optimizer="sgd", dense_lr=1.0)
    unclipped = [(p.detach() - before[n]).flatten() for n, p in free.named_parameters()
                 if not n.startswith("embeddings.")]
    norm = float(torch.cat(unclipped).norm())
    assert norm > 0.1
    assert float(torch.cat(moved).norm()) == pytest.approx(min(clip, norm), rel=1e-3)


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    batches = _batches(6)
    _, eager = _train(batches)
    _, compiled = _train(batches, compile=True)
    assert compiled == pytest.approx(eager, rel=1e-5)
