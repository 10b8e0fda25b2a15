from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recsys.kernels.dot_interaction import pair_order
from recsys.kernels.lookup_interaction import lookup_interaction, lookup_interaction_reference

from tests.kernels.parity import drawn, dtypes, kernels, near


def _inputs(batch: int, features: int, dim: int, dtype: torch.dtype = torch.float32, contiguous: bool = True,
            index: torch.dtype = torch.int64) -> list[torch.Tensor]:
    r = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 9, (features,), generator=r)
    ids = (torch.rand(features, batch, generator=r) * rows[:, None]).to(index)
    return [drawn((int(rows.sum()), dim), dtype, contiguous), ids, torch.cumsum(rows, 0) - rows,
            drawn((batch, dim), dtype, contiguous, seed=1)]


@given(batch=st.integers(0, 4), features=st.integers(1, 20), dim=st.integers(1, 20), dtype=dtypes, kernels=kernels,
       contiguous=st.booleans(), index=st.sampled_from([torch.int32, torch.int64]))
@settings(max_examples=25)
def test_equals_the_oracle(batch: int, features: int, dim: int, dtype: torch.dtype, kernels: str, contiguous: bool,
                           index: torch.dtype) -> None:
    tables, ids, first_row, dense = _inputs(batch, features, dim, dtype, contiguous, index)
    found = lookup_interaction(tables, ids, first_row, dense, kernels)
    assert found.dtype == dtype
    near(found, lookup_interaction_reference(tables.float(), ids, first_row, dense.float()), dtype)


def test_the_oracle_is_the_definition() -> None:
    tables, ids, first_row, dense = _inputs(3, 4, 5)
    found = lookup_interaction_reference(tables, ids, first_row, dense)
    for b in range(3):
        vectors = [*(tables[first_row[f] + ids[f, b]] for f in range(4)), dense[b]]
        pairs = [vectors[i] @ vectors[j] for i, j in pair_order(5).tolist()]
        torch.testing.assert_close(found[b], torch.cat([dense[b], torch.stack(pairs)]))


def test_more_than_one_block_of_a_vector() -> None:
    inputs = _inputs(2, 26, 150)
    near(lookup_interaction(*inputs, kernels="triton"), lookup_interaction_reference(*inputs), torch.float32)


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_is_an_operator_of_torch_library(choice: str) -> None:
    inputs = _inputs(3, 2, 8)
    torch.library.opcheck(torch.ops.recsys.lookup_interaction.default, (*inputs, choice),
                          test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))
    compiled = torch.compile(lambda *x: lookup_interaction(*x, kernels=choice), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), lookup_interaction_reference(*inputs))
