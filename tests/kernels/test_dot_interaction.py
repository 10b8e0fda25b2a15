from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recsys.kernels.dot_interaction import dot_interaction, dot_interaction_reference, pair_order


@given(batch=st.integers(1, 5), features=st.integers(2, 7), dim=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_equals_the_definition(batch: int, features: int, dim: int) -> None:
    x = torch.randn(batch, features, dim, dtype=torch.float64)
    order = pair_order(features).tolist()
    assert sorted(map(sorted, order)) == [[i, j] for i in range(features) for j in range(i + 1, features)]
    expected = torch.stack([(x[:, i] * x[:, j]).sum(1) for i, j in order], dim=1)
    torch.testing.assert_close(dot_interaction(x), expected)
    torch.testing.assert_close(dot_interaction_reference(x), expected)


@given(features=st.integers(2, 9), dim=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_gradient_equals_the_oracles(features: int, dim: int) -> None:
    x = torch.randn(4, features, dim, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, features * (features - 1) // 2, dtype=torch.float64)
    grads = [torch.autograd.grad((f(x) * weight).sum(), x)[0] for f in (dot_interaction, dot_interaction_reference)]
    torch.testing.assert_close(*grads)


def test_gradient() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dot_interaction, (x,))


def test_one_feature_has_no_pairs() -> None:
    assert dot_interaction(torch.randn(3, 1, 4)).shape == (3, 0)


def test_wrong_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="batch, features, dim"):
        dot_interaction(torch.randn(3, 4))


def test_bfloat16_autocast_stays_close_and_keeps_the_input_dtype_of_the_gradient() -> None:
    x = torch.randn(64, 27, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs = dot_interaction(x)
    assert pairs.dtype == torch.bfloat16
    weight = torch.randn(pairs.shape)
    (pairs.float() * weight).sum().backward()
    exact = x.detach().clone().requires_grad_()
    want = dot_interaction_reference(exact)
    (want * weight).sum().backward()
    torch.testing.assert_close(pairs.float(), want, atol=0.15, rtol=0.02)
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, exact.grad, atol=0.25, rtol=0.02)


def test_nothing_is_gathered_or_scattered_by_index() -> None:
    """Such a backward goes through index_put with accumulation, several times slower than all else on a CPU."""
    x = torch.randn(8, 27, 16, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        dot_interaction(x).sum().backward()
    called = {event.key for event in profile.key_averages()}
    assert "aten::bmm" in called
    assert not {name for name in called if "index" in name or "gather" in name or "scatter" in name}
