"""What the tests of the ops share: drawn tensors, and forward and gradients beside the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st

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
    """Forward and every input's gradient of ``op`` beside the oracle's in float32, for a drawn gradient."""
    dtype = inputs[0].dtype
    mine = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().float().requires_grad_() for x in inputs]
    found, expected = op(*mine), oracle(*exact)
    near(found, expected, dtype)
    weight = drawn(expected.shape, dtype, seed=1) if expected.dim() else torch.ones((), dtype=expected.dtype)
    got = torch.autograd.grad(found, mine, weight.to(found.dtype), allow_unused=True)
    want = torch.autograd.grad(expected, exact, weight.float(), allow_unused=True)
    for x, mine_grad, exact_grad in zip(inputs, got, want, strict=True):
        assert mine_grad is not None
        assert mine_grad.dtype == x.dtype
        near(mine_grad, torch.zeros_like(x).float() if exact_grad is None else exact_grad, dtype)


def compiles_and_exports(op: Callable[..., torch.Tensor], *inputs: torch.Tensor, dynamic: object = None) -> None:
    """One graph for torch.compile with gradients, and a program of torch.export, that give what eager gives."""
    expected = op(*inputs)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, expected)
    needing = [x for x in inputs if x.requires_grad]
    mine, want = (torch.autograd.grad(y.sum(), needing) for y in (compiled, expected))
    torch.testing.assert_close(mine, want)

    class Module(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            return op(*args)

    plain = tuple(x.detach() for x in inputs)
    program = torch.export.export(Module(), plain)
    torch.testing.assert_close(program.module()(*plain), expected.detach())
    assert any("recsys" in str(node.target) for node in program.graph.nodes)
