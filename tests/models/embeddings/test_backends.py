from __future__ import annotations

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config.training import ParallelConfig, TableConfig
from recsys.errors import InputError
from recsys.models.embeddings import SparseOptions, Table, make_embeddings
from recsys.models.embeddings.base import _BLOCK, initial_rows
from recsys.training.world import World

TABLES = [Table("ad_id", 30, ("ad_id", "history")), Table("site", 5, ("site",)), Table("city", 7, ("city",))]
CPU = torch.device("cpu")
KEYS = ["ad_id", "site", "city", "history"]
F = 4
MIXED = SparseOptions("adagrad", 0.1, tables={"site": TableConfig(optimizer="sgd", lr=0.5),
                                             "city": TableConfig(optimizer="rowwise_adagrad")})


def make_batch(seed: int, b: int = 16) -> KeyedJaggedTensor:
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (b,), generator=g)
    history = torch.randint(0, 30, (int(counts.sum()),), generator=g)
    ids = [torch.randint(0, n, (b,), generator=g) for n in (30, 5, 7)]
    return KeyedJaggedTensor(keys=KEYS, values=torch.cat([*ids, history]).int(),
                             lengths=torch.cat([torch.ones(3 * b, dtype=torch.int32), counts.int()]))


def _make(kind: str, options: SparseOptions, dim: int = 8, tables: list[Table] = TABLES):
    torch.manual_seed(3)
    return make_embeddings(kind, tables, dim, options, CPU)


def _train(backend, steps: range) -> None:
    target = torch.randn(16, F, backend.dim, generator=torch.Generator().manual_seed(1))
    for step in steps:
        backend.zero_grad()
        ((backend(make_batch(step)) - target) ** 2).sum().backward()
        backend.step()


@pytest.mark.parametrize("options", [SparseOptions("rowwise_adagrad", 0.1), SparseOptions("adagrad", 0.1),
                                     SparseOptions("sgd", 0.05), MIXED], ids=["rowwise", "adagrad", "sgd", "mixed"])
def test_fused_equals_dense(options: SparseOptions) -> None:
    fused, dense = (_make(k, options) for k in ("fused", "dense"))
    for backend in (fused, dense):
        _train(backend, range(20))
    torch.testing.assert_close(fused(make_batch(99)), dense(make_batch(99)), atol=1e-5, rtol=0)
    one, two = fused.checkpoint_tensors(), dense.checkpoint_tensors()
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=1e-4, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["fused", "dense"])
@pytest.mark.parametrize(("optimizer", "shapes"), [
    ("rowwise_adagrad", {"table_state.ad_id": (30,)}), ("adagrad", {"table_state.ad_id": (30, 8)}), ("sgd", {}),
    ("adam", {"table_state.ad_id": (30, 8), "table_state.ad_id.second": (30, 8)})])
def test_checkpoint_names_and_shapes_are_those_of_the_optimizer(kind: str, optimizer: str, shapes: dict) -> None:
    if (kind, optimizer) == ("fused", "adam"):
        pytest.skip("no fused Adam on a CPU")
    found = _make(kind, SparseOptions(optimizer), tables=TABLES[:1]).checkpoint_tensors()
    assert {n: tuple(t.shape) for n, t in found.items()} == {"table.ad_id": (30, 8), "table_steps": (), **shapes}


@pytest.mark.parametrize("kind", ["fused", "dense"])
def test_features_are_pooled_by_mean_and_stand_in_table_order(kind: str) -> None:
    backend = _make(kind, MIXED, 4)  # mixed: the fused backend has a kernel an optimizer and must put them in order
    weights = backend.weights()
    sparse = KeyedJaggedTensor(keys=KEYS, values=torch.tensor([3, 4, 1, 2, 6, 0, 2, 5, 6]).int(),
                               lengths=torch.tensor([1, 1, 1, 1, 1, 1, 3, 0]).int())
    out = backend(sparse)
    torch.testing.assert_close(out[0, 0], weights["ad_id"][3])
    torch.testing.assert_close(out[0, 1], weights["ad_id"][[2, 5, 6]].mean(0))
    assert not out[1, 1].any()
    torch.testing.assert_close(out[1, 2], weights["site"][2])
    torch.testing.assert_close(out[0, 3], weights["city"][6])


@pytest.mark.parametrize("kind", ["fused", "dense"])
def test_start_is_small_and_row_zero_is_zero(kind: str) -> None:
    for weight in _make(kind, SparseOptions(), 16).weights().values():
        assert not weight[0].any()
        assert 0 < weight.abs().max() <= 0.025


def test_a_part_of_a_table_starts_as_the_whole_does() -> None:
    rows = 2 * _BLOCK + 100
    whole = torch.cat([v for _, v in initial_rows(5, 1, rows, 4)])
    for start, stop in ((0, 10), (7, _BLOCK + 3), (_BLOCK, rows), (rows - 50, rows)):
        pieces = list(initial_rows(5, 1, rows, 4, start, stop))
        assert pieces[0][0] == start
        torch.testing.assert_close(torch.cat([v for _, v in pieces]), whole[start:stop], atol=0, rtol=0)
    assert not torch.equal(whole[1:10], next(initial_rows(5, 2, rows, 4))[1][1:10])


