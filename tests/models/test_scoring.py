from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.features.batches import Batch
from recsys.models import dlrm
from recsys.models.embeddings import Table
from recsys.models.embeddings.quantised import Packed, QuantisedEmbeddings
from recsys.models.ranker import Ranker
from recsys.models.scoring import packed_weights
from tests.models import toy

ONE_EACH = [Table("ad_id", 20, ("ad_id",), lists=False), Table("site", 5, ("site",), lists=False)]


def _served(model: Ranker, tables: list[Table], bits: Any) -> Ranker:
    """The same ranker on packed tables."""
    packed = Packed(packed_weights([model], bits)["0.tables"], bits, model.dim)
    model.embeddings = QuantisedEmbeddings(tables, packed, kernels=model.config.kernels)
    return model.eval()


def _logits(kernels: str, bits: str, tables: list[Table], batch: Batch, **config: Any) -> torch.Tensor:
    torch.manual_seed(0)
    model = toy.ranker(tables=tables, kernels=kernels, **{"embedding_dim": 8, **config})
    with torch.no_grad():
        for weight in model.embeddings.weights().values():
            weight.normal_()
        return _served(model, tables, bits)(batch)


@pytest.mark.parametrize("bits", ["int8", "int4", "fp32"])
@pytest.mark.parametrize("config", [{"kind": "dlrm"}, {"kind": "dcnv2"}, {"kind": "finalmlp"},
                                    {"kind": "dlrm", "content": False, "top_input": "dense"}], ids=str)
def test_a_served_ranker_gives_the_same_by_all_kernels(bits: str, config: dict[str, Any]) -> None:
    found = [_logits(kernels, bits, toy.TABLES, toy.batch(), **config) for kernels in ("reference", "auto", "triton")]
    assert found[0].abs().max() > 0.01
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("change", "fused"), [
    ({}, True), ({"bits": "int8"}, False), ({"top_input": "embeddings"}, False), ({"content": True}, False),
    ({"embedding_dim": 4}, False), ({"kind": "dcnv2"}, False)], ids=str)
def test_lookup_and_dot_products_are_one_where_the_ranker_is_no_more(monkeypatch: pytest.MonkeyPatch, fused: bool,
                                                                     change: dict[str, Any]) -> None:
    calls: list[Any] = []
    real = dlrm.lookup_interaction
    monkeypatch.setattr(dlrm, "lookup_interaction", lambda *x: (calls.append(x), real(*x))[1])
    batch = toy.batch()
    ids = torch.tensor([[4, 0, 19, 1, 1, 2], [0, 4, 2, 2, 1, 3]], dtype=torch.int32)
    sparse = KeyedJaggedTensor(keys=["site", "ad_id"], stride=6, values=ids[[1, 0]].flatten(),
                               lengths=torch.ones(12, dtype=torch.int32))
    given = {"bits": "fp32", "content": False, "top_input": "dense", **change}
    found = [_logits(kernels, tables=ONE_EACH, batch=replace(batch, sparse=sparse), **given)
             for kernels in ("triton", "reference")]
    assert len(calls) == fused  # never for the reference
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-4)
