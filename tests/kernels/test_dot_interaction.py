from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recsys.kernels import native
from recsys.kernels.dot_interaction import dot_interaction, dot_interaction_reference, pair_order

from tests.kernels.parity import (
    DTYPES,
    compiles_and_exports,
    differentiable_once,
    drawn,
    dtypes,
    fake_as_real,
    is_operator,
    kernels,
    needing_gradients,
    same_as,
)


@given(batch=st.integers(1, 5), features=st.integers(2, 7), dim=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_equals_the_definition(batch: int, features: int, dim: int) -> None:
    x = torch.randn(batch, features, dim, dtype=torch.float64)
    order = pair_order(features).tolist()
    assert sorted(map(sorted, order)) == [[i, j] for i in range(features) for j in range(i + 1, features)]
    expected = torch.stack([(x[:, i] * x[:, j]).sum(1) for i, j in order], dim=1)
    torch.testing.assert_close(dot_interaction(x), expected)
    torch.testing.assert_close(dot_interaction_reference(x), expected)


@given(batch=st.integers(0, 3), features=st.integers(1, 9), dim=st.integers(1, 20), dtype=dtypes, kernels=kernels,
       contiguous=st.booleans(), ends=st.tuples(st.integers(0, 9), st.integers(0, 9)))
@example(batch=0, features=5, dim=3, dtype=torch.float32, kernels="triton", contiguous=True, ends=(1, 2))
@example(batch=2, features=5, dim=3, dtype=torch.float32, kernels="triton", contiguous=False, ends=(1, 2))
@example(batch=2, features=8, dim=17, dtype=torch.float16, kernels="triton", contiguous=False, ends=(0, 8))
@example(batch=2, features=7, dim=17, dtype=torch.bfloat16, kernels="triton", contiguous=False, ends=(6, 7))
@settings(max_examples=30)
def test_forward_and_gradient_equal_the_oracles(batch: int, features: int, dim: int, dtype: torch.dtype, kernels: str,
                                                contiguous: bool, ends: tuple[int, int]) -> None:
    first, last = sorted(min(e, features) for e in ends)
    same_as(lambda x: dot_interaction_reference(x, first, last), lambda x: dot_interaction(x, first, last, kernels),
            [drawn((batch, features, dim), dtype, contiguous)])


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler was there at the installation")
def test_the_cpu_version_was_built() -> None:
    assert native.takes(torch.zeros(2, 3, 4))
    assert native.takes(torch.zeros(4, 3, 4, dtype=torch.bfloat16)[::2])
    assert not native.takes(torch.zeros(2, 3, 4, dtype=torch.float16))
    assert not native.takes(torch.zeros(2, 3, 8)[..., ::2])


@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 2, 1), (3, 27, 16), (5, 28, 20), (2, 33, 150), (2, 64, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_built_or_not_it_is_the_oracle(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int],
                                       dtype: torch.dtype) -> None:
    x = [drawn(shape, dtype)]
    for built in (True, False):
        if not built:
            monkeypatch.setattr(native, "takes", lambda _: False)
        for first, last in ((0, 0), (shape[1] - 1, shape[1]), (0, shape[1])):
            same_as(lambda t, a=first, b=last: dot_interaction_reference(t, a, b),
                    lambda t, a=first, b=last: dot_interaction(t, a, b), x)


def test_threads_and_neighbours_change_no_bit() -> None:
    x, found, threads = drawn((50, 27, 16), torch.bfloat16), [], torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            y = x.clone().requires_grad_()
            out = dot_interaction(y, 26, 27)
            found.append((out, *torch.autograd.grad(out, y, torch.ones_like(out))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    assert torch.equal(torch.cat([dot_interaction(x[i : i + 1], 26, 27) for i in range(50)]), found[0][0])


@pytest.mark.parametrize("shape", [(2, 27, 128), (1, 33, 150), (2, 64, 16)])
def test_triton_at_the_sizes_of_use(shape: tuple[int, int, int]) -> None:
    """More than one block of a vector; features beyond a tile's smallest side."""
    same_as(lambda x: dot_interaction_reference(x, 3, 4), lambda x: dot_interaction(x, 3, 4, "triton"),
            [drawn(shape, torch.float32)])


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_is_an_operator_of_torch_library(choice: str) -> None:
    x, turned = drawn((2, 5, 4), torch.float32), drawn((4, 5, 2), torch.float32).transpose(0, 2)
    is_operator(torch.ops.recsys.dot_interaction.default, (*needing_gradients([x]), 1, 2, choice),
                (turned, 1, 2, choice))
    is_operator(torch.ops.recsys.dot_interaction_backward.default, (torch.randn(2, 14), x, 1, 2, choice),
                (torch.randn(14, 2).T, turned, 1, 2, choice))


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_compiles_and_exports(choice: str) -> None:
    compiles_and_exports(lambda t: dot_interaction(t, 1, 2, choice),
                         *(needing_gradients([drawn((batch, 5, 4), torch.float32)]) for batch in (2, 3)))


@pytest.mark.parametrize("choice", ["auto", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors_are_as_real_ones(choice: str, dtype: torch.dtype) -> None:
    for batch in (0, 2):
        fake_as_real(lambda t: dot_interaction(t, 1, 2, choice),
                     needing_gradients([drawn((batch, 5, 4), dtype, contiguous=False)]))


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_has_no_second_derivative(choice: str) -> None:
    differentiable_once(lambda t: dot_interaction(t, 1, 2, choice), [drawn((2, 5, 4), torch.float32)])


def test_reference_is_plain_torch() -> None:
    x = drawn((2, 5, 4), torch.float32)
    torch.testing.assert_close(dot_interaction(x, 0, 5, "reference"), dot_interaction_reference(x, 0, 5))


def test_gradient() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dot_interaction, (x,))


def test_one_feature_has_no_pairs() -> None:
    assert dot_interaction(torch.randn(3, 1, 4)).shape == (3, 0)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="batch, features, dim"):
        dot_interaction(torch.randn(3, 4))
    with pytest.raises(ValueError, match="vectors 2 to 6 of 5"):
        dot_interaction(torch.randn(3, 5, 4), 2, 6)


@pytest.mark.parametrize(("choice", "batch"), [("auto", 64), ("triton", 3)])
def test_bfloat16_autocast_stays_close_and_keeps_the_input_dtype_of_the_gradient(choice: str, batch: int) -> None:
    x = torch.randn(batch, 27, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs = dot_interaction(x, kernels=choice)
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


def test_nothing_is_gathered_or_scattered_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a backward goes through index_put with accumulation, several times slower than all else on a CPU."""
    monkeypatch.setattr(native, "takes", lambda _: False)
    x = torch.randn(8, 27, 16, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        dot_interaction(x).sum().backward()
    called = {event.key for event in profile.key_averages()}
    assert "aten::bmm" in called
    assert not {name for name in called if "index" in name or "gather" in name or "scatter" in name}
