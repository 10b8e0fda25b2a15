from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recsys.kernels.binomial_loss import binomial_loss, binomial_loss_reference, normalized_entropy

from recsys.training.metrics import StreamingMetrics, auc_and_bound
from tests.kernels.parity import (
    DTYPES,
    compiles_and_exports,
    differentiable_once,
    drawn,
    dtypes,
    fake_as_real,
    is_operator,
    near,
    needing_gradients,
)


def _inputs(batch: int, heads: int, dtype: torch.dtype, contiguous: bool = True) -> list[torch.Tensor]:
    r = torch.Generator().manual_seed(0)
    logits = drawn((batch, heads), dtype, contiguous) * 3
    trials = torch.randint(0, 4, (batch, heads), generator=r).float()
    labels = [trials, (trials * torch.rand(batch, heads, generator=r)).floor(), torch.rand(batch, generator=r)]
    return [logits, *(t if contiguous else torch.stack([t, -t], dim=-1)[..., 0] for t in labels)]


@given(batch=st.integers(0, 150), heads=st.integers(1, 3), bins=st.sampled_from([0, 1, 64]), dtype=dtypes,
       contiguous=st.booleans())
@example(batch=0, heads=2, bins=64, dtype=torch.float32, contiguous=True)
@example(batch=65, heads=2, bins=64, dtype=torch.float32, contiguous=False)
@example(batch=65, heads=1, bins=1, dtype=torch.float16, contiguous=False)
@example(batch=3, heads=3, bins=0, dtype=torch.bfloat16, contiguous=False)
@settings(max_examples=15)
def test_equals_the_oracle(batch: int, heads: int, bins: int, dtype: torch.dtype, contiguous: bool) -> None:
    logits, *labels = _inputs(batch, heads, dtype, contiguous)
    mine, exact = logits.detach().requires_grad_(), logits.detach().float().requires_grad_()
    found, expected = binomial_loss(mine, *labels, bins, "triton"), binomial_loss_reference(exact, *labels, bins)
    for got, want in zip(found, expected, strict=True):
        near(got, want, torch.float32)
    got, want = (torch.autograd.grad(3 * c.loss, x)[0] for c, x in ((found, mine), (expected, exact)))
    assert got.dtype == dtype
    near(got, want, dtype)


def test_extreme_logits_stay_finite_and_in_the_outer_bins() -> None:
    logits = torch.tensor([[-1e30], [-90.0], [0.0], [90.0], [1e30]])
    ones = torch.ones(5, 1)
    found = binomial_loss(logits, ones, (logits > 0).float(), torch.ones(5), 4, "triton")
    torch.testing.assert_close(found.loss, torch.tensor(2.0).log())
    assert found.histogram[0].tolist() == [[0, 2], [0, 0], [0, 1], [2, 0]]


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_metrics_are_those_of_streaming_metrics(choice: str) -> None:
    logits, trials, successes, weight = _inputs(400, 2, torch.float32)
    metrics = StreamingMetrics(2)
    metrics.update(logits.numpy(), (trials * weight[:, None]).numpy(), (successes * weight[:, None]).numpy())
    batches = [binomial_loss(*(t[part] for t in (logits, trials, successes, weight)), 1 << 12, choice)
               for part in (slice(0, 150), slice(150, 400))]
    sums, histogram = (sum(getattr(c, name) for c in batches) for name in ("sums", "histogram"))
    for head in range(2):
        expected = metrics.result(head)
        hits, misses = histogram[head].double().numpy().T
        auc, bound = auc_and_bound(np.ascontiguousarray(hits), np.ascontiguousarray(misses))
        assert abs(auc - expected["auc"]) <= bound + 1e-6
        np.testing.assert_allclose(normalized_entropy(sums)[head], expected["normalized_entropy"], rtol=1e-5)
        np.testing.assert_allclose(sums[head, 3] / sums[head, 2], expected["calibration_ratio"], rtol=1e-5)


def _loss(logits: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
    return binomial_loss(logits, *labels, 8, "triton").loss


def test_is_an_operator_of_torch_library() -> None:
    logits, *labels = needing_gradients(_inputs(5, 2, torch.float32))
    columns = [t.T for t in _inputs(2, 5, torch.float32)[:3]]
    is_operator(torch.ops.recsys.binomial_loss.default, (logits, *(t.detach() for t in labels), 8),
                (*columns, torch.rand(10)[::2], 8))
    is_operator(torch.ops.recsys.binomial_loss_backward.default,
                (torch.tensor(2.0), torch.randn(2, 5), torch.bfloat16))


def test_compiles_and_exports() -> None:
    given = [_inputs(batch, 2, torch.float32) for batch in (5, 7)]
    compiles_and_exports(_loss, *([logits.requires_grad_(), *labels] for logits, *labels in given))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors_are_as_real_ones(dtype: torch.dtype) -> None:
    for batch in (0, 5):
        logits, *labels = _inputs(batch, 2, dtype, contiguous=False)
        fake_as_real(_loss, [logits.requires_grad_(), *labels])


def test_has_no_second_derivative() -> None:
    logits, *labels = _inputs(5, 2, torch.float32)
    differentiable_once(lambda z: _loss(z, *labels), [logits])
