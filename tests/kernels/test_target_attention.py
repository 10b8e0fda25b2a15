from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recsys.kernels.on_triton import target_attention as on_triton
from recsys.kernels.target_attention import target_attention, target_attention_reference

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


def _history(lengths: list[int], gap: int = 0) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """starts, lengths, longest, items: with ``gap`` items between two histories that belong to none."""
    long = torch.tensor(lengths, dtype=torch.int64)
    starts = torch.cumsum(long + gap, 0) - long
    return starts, long, max(lengths, default=0), sum(lengths) + gap * len(lengths)


def _inputs(batch: int, items: int, dim: int, width: int, hidden: int, dtype: torch.dtype,
            contiguous: bool = True) -> list[torch.Tensor]:
    shapes = [(batch, dim), (items, dim), (items, width), (hidden, 4 * dim), (hidden,), (hidden,)]
    inputs = [drawn(shape, dtype, contiguous, seed) for seed, shape in enumerate(shapes)]
    return [*inputs[:3], inputs[3] / (4 * dim) ** 0.5, inputs[4], inputs[5] / hidden**0.5]


@given(lengths=st.lists(st.integers(0, 34), max_size=3), dim=st.integers(1, 20), width=st.integers(1, 20),
       hidden=st.integers(1, 20), gap=st.integers(0, 2), dtype=dtypes, contiguous=st.booleans())
@example(lengths=[], dim=3, width=5, hidden=4, gap=0, dtype=torch.float32, contiguous=True)
@example(lengths=[0, 0], dim=3, width=5, hidden=4, gap=0, dtype=torch.bfloat16, contiguous=False)
@example(lengths=[3, 0, 17], dim=17, width=5, hidden=4, gap=1, dtype=torch.float32, contiguous=False)
@example(lengths=[17], dim=3, width=17, hidden=4, gap=2, dtype=torch.float16, contiguous=False)
@settings(max_examples=7)
def test_forward_and_gradients_equal_the_oracles(lengths: list[int], dim: int, width: int, hidden: int, gap: int,
                                                 dtype: torch.dtype, contiguous: bool) -> None:
    starts, long, longest, items = _history(lengths, gap)

    def op(query, keys, values, weight, bias, out, kernels):  # type: ignore[no-untyped-def]
        return target_attention(query, keys, values, starts, long, longest, weight, bias, out, kernels)

    same_as(lambda *x: op(*x, "reference"), lambda *x: op(*x, "triton"),
            _inputs(len(lengths), items, dim, width, hidden, dtype, contiguous))


def test_keys_may_be_the_values_and_a_program_may_have_several_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_triton, "_PROGRAMS", 2)
    starts, long, longest, items = _history([3, 0, 18])
    query, keys, _, *layers = _inputs(3, items, 5, 5, 8, torch.float32)

    def op(kernels):  # type: ignore[no-untyped-def]
        return lambda q, k, *rest: target_attention(q, k, k, starts, long, longest, *rest, kernels)

    same_as(op("reference"), op("triton"), [query, keys, *layers])


def test_the_oracle_is_the_formula() -> None:
    starts, long, longest, items = _history([2, 0, 3])
    query, keys, values, weight, bias, out = _inputs(3, items, 4, 6, 5, torch.float64)
    found = target_attention_reference(query, keys, values, starts, long, longest, weight, bias, out)
    assert not found[1].any()
    for b in (0, 2):
        k, v = (t[starts[b] : starts[b] + long[b]] for t in (keys, values))
        q = query[b].expand_as(k)
        scores = (weight @ torch.cat([q, k, q - k, q * k], 1).T + bias[:, None]).relu().T @ out
        torch.testing.assert_close(found[b], scores.softmax(0) @ v, rtol=1e-6, atol=1e-6)


def _op(starts: torch.Tensor, lengths: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    return target_attention(*given[:3], starts, lengths, 50, *given[3:], "triton")


def _given(lengths: list[int], dtype: torch.dtype = torch.float32, contiguous: bool = True) -> list[torch.Tensor]:
    starts, long, _, items = _history(lengths, gap=1)
    return [starts, long, *_inputs(len(lengths), items, 4, 6, 5, dtype, contiguous)]


def test_is_an_operator_of_torch_library() -> None:
    starts, long, query, keys, values, _, _, out = _given([3, 0, 2])
    rows = [torch.randn(3, 5), query, keys, values, torch.randn(5, 4), torch.randn(5, 4)]
    columns = [t.T.contiguous().T for t in rows]
    is_operator(torch.ops.recsys.target_attention.default, (*needing_gradients([*rows, out]), starts, long),
                (*columns, out, starts, long))
    pooled, scores, total = torch.ops.recsys.target_attention(*rows, out, starts, long)
    is_operator(torch.ops.recsys.target_attention_backward.default,
                (torch.randn(3, 6), pooled, *rows, out, starts, long, scores, total),
                (torch.randn(6, 3).T, pooled, *columns, out, starts, long, scores, total))


def test_compiles_and_exports() -> None:
    compiles_and_exports(_op, *(needing_gradients(_given(lengths)) for lengths in ([3, 0, 2], [4, 0, 0, 9])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors_are_as_real_ones(dtype: torch.dtype) -> None:
    for lengths in ([], [3, 0, 2]):
        fake_as_real(_op, needing_gradients(_given(lengths, dtype, contiguous=False)))


def test_has_no_second_derivative() -> None:
    differentiable_once(lambda *args: _op(*given[:2], *args), (given := _given([3, 0, 2]))[2:])


def test_autocast_reaches_triton_and_gradients_keep_their_dtype() -> None:
    given = needing_gradients(_given([3, 0, 2]))
    with torch.autocast("cpu", torch.bfloat16):
        found = _op(*given)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), _op(*given), atol=0.05, rtol=0.02)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(found.float().sum(), given[2:]))
