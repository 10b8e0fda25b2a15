from __future__ import annotations

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.models.embeddings import Table, make_embeddings

TABLES = [Table("ad_id", 30, ("ad_id", "history")), Table("site", 5, ("site",))]
CPU = torch.device("cpu")


def _batch(seed: int, b: int = 16) -> KeyedJaggedTensor:
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (b,), generator=g)
    history = torch.randint(0, 30, (int(counts.sum()),), generator=g)
    ids = [torch.randint(0, n, (b,), generator=g) for n in (30, 5)]
    return KeyedJaggedTensor(keys=["ad_id", "site", "history"], values=torch.cat([*ids, history]).int(),
                             lengths=torch.cat([torch.ones(2 * b, dtype=torch.int32), counts.int()]))


def test_fused_equals_dense_rowwise_adagrad() -> None:
    fused, dense = (make_embeddings(k, TABLES, 8, 0.1, CPU) for k in ("fused", "dense"))
    for name, weight in dense.weights().items():
        weight.copy_(fused.weights()[name])
    target = torch.randn(16, 3, 8)
    for step in range(20):
        for backend in (fused, dense):
            backend.zero_grad()
            ((backend(_batch(step)) - target) ** 2).sum().backward()
            backend.step()
    torch.testing.assert_close(fused(_batch(99)), dense(_batch(99)), atol=1e-5, rtol=0)
    for name, weight in dense.weights().items():
        torch.testing.assert_close(fused.weights()[name], weight, atol=1e-5, rtol=0)
        torch.testing.assert_close(fused.state()[name], dense.state()[name][:, 0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["fused", "dense"])
def test_features_are_pooled_by_mean_and_stand_in_table_order(kind: str) -> None:
    backend = make_embeddings(kind, TABLES, 4, 0.1, CPU)
    weights = backend.weights()
    sparse = KeyedJaggedTensor(keys=["ad_id", "site", "history"], values=torch.tensor([3, 4, 1, 2, 5, 6]).int(),
                               lengths=torch.tensor([1, 1, 1, 1, 2, 0]).int())
    out = backend(sparse)
    torch.testing.assert_close(out[0, 0], weights["ad_id"][3])
    torch.testing.assert_close(out[0, 1], weights["ad_id"][[5, 6]].mean(0))
    assert not out[1, 1].any()
    torch.testing.assert_close(out[1, 2], weights["site"][2])


@pytest.mark.parametrize("kind", ["fused", "dense"])
def test_start_is_small_and_row_zero_is_zero(kind: str) -> None:
    backend = make_embeddings(kind, TABLES, 16, 0.1, CPU)
    for weight in backend.weights().values():
        assert not weight[0].any()
        assert 0 < weight.abs().max() <= 0.025


@pytest.mark.parametrize("kind", ["fused", "dense"])
def test_writing_weights_and_state_reaches_the_backend(kind: str) -> None:
    backend = make_embeddings(kind, TABLES, 4, 0.1, CPU)
    backend.weights()["site"].fill_(2.0)
    backend.state()["site"].fill_(9.0)
    assert backend(_batch(0))[:, 2].eq(2.0).all()
    backend.zero_grad()
    backend(_batch(0))[:, 2].sum().backward()
    backend.step()
    moved = 2.0 - backend.weights()["site"]
    assert 0 < moved.max() < 0.1  # an accumulator of 0 would move a row by the whole rate
