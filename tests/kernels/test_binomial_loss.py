from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recsys.kernels.binomial_loss import binomial_loss, binomial_loss_reference, normalized_entropy

from recsys.training.metrics import StreamingMetrics, auc_and_bound
from tests.kernels.parity import compiles_and_exports, drawn, dtypes, near


def _inputs(batch: int, heads: int, dtype: torch.dtype, contiguous: bool = True) -> list[torch.Tensor]:
    r = torch.Generator().manual_seed(0)
    logits = drawn((batch, heads), dtype, contiguous) * 3
    trials = torch.randint(0, 4, (batch, heads), generator=r).float()
    return [logits, trials, (trials * torch.rand(batch, heads, generator=r)).floor(), torch.rand(batch, generator=r)]


@given(batch=st.integers(0, 150), heads=st.integers(1, 3), bins=st.sampled_from([0, 1, 64]), dtype=dtypes,
       contiguous=st.booleans())
@example(batch=0, heads=2, bins=64, dtype=torch.float32, contiguous=True)
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


def test_is_an_operator_of_torch_library() -> None:
    logits, *labels = _inputs(5, 2, torch.float32)
    logits.requires_grad_()
    torch.library.opcheck(torch.ops.recsys.binomial_loss.default, (logits, *labels, 8))
    compiles_and_exports(lambda z: binomial_loss(z, *labels, 8, "triton").loss, logits)
