"""What the tests of the ops share: drawn tensors, and forward and gradients beside the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of the largest value: sums are in float32, what is rounded are inputs to and results of each op.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
dtypes = st.sampled_from(DTYPES)
kernels = st.sampled_from(["auto", "triton"])


def drawn(shape: Sequence[int], dtype: torch.dtype, contiguous: bool = True, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers; not contiguous: every second column of wider rows, rows apart."""
    r = torch.Generator().manual_seed(seed)
    if contiguous:
        return torch.randn(shape, generator=r).to(dtype)
    return torch.randn((*shape[:-1], 2 * shape[-1] + 1), generator=r).to(dtype)[..., : 2 * shape[-1] : 2]


def near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Equal within what the dtype's rounding explains; expected is float32."""
    assert found.shape == expected.shape
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


def same_as(oracle: Callable[..., torch.Tensor], op: Callable[..., torch.Tensor],
            inputs: Sequence[torch.Tensor]) -> None:
    """Forward and every input's gradient of ``op`` beside the oracle's in float32, for a drawn gradient.

    The incoming gradient lies in memory as the first input does.
    """
    dtype = inputs[0].dtype
    mine = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().float().requires_grad_() for x in inputs]
    found, expected = op(*mine), oracle(*exact)
    near(found, expected, dtype)
    weight = drawn(expected.shape, dtype, inputs[0].is_contiguous(), seed=1)
    got = torch.autograd.grad(found, mine, weight.to(found.dtype), allow_unused=True)
    want = torch.autograd.grad(expected, exact, weight.float(), allow_unused=True)
    for x, mine_grad, exact_grad in zip(inputs, got, want, strict=True):
        assert mine_grad is not None
        assert mine_grad.dtype == x.dtype
        near(mine_grad, torch.zeros_like(x).float() if exact_grad is None else exact_grad, dtype)


def needing_gradients(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same, and what is floating requires gradients."""
    return [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]


def fake_as_real(op: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    """Fake tensors give shape, dtype and strides of the real result, and those gradients that are required."""
    real = op(*inputs)
    with FakeTensorMode() as mode:
        given = [mode.from_tensor(x) for x in inputs]
        fake = op(*given)
        grads = torch.autograd.grad(fake, [x for x in given if x.requires_grad], torch.ones_like(fake))
    want_grads = torch.autograd.grad(real, [x for x in inputs if x.requires_grad], torch.ones_like(real))
    for got, want in ((fake, real), *zip(grads, want_grads, strict=True)):
        assert isinstance(got, FakeTensor)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert got.stride() == want.stride() or not want.numel()


def is_operator(op: Any, given: Sequence[Any], *also: Sequence[Any]) -> None:
    """All of opcheck for ``given``; schema and fake tensors alone, which memory layouts matter to, for ``also``."""
    torch.library.opcheck(op, tuple(given))
    for others in also:
        torch.library.opcheck(op, tuple(others), test_utils=("test_schema", "test_faketensor"))


def differentiable_once(op: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    """A second derivative is an error and not a wrong number."""
    given = needing_gradients(inputs)
    (first,) = torch.autograd.grad(op(*given).square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(first.sum(), given[0])


def compiles_and_exports(op: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor],
                         again: Sequence[torch.Tensor]) -> None:
    """One graph for torch.compile with gradients, and one program of torch.export, that give what eager gives.

    Both take ``again`` too, whose sizes differ where the batch's do, without being compiled or exported anew.
    """
    differs = [{d for d, (m, n) in enumerate(zip(x.shape, y.shape, strict=True)) if m != n}
               for x, y in zip(inputs, again, strict=True)]
    assert any(differs)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager", dynamic=False)
    for x, dims in zip(inputs, differs, strict=True):
        torch._dynamo.mark_dynamic(x, sorted(dims))
    program = torch.export.export(_Module(op), tuple(x.detach() for x in inputs), dynamic_shapes=(
        tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in differs),))
    assert any("recsys" in str(node.target) for node in program.graph.nodes)
    exported = program.module()
    for given in (inputs, again):
        expected = op(*given)
        torch.testing.assert_close(exported(*(x.detach() for x in given)), expected.detach())
        with torch._dynamo.config.patch(error_on_recompile=given is again):
            found = compiled(*given)
        torch.testing.assert_close(found, expected)
        needing = [x for x in given if x.requires_grad]
        mine, want = (torch.autograd.grad(y.sum(), needing) for y in (found, expected))
        torch.testing.assert_close(mine, want)


class _Module(torch.nn.Module):
    def __init__(self, op: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._op = op

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self._op(*args)