@pytest.mark.parametrize("kind", ["fused", "dense"])
def test_learning_rates_follow_the_factor_table_by_table(kind: str) -> None:
    # Trap 12: a schedule over a combined optimizer gives every table the same rate.
    options = SparseOptions("sgd", 0.1, tables={"site": TableConfig(lr=0.4)})
    backend = _make(kind, options)
    for factor in (1.0, 0.25, 0.0):
        before = {n: w.clone() for n, w in backend.weights().items()}
        backend.set_lr(factor)
        backend.zero_grad()
        backend(make_batch(0)).sum().backward()
        backend.step()
        moved = {n: float((before[n] - w).abs().max()) for n, w in backend.weights().items()}
        counts = {n: float(torch.bincount(make_batch(0)[n].values().long()).max()) for n in ("site", "city")}
        assert moved["site"] == pytest.approx(0.4 * factor * counts["site"], rel=1e-4)
        assert moved["city"] == pytest.approx(0.1 * factor * counts["city"], rel=1e-4)


@pytest.mark.parametrize(("kind", "optimizer"), [("fused", "rowwise_adagrad"), ("fused", "adagrad"),
                                                 ("dense", "rowwise_adagrad"), ("dense", "adagrad"),
                                                 ("dense", "adam"), ("dense", "sgd")])
def test_restored_in_place_it_goes_on_as_if_never_stopped(kind: str, optimizer: str) -> None:
    options = SparseOptions(optimizer, 0.05)
    whole = _make(kind, options)
    _train(whole, range(5))
    kept = {n: t.clone() for n, t in whole.checkpoint_tensors().items()}
    _train(whole, range(5, 9))
    again = make_embeddings(kind, TABLES, 8, options, CPU)  # another start
    for name, tensor in again.checkpoint_tensors().items():
        tensor.copy_(kept[name])
    again.loaded()
    _train(again, range(5, 9))
    for name, tensor in again.checkpoint_tensors().items():
        assert torch.equal(tensor, whole.checkpoint_tensors()[name]), name
    assert int(again.steps) == 9


def test_l2_of_the_dense_backend_moves_rows_that_no_batch_looks_up() -> None:
    # Trap 9: a fused kernel's weight decay touches looked-up rows only.
    backend = _make("dense", SparseOptions("sgd", 0.1, l2=0.5))
    before = backend.weights()["ad_id"].clone()
    sparse = KeyedJaggedTensor(keys=KEYS, values=torch.tensor([1, 1, 1, 1]).int(), lengths=torch.ones(4).int())
    backend.zero_grad()
    (backend(sparse) * 0).sum().backward()
    backend.step()
    torch.testing.assert_close(backend.weights()["ad_id"], before * (1 - 0.1 * 0.5))
    with pytest.raises(InputError, match="embedding_l2: fused kernels would decay only the rows"):
        _make("fused", SparseOptions(l2=0.5))


def test_what_a_backend_cannot_serve_is_named_with_what_can() -> None:
    with pytest.raises(InputError, match=r"got 'adam'; expected rowwise_adagrad, adagrad, sgd; a GPU; or .*dense"):
        _make("fused", SparseOptions("adam"))
    with pytest.raises(InputError, match="table city: no fused CPU kernel"):
        _make("auto", SparseOptions(tables={"city": TableConfig(optimizer="adam")}))
    with pytest.raises(InputError, match=r"training.tables.town: no such embedding table.*expected one of ad_id, site"):
        _make("fused", SparseOptions(tables={"town": TableConfig(lr=1.0)}))
    two = World(0, 2, CPU)
    with pytest.raises(InputError, match="the fused backend serves one rank"):
        make_embeddings("fused", TABLES, 8, SparseOptions(), CPU, two)
    with pytest.raises(InputError, match="unified memory needs a GPU"):
        make_embeddings("fused", TABLES, 8, SparseOptions(), CPU, None, ParallelConfig(uvm_caching=0.2))


def test_dense_takes_any_dimension() -> None:
    backend = _make("dense", SparseOptions("adam", 0.01), dim=5)
    before = backend.weights()["ad_id"].clone()
    _train(backend, range(2))
    assert backend(make_batch(0)).shape == (16, F, 5)
    assert not torch.equal(before, backend.weights()["ad_id"])


def test_tables_of_another_shape_are_refused() -> None:
    backend = _make("fused", SparseOptions())
    weights = {n: w.clone() + 1 for n, w in backend.weights().items()}
    backend.load_weights(weights)
    torch.testing.assert_close(backend.weights()["city"], weights["city"])
    with pytest.raises(RuntimeError, match=r"site: got \(4, 8\), expected \(5, 8\)"):
        backend.load_weights(weights | {"site": weights["site"][:4]})


def test_plan_says_where_tables_are_and_what_they_take() -> None:
    (ad, _, _) = _make("fused", SparseOptions("rowwise_adagrad")).plan()
    assert ad == {"table": "ad_id", "rows": 30, "dim": 8, "sharding": "whole", "ranks": [0],
                  "mib_per_rank": 30 * 9 * 4 / 2**20}
