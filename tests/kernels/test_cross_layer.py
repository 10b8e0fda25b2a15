from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recsys.kernels.cross_layer import cross_layer, cross_layer_reference

from tests.kernels.parity import compiles_and_exports, drawn, dtypes, same_as


def _inputs(batch: int, width: int, rank: int, dtype: torch.dtype, contiguous: bool = True) -> list[torch.Tensor]:
    shapes = [(batch, width), (batch, width), (rank, width), (width, rank), (width,)]
    inputs = [drawn(shape, dtype, contiguous, seed) for seed, shape in enumerate(shapes)]
    return [*inputs[:2], inputs[2] / width**0.5, inputs[3] / rank**0.5, inputs[4]]


@given(batch=st.integers(0, 40), width=st.integers(1, 40), rank=st.integers(1, 40), dtype=dtypes,
       contiguous=st.booleans())
@example(batch=0, width=5, rank=3, dtype=torch.float32, contiguous=True)
@settings(max_examples=10)
def test_forward_and_gradients_equal_the_oracles(batch: int, width: int, rank: int, dtype: torch.dtype,
                                                 contiguous: bool) -> None:
    same_as(cross_layer_reference, lambda *inputs: cross_layer(*inputs, kernels="triton"),
            _inputs(batch, width, rank, dtype, contiguous))


def test_a_full_matrix() -> None:
    x0, x, _, _, bias = _inputs(5, 12, 4, torch.float32)
    up = drawn((12, 12), torch.float32, seed=9)
    same_as(lambda a, b, u, c: cross_layer_reference(a, b, None, u, c),
            lambda a, b, u, c: cross_layer(a, b, None, u, c, "triton"), [x0, x, up, bias])


def test_more_than_one_block_each_way() -> None:
    same_as(cross_layer_reference, lambda *inputs: cross_layer(*inputs, kernels="triton"),
            _inputs(150, 200, 70, torch.bfloat16))


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_a_cpu_runs_the_same_operations_as_before(choice: str) -> None:
    """Bit for bit: what addcmul of two linear layers gives, also under autocast."""
    inputs = _inputs(6, 10, 3, torch.float32)
    x0, x, down, up, bias = inputs
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.addcmul(x, x0, torch.nn.functional.linear(torch.nn.functional.linear(x, down), up, bias))
        assert torch.equal(cross_layer(*inputs, kernels=choice), expected)


def test_autocast_reaches_triton() -> None:
    inputs = _inputs(6, 10, 3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_layer(*inputs, kernels="triton")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), cross_layer_reference(*inputs), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_is_an_operator_of_torch_library(choice: str) -> None:
    x0, x, _, up, bias = _inputs(4, 6, 3, torch.float32)
    h = drawn((4, 3), torch.float32, seed=7)
    torch.library.opcheck(torch.ops.recsys.cross.default, (
        *(t.requires_grad_() for t in (x0, x, h, up, bias)), choice))
    torch.library.opcheck(torch.ops.recsys.cross_backward.default, (
        torch.randn(4, 6), *(t.detach() for t in (x0, h, up, bias)), choice))


def test_compiles_and_exports() -> None:
    inputs = [t.requires_grad_() for t in _inputs(4, 6, 3, torch.float32)]
    compiles_and_exports(lambda *args: cross_layer(*args, kernels="triton"), *inputs)
