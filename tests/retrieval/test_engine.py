"""The ladder, the tuning, and FAISS's traps: each is shown to be there, and to be avoided."""

from __future__ import annotations

import multiprocessing

import faiss
import numpy as np
import pytest

from recsys.config import IndexConfig
from recsys.errors import InputError, RecsysError, Refused
from recsys.retrieval.engine import Allowed, Engine, bytes_per_vector, factory_for, recall, tune

RUNGS = ("Flat", "IVF64,SQ8", "IVF64_HNSW32,SQ8", "IVF64_HNSW32,PQ16x4fs,Refine(SQ8)")
N, DIM = 8000, 32


def clustered(n: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(100, dim))
    x = centres[rng.integers(0, 100, n)] + 1.2 * rng.normal(size=(n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


UNIT = clustered(N, DIM, 0)
QUERIES = UNIT[::80] + np.float32(0.01)


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    config = IndexConfig(recall=0.95, k=20, queries=100)
    return {rung: tune(Engine.build(UNIT, rung), UNIT, config)[0] for rung in RUNGS}


def test_the_ladder():
    sizes = (1000, 50_000, 50_001, 1_000_000, 5_000_000, 50_000_000)
    assert [factory_for(n, 128, IndexConfig()) for n in sizes] == [
        "Flat", "Flat", "IVF1024,SQ8", "IVF4096,SQ8", "IVF32768_HNSW32,SQ8", "IVF65536_HNSW32,PQ64x4fs,Refine(SQ8)"]
    assert factory_for(10, 8, IndexConfig(factory="IVF2,SQ8")) == "IVF2,SQ8"


@pytest.mark.parametrize("rung", RUNGS)
def test_bytes_of_a_vector_are_those_of_the_file(rung):
    """Two sizes of one index: what differs is the vectors' own bytes."""
    sizes = [faiss.serialize_index(Engine.build(UNIT[:n], rung).index).nbytes for n in (4000, 8000)]
    if "HNSW" in rung:  # the coarse graph's links are of the lists, as many in both
        assert (sizes[1] - sizes[0]) / 4000 == pytest.approx(bytes_per_vector(rung, DIM), rel=0.25)
    else:
        assert (sizes[1] - sizes[0]) / 4000 == pytest.approx(bytes_per_vector(rung, DIM), rel=0.02)
    for other in ("IVF64,PQ8", "HNSW32", "IVF64,PQ16x4fs"):
        with pytest.raises(InputError, match="factory"):
            bytes_per_vector(other, DIM)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("share", [0.01, 0.2, 0.97, 1.0])
def test_recall_with_and_without_a_filter(engines, rung, share):
    allowed = Allowed(np.random.default_rng(1).random(N) < share) if share < 1 else None
    rows, scores = engines[rung].nearest(QUERIES, 20, allowed)
    assert recall(UNIT, QUERIES, rows, 20, allowed).mean() >= 0.94
    assert (np.diff(scores, axis=1) <= 0).all()
    assert allowed is None or allowed.mask[rows].all()


@pytest.mark.parametrize("rung", RUNGS)
def test_a_filter_far_from_the_query_still_fills_the_answer(engines, rung):
    near = UNIT @ QUERIES[0]
    allowed = Allowed(near < np.quantile(near, 0.1))  # none of them in the lists that would be probed
    rows, _ = engines[rung].nearest(QUERIES[:1], 20, allowed)
    assert rows.shape == (1, 20)
    assert allowed.mask[rows].all()
    few = Allowed(np.arange(N) < 3)
    assert set(engines[rung].nearest(QUERIES[:2], 20, few)[0][1]) == {0, 1, 2}
    assert engines[rung].nearest(QUERIES[:2], 20, Allowed(np.zeros(N, bool)))[0].shape == (2, 0)


def test_trap_a_selector_alone_resets_nprobe(engines):
    engine, allowed = engines["IVF64,SQ8"], Allowed(np.random.default_rng(1).random(N) < 0.5)
    engine.ivf.nprobe = 64
    trap = faiss.SearchParametersIVF(sel=faiss.IDSelectorBitmap(allowed.bits))
    assert trap.nprobe == 1
    _, rows = engine.index.search(QUERIES, 20, params=trap)
    ours, _ = engine.nearest(QUERIES, 20, allowed)
    assert recall(UNIT, QUERIES, rows, 20, allowed).mean() + 0.1 < recall(UNIT, QUERIES, ours, 20, allowed).mean()


def test_trap_a_graph_loses_answers_under_a_filter_and_is_refused():
    allowed = Allowed(np.random.default_rng(1).random(N) < 0.01)
    graph = faiss.index_factory(DIM, "HNSW16,Flat", faiss.METRIC_INNER_PRODUCT)
    graph.add(UNIT)
    trap = faiss.SearchParametersHNSW(sel=faiss.IDSelectorBitmap(allowed.bits), efSearch=32)
    assert recall(UNIT, QUERIES, graph.search(QUERIES, 20, params=trap)[1], 20, allowed).mean() < 0.8
    with pytest.raises(InputError, match="loses answers under a filter"):
        Engine.build(UNIT, "HNSW16,Flat")


def test_trap_refining_needs_a_factor(engines):
    engine = engines[RUNGS[-1]]
    assert engine.index.k_factor == 1  # FAISS's default, under which refining re-ranks what is returned anyway
    base, _ = engine.nearest(QUERIES, 20)
    plain = faiss.IndexRefineSearchParameters(
        k_factor=1, base_index_params=faiss.SearchParametersIVF(nprobe=engine.nprobe))
    _, rows = engine.index.search(QUERIES, 20, params=plain)
    assert recall(UNIT, QUERIES, rows, 20).mean() + 0.02 < recall(UNIT, QUERIES, base, 20).mean()


def test_trap_rows_cannot_be_removed_from_a_refining_index(engines):
    with pytest.raises(RuntimeError):
        engines[RUNGS[-1]].index.remove_ids(np.array([1], np.int64))


def _search_in_child(engine: Engine, out) -> None:
    try:
        engine.nearest(QUERIES[:1], 1)
        out.put("answered")
    except RecsysError as error:
        out.put(str(error))


def test_trap_a_forked_search_is_refused_instead_of_hanging(engines):
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    child = context.Process(target=_search_in_child, args=(engines["Flat"], out))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert "spawn" in out.get()


def test_tuning_takes_no_deeper_probe_than_it_needs_and_measures_on_other_queries():
    engine = Engine.build(UNIT, "IVF64,SQ8")
    probes = []
    for target in (0.6, 0.9, 0.98):
        tuned, told = tune(engine, UNIT, IndexConfig(recall=target, k=20, queries=150))
        assert told["recall"] >= target - 0.03
        assert told["queries"] == 150
        probes.append(tuned.nprobe)
    assert probes == sorted(probes)
    assert probes[0] < probes[2] < 64


def test_a_recall_out_of_reach_is_refused():
    engine = Engine.build(UNIT, "IVF64,PQ2x4")
    with pytest.raises(Refused, match="at most"):
        tune(engine, UNIT, IndexConfig(recall=0.95, k=20, queries=50))


def test_recall_counts_ties_once_and_misses_never():
    unit = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    query = np.eye(4, dtype=np.float32)[[0]]
    assert recall(unit, query, np.array([[1]]), 1)[0] == 1.0  # the duplicate is as good
    assert recall(unit, query, np.array([[1, 1]]), 2)[0] == 0.5
    assert recall(unit, query, np.array([[-1, 3]]), 2)[0] == 0.0


@pytest.mark.parametrize("factory", ["IVF9000,SQ8", "NONSENSE"])
def test_a_factory_that_cannot_be_built_is_refused(factory):
    with pytest.raises(InputError, match="factory"):
        Engine.build(UNIT, factory)
