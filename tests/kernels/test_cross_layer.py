from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recsys.kernels.cross_layer import cross_layer, cross_layer_reference

from tests.kernels.parity import (
    DTYPES,
    compiles_and_exports,
    differentiable_once,
    drawn,
    dtypes,
    fake_as_real,
    is_operator,
    needing_gradients,
    same_as,
)


def _inputs(batch: int, width: int, rank: int, dtype: torch.dtype, contiguous: bool = True) -> list[torch.Tensor]:
    shapes = [(batch, width), (batch, width), (rank, width), (width, rank), (width,)]
    inputs = [drawn(shape, dtype, contiguous, seed) for seed, shape in enumerate(shapes)]
    return [*inputs[:2], inputs[2] / width**0.5, inputs[3] / rank**0.5, inputs[4]]


@given(batch=st.integers(0, 40), width=st.integers(1, 40), rank=st.integers(1, 40), dtype=dtypes,
       contiguous=st.booleans())
@example(batch=0, width=5, rank=3, dtype=torch.float32, contiguous=True)
@example(batch=3, width=17, rank=5, dtype=torch.float32, contiguous=False)
@example(batch=3, width=5, rank=17, dtype=torch.float16, contiguous=False)
@example(batch=17, width=5, rank=3, dtype=torch.bfloat16, contiguous=False)
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
    """Also for columns that lie where rows should: the result's strides are promised, not taken from an input."""
    x0, x, _, up, bias = _inputs(4, 6, 3, torch.float32)
    rows = [x0, x, drawn((4, 3), torch.float32, seed=7)]
    columns = [t.T.contiguous().T for t in rows]
    is_operator(torch.ops.recsys.cross.default, (*needing_gradients([*rows, up, bias]), choice),
                (*columns, up, bias, choice))
    is_operator(torch.ops.recsys.cross_backward.default, (torch.randn(4, 6), x0, rows[2], up, bias, choice),
                (torch.randn(6, 4).T, columns[0], columns[2], up, bias, choice))


def test_compiles_and_exports() -> None:
    compiles_and_exports(lambda *args: cross_layer(*args, kernels="triton"),
                         *(needing_gradients(_inputs(batch, 6, 3, torch.float32)) for batch in (4, 7)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors_are_as_real_ones(dtype: torch.dtype) -> None:
    for batch in (0, 4):
        fake_as_real(lambda *args: cross_layer(*args, kernels="triton"),
                     needing_gradients(_inputs(batch, 6, 3, dtype, contiguous=False)))


def test_has_no_second_derivative() -> None:
    differentiable_once(lambda *args: cross_layer(*args, kernels="triton"), _inputs(4, 6, 3, torch.float32))
