from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recsys.kernels.quantised_bags import (
    dequantise,
    quantise,
    quantised_bags,
    quantised_bags_reference,
    row_bytes,
)
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.kernels.parity import drawn, dtypes, kernels, near

KINDS = ("int8", "int4", "fp8", "fp32")


def _inputs(kind: Any, batch: int, features: int, dim: int, longest: int, dtype: torch.dtype = torch.float32,
            index: torch.dtype = torch.int64) -> dict[str, Any]:
    r = np.random.default_rng(0)
    rows = [int(n) for n in r.integers(1, 9, features)]
    lengths = r.integers(0, longest + 1, features * batch)
    values = np.concatenate([r.integers(0, rows[i // max(batch, 1)], n) for i, n in enumerate(lengths)] or [[]])
    tables = torch.cat([quantise(drawn((n, dim), torch.float32, seed=i), kind) for i, n in enumerate(rows)])
    return {"tables": tables, "kind": kind, "values": torch.from_numpy(values).to(index),
            "offsets": torch.from_numpy(np.cumsum([0, *lengths])).to(index),
            "first_row": torch.from_numpy(np.cumsum([0, *rows[:-1]])), "beside": drawn((batch, 2, dim), dtype, False)}


@given(kind=st.sampled_from(KINDS), batch=st.integers(0, 20), features=st.integers(1, 3), longest=st.integers(0, 4),
       dim=st.sampled_from([4, 8, 12, 20, 32]), dtype=dtypes, kernels=kernels, weighted=st.booleans(),
       mean=st.booleans(), index=st.sampled_from([torch.int32, torch.int64]))
@example(kind="int4", batch=0, features=2, longest=2, dim=8, dtype=torch.float32, kernels="triton", weighted=True,
         mean=True, index=torch.int64)
@settings(max_examples=24)
def test_equals_the_oracle(kind: Any, batch: int, features: int, longest: int, dim: int, dtype: torch.dtype,
                           kernels: str, weighted: bool, mean: bool, index: torch.dtype) -> None:
    inputs = _inputs(kind, batch, features, dim, longest, dtype, index)
    weights = torch.rand(len(inputs["values"])) if weighted else None
    found = quantised_bags(**inputs, weights=weights, mean=mean, kernels=kernels)
    assert found.dtype == dtype
    exact = inputs | {"beside": inputs["beside"].float()}
    near(found, quantised_bags_reference(**exact, weights=weights, mean=mean), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_what_the_table_says(kind: Any) -> None:
    table = drawn((50, 32), torch.float32)
    error = (dequantise(quantise(table, kind), kind) - table).abs()
    spread = table.amax(1, keepdim=True) - table.amin(1, keepdim=True)
    rounding = 2.0**-11 * (spread + table.amin(1, keepdim=True).abs())
    most = {"int8": spread / 510 + rounding, "int4": spread / 30 + rounding,
            "fp8": (table.abs() / 16).clamp_min(2.0**-9 * 3 / 448), "fp32": torch.zeros(50, 1)}[kind]
    assert (error <= most).all()
    assert error.max() >= most.max() / 20
    assert quantise(table, kind).shape == (50, row_bytes(kind, 32))
    assert quantise(table[:0], kind).shape == (0, row_bytes(kind, 32))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_fbgemm_reads_the_same_rows(kind: Any) -> None:
    """Its own module over its own quantised tables, weighted means: the layout is its, byte for byte."""
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    inputs = _inputs(kind, 6, 2, 16, 3)
    edges = [*inputs["first_row"].tolist(), len(inputs["tables"])]
    rows = [b - a for a, b in pairwise(edges)]
    op = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("", n, 16, SparseType[kind.upper()], EmbeddingLocation.HOST) for n in rows], device="cpu",
        pooling_mode=PoolingMode.MEAN, output_dtype=SparseType.FP32)
    op.fill_random_weights()
    weights = torch.rand(len(inputs["values"]))
    expected = op(inputs["values"].int(), inputs["offsets"].int(), weights).view(6, 2, 16)
    theirs = torch.cat([whole for whole, _ in op.split_embedding_weights(split_scale_shifts=False)])
    inputs |= {"tables": theirs, "beside": torch.zeros(6, 0, 16)}
    for choice in ("auto", "reference", "triton"):
        found = quantised_bags(**inputs, weights=weights, mean=True, kernels=choice)
        torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-4)


def test_wrong_rows_are_refused() -> None:
    inputs = _inputs("int8", 2, 1, 8, 1)
    with pytest.raises(ValueError, match="int4 rows of 8 numbers have 8 bytes, got 12"):
        quantised_bags(**inputs | {"kind": "int4"})
    with pytest.raises(ValueError, match="multiple of 4"):
        quantise(torch.zeros(2, 6), "int8")
    with pytest.raises(ValueError, match="no such kind"):
        row_bytes("int2", 8)


def test_shapes_are_known_without_numbers() -> None:
    inputs = _inputs("int8", 3, 2, 8, 2)
    with FakeTensorMode() as mode:
        fake = quantised_bags(**{n: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x
                                 for n, x in inputs.items()})
    assert isinstance(fake, FakeTensor)
    assert fake.shape == (3, 4, 8)
    meta = quantised_bags(**{n: x.to("meta") if isinstance(x, torch.Tensor) else x for n, x in inputs.items()})
    assert meta.is_meta
    assert meta.shape == (3, 4, 8)


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_is_an_operator_of_torch_library(choice: str) -> None:
    inputs = _inputs("int8", 3, 2, 8, 2)
    torch.library.opcheck(torch.ops.recsys.quantised_bags.default, (*inputs.values(), None, True, choice),
                          test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))
    compiled = torch.compile(lambda x: quantised_bags(**inputs | {"beside": x}, kernels=choice), fullgraph=True,
                             backend="aot_eager")
    torch.testing.assert_close(compiled(inputs["beside"]), quantised_bags_reference(**inputs))
