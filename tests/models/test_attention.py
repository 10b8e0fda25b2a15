from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.errors import InputError
from recsys.features.batches import Batch
from recsys.models.attention import TargetAttention, latest
from recsys.models.build import KINDS
from recsys.models.embeddings import Table
from tests.models.toy import CONTENT, batch, ranker

LENGTH = 4
ITEMS = tuple(f"history@{i}" for i in range(LENGTH))
TABLES = [Table("ad_id", 20, ("ad_id", *ITEMS)), Table("site", 5, ("site",))]


def _batch(histories: list[list[int]], content: bool = True) -> Batch:
    """Rows with the given histories, oldest first; the same ads are their content."""
    n = len(histories)
    values = [list(range(n)), [1] * n]
    lengths = [[1] * n, [1] * n]
    for i in range(LENGTH):
        values.append([h[-1 - i] for h in histories if len(h) > i])
        lengths.append([int(len(h) > i) for h in histories])
    sparse = KeyedJaggedTensor(keys=["ad_id", "site", *ITEMS], values=torch.tensor(list(chain(*values))).int(),
                               lengths=torch.tensor(list(chain(*lengths))).int(), stride=n)
    flat = torch.tensor(list(chain(*histories)), dtype=torch.int64)
    return replace(batch(n), sparse=sparse, history_content=(flat, torch.tensor([len(h) for h in histories])))


def _ranker(**config: object) -> torch.nn.Module:
    return ranker(tables=TABLES, **{"history": "attention", "history_length": LENGTH} | config)


