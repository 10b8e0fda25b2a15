from __future__ import annotations

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.errors import InputError
from recsys.models.embeddings import Table
from recsys.models.embeddings.quantised import Packed, QuantisedEmbeddings

TABLES = [Table("ad", 50, ("ad", "history")), Table("site", 7, ("site",))]


@pytest.mark.parametrize("dim", [4, 5, 16])
@pytest.mark.parametrize(("bits", "codes"), [("int8", 255), ("int4", 15), ("fp32", 0)])
def test_rows_are_off_by_half_a_code_at_most(dim: int, bits: str, codes: int) -> None:
    torch.manual_seed(0)
    weights = torch.cat([torch.randn(40, dim), torch.zeros(1, dim), torch.full((1, dim), 0.3), torch.randn(1, dim) * 50,
                         torch.randn(3, dim) * 1e-7])
    packed = Packed.of({"ad": weights}, dim, bits)  # type: ignore[arg-type]
    rows = packed.tables([Table("ad", 46, ("ad",))])["ad"]
    assert rows.shape == (46, packed.row_bytes)
    error = (packed.decoded(rows) - weights).abs()
    if not codes:
        assert not error.any()
        return
    span = (weights.max(1).values - weights.min(1).values)[:, None]
    # half precision keeps 11 bits of scale and bias, and nothing below 6e-8
    assert (error <= 0.5 * span / codes + 1e-3 * weights.abs().max(1).values[:, None] + 0.002 * span + 1e-6).all()


def _sparse() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(  # in another order than the tables' features
        keys=["ad", "site", "history"], stride=3, values=torch.tensor([1, 2, 0, 3, 4, 49, 6, 6], dtype=torch.int32),
        lengths=torch.tensor([1, 1, 0, 1, 1, 1, 3, 0, 0], dtype=torch.int32))


@pytest.mark.parametrize("bits", ["int8", "int4", "fp32"])
def test_lookup_is_the_mean_of_dequantised_rows(bits: str) -> None:
    torch.manual_seed(0)
    packed = Packed.of({"ad": torch.randn(50, 6), "site": torch.randn(7, 6)}, 6, bits)  # type: ignore[arg-type]
    tables = QuantisedEmbeddings(TABLES, packed)
    ad, site = tables.weights().values()
    sparse = _sparse()
    want = torch.zeros(3, 3, 6)
    want[0, 0], want[1, 0], want[0, 1] = ad[1], ad[2], (ad[49] + 2 * ad[6]) / 3
    want[:, 2] = site[[0, 3, 4]]
    torch.testing.assert_close(tables(sparse), want)
    narrow = QuantisedEmbeddings(TABLES, packed, torch.bfloat16)(sparse)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), want, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("kernels", ["auto", "reference", "triton"])
@pytest.mark.parametrize("dim", [8, 6])
@pytest.mark.parametrize("bits", ["int8", "fp32"])
def test_other_vectors_stand_behind(bits: str, dim: int, kernels: str) -> None:
    """Whether one call writes all of it (rows as wide as they are stored) or not, and in which dtype."""
    torch.manual_seed(0)
    packed = Packed.of({"ad": torch.randn(50, dim), "site": torch.randn(7, dim)}, dim, bits)  # type: ignore[arg-type]
    sparse, others = _sparse(), [torch.randn(3, 1, dim), torch.randn(3, 2, dim)]
    plain = QuantisedEmbeddings(TABLES, packed, kernels="reference")(sparse)
    found = QuantisedEmbeddings(TABLES, packed, kernels=kernels).joined(sparse, others)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.cat([plain, *others], dim=1))
    narrow = QuantisedEmbeddings(TABLES, packed, torch.bfloat16, kernels)  # type: ignore[arg-type]
    narrowed = narrow.joined(sparse, [x.bfloat16() for x in others])
    assert narrowed.dtype == torch.bfloat16
    torch.testing.assert_close(narrowed.float(), found, atol=0.03, rtol=0.01)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("value", [70_000.0, -70_000.0])
def test_what_half_precision_cannot_hold_is_refused(bits: str, value: float) -> None:
    tables = {"ad": torch.zeros(5, 8), "site": torch.full((3, 8), value)}
    with pytest.raises(InputError, match=r"column table site: numbers beyond half precision.*70000.*--embeddings fp32"):
        Packed.of(tables, 8, bits)  # type: ignore[arg-type]
    assert len(Packed.of(tables, 8, "fp32").block) == 8 * 32


def test_a_block_of_another_length_is_refused() -> None:
    packed = Packed.of({"ad": torch.randn(50, 8)}, 8, "int8")
    with pytest.raises(RuntimeError, match="expected"):
        QuantisedEmbeddings(TABLES, packed)