def _stir(model: torch.nn.Module) -> None:
    """Weights as after some training: attention starts as a mean."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "attention" in name and "score" in name:
                p.normal_()


def test_latest_is_the_end_of_each_list() -> None:
    rows, there = latest(torch.tensor([7, 8, 9, 5]), torch.tensor([3, 0, 1]), 2)
    assert rows.tolist() == [[9, 8], [0, 0], [5, 0]]
    assert there.tolist() == [[True, True], [False, False], [True, False]]
    assert not latest(torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0]), 2)[1].any()


def test_starts_as_the_mean_of_what_is_there() -> None:
    r = torch.Generator().manual_seed(0)
    items, there = torch.randn(2, 3, 5, generator=r), torch.tensor([[True, True, False], [False, False, False]])
    found = TargetAttention(5, (8,))(torch.randn(2, 5, generator=r), items, there)
    torch.testing.assert_close(found[0], items[0, :2].mean(0))
    assert found[1].tolist() == [0.0] * 5


@pytest.mark.parametrize("dim", [None, 3])
def test_what_is_not_there_does_not_count(dim: int | None) -> None:
    r = torch.Generator().manual_seed(0)
    layer = TargetAttention(5, (8,), dim)
    _stir(torch.nn.ModuleDict({"attention": layer}))
    ad, items = torch.randn(2, 5, generator=r), torch.randn(2, 3, 5, generator=r)
    there = torch.tensor([[True, True, False], [False, False, False]])
    first = layer(ad, items, there)
    loud = torch.where(there.unsqueeze(2), items, 1e4)
    torch.testing.assert_close(layer(ad, loud, there), first)
    torch.testing.assert_close(layer(ad[:1], items[:1, :2], there[:1, :2]), first[:1])  # as without the empty place
    loud.requires_grad_()
    layer(ad, loud, there).sum().backward()
    assert torch.isfinite(loud.grad).all()
    assert not loud.grad[~there].any()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_weights_depend_on_the_ad() -> None:
    layer = TargetAttention(2, (16,))
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    r = torch.Generator().manual_seed(0)
    for _ in range(120):  # the item that agrees with the ad is the one to be found
        ad, items = torch.randn(64, 2, generator=r), torch.randn(64, 4, 2, generator=r)
        best = (items * ad.unsqueeze(1)).sum(2).argmax(1)
        loss = (layer(ad, items, torch.ones(64, 4, dtype=torch.bool)) - items[torch.arange(64), best]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ad = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    items = torch.tensor([[[2.0, 0.0], [-2.0, 0.0]]]).expand(2, 2, 2)
    found = layer(ad, items, torch.ones(2, 2, dtype=torch.bool))
    assert found[0, 0] > 1.5
    assert found[1, 0] < -1.5


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("content", [True, False])
def test_untrained_attention_equals_the_mean(kind: str, content: bool) -> None:
    attending, mean = _ranker(kind=kind, content=content).eval(), ranker(kind=kind, content=content).eval()
    weights = attending.weights()
    if content:
        mean.content.copy_(attending.content)
    histories = [[3, 4, 5], [], [6], [1, 2, 3, 4], [8, 8], [2]]
    values = [list(range(6)), [1] * 6, list(chain(*histories))]
    pooled = KeyedJaggedTensor(keys=["ad_id", "site", "history"], values=torch.tensor(list(chain(*values))).int(),
                               lengths=torch.tensor([1] * 12 + [len(h) for h in histories]).int(), stride=6)
    order = mean.weights()
    mean.load_weights({n: weights[n] for n in order})
    found = attending(_batch(histories))
    # The list feature stands beside its table's ad in one order and after all tables in the other.
    looked_up = mean.embeddings(pooled)[:, [0, 2, 1]]
    torch.testing.assert_close(found, mean.rank(looked_up, replace(_batch(histories), sparse=pooled)))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_rows_with_and_without_history(kind: str) -> None:
    model = _ranker(kind=kind, heads=("click", "engage")).eval()
    _stir(model)
    full = model(_batch([[3, 4, 5], [], [6, 7]]))
    assert torch.isfinite(full).all()
    torch.testing.assert_close(model(_batch([[3, 4, 5], [], [6, 7, 8]]))[:2], full[:2])
    assert not torch.allclose(model(_batch([[3, 4, 5], [], [6, 7, 8]]))[2], full[2])
    older = model(_batch([[9, 9, 3, 4, 5, 6], [], [6, 7]]))
    torch.testing.assert_close(older, model(_batch([[1, 2, 3, 4, 5, 6], [], [6, 7]])))  # beyond the latest four
    full.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.dense_parameters() if p.grad is not None)


def test_arithmetic_is_counted_by_item() -> None:
    one, four = (ranker(tables=TABLES, history="attention", history_length=n).flops_per_row() for n in (1, 4))
    scoring = 2 * (16 * 32 + 32)  # ids: 4 D inputs, one hidden layer
    content = 2 * (CONTENT * 4 + 16 * 32 + 32)
    assert four - one == 3 * (scoring + content)


def test_ads_known_by_content_alone_can_attend() -> None:
    tables = [Table("ad_id", 20, ITEMS), Table("site", 5, ("site",))]
    model = ranker(tables=tables, history="attention", history_length=LENGTH)
    looked_up = torch.randn(3, 5, 4)
    assert model.rank(looked_up, _batch([[3], [], [4, 5]])).shape == (3, 1)
    with pytest.raises(InputError, match="history attention without an ad"):
        ranker(content=False, tables=tables, history="attention", history_length=LENGTH)


def test_values_are_finite_under_bfloat16() -> None:
    model = _ranker().eval()
    _stir(model)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(_batch([[3, 4, 5], [], [6, 7]])).float()
    np.testing.assert_allclose(low.detach(), model(_batch([[3, 4, 5], [], [6, 7]])).detach(), atol=0.05)


@pytest.mark.parametrize("dim", [None, 3])
@pytest.mark.parametrize("hidden", [(8,), (8, 4), ()])
@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_kernels_change_no_result(dim: int | None, hidden: tuple[int, ...], kernels: str) -> None:
    r = torch.Generator().manual_seed(0)
    plain, fused = TargetAttention(5, hidden, dim, "reference"), TargetAttention(5, hidden, dim, kernels)
    _stir(torch.nn.ModuleDict({"attention": plain}))
    fused.load_state_dict(plain.state_dict())
    ad, wide = torch.randn(3, 5, generator=r), torch.randn(3, 6, 5, generator=r)
    there = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    weight = torch.randn(3, 5, generator=r)
    found = []
    for layer in (plain, fused):
        query, items = ad.clone().requires_grad_(), wide.clone().requires_grad_()
        pooled = layer(query, items[:, 1:5], there)
        grads = torch.autograd.grad((pooled * weight).sum(), [query, items, *layer.parameters()])
        found.append([pooled, *grads])
    for mine, oracle in zip(*reversed(found), strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-5, rtol=1e-4)
