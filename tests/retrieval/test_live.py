from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import IndexConfig
from recsys.content import ContentVectors
from recsys.errors import InputError
from recsys.retrieval import Index, LiveIndex, build_index
from recsys.retrieval import rollback as go_back
from recsys.retrieval.live import write_index

N, DIM = 600, 16
rng = np.random.default_rng(3)
MATRIX = rng.normal(size=(N, DIM)).astype(np.float32)
ADS = pa.table({"ad_id": [f"a{i}" for i in range(N)], "content_hash": [f"h{i}" for i in range(N)],
                "surface": ["feed" if i % 2 else "discovery" for i in range(N)]})


@pytest.fixture(params=["Flat", "IVF8,SQ8", "IVF8_HNSW32,PQ8x4fs,Refine(SQ8)"])
def folder(tmp_path, request):
    build_index(ContentVectors([f"h{i}" for i in range(N)], MATRIX, {}), tmp_path / "index", ADS,
                config=IndexConfig(factory=request.param, recall=0.9, k=10))
    return tmp_path / "index"


def top(index, vector, k=1, where=None):
    return list(index.search(vector[None], k, where)[0][0])


def test_upsert_delete_and_compact(folder):
    live = LiveIndex(folder)
    assert top(live, MATRIX[7]) == ["a7"]
    live.upsert(["a7", "new"], np.stack([-MATRIX[7], MATRIX[7]]))
    assert top(live, MATRIX[7]) == ["new"]
    assert top(live, -MATRIX[7]) == ["a7"]
    live.upsert(["new"], MATRIX[[7]] * 2)  # replaces a row of the delta
    assert list(live.search(MATRIX[[7]], N + 1)[0][0]).count("new") == 1
    assert live.delete(["new", "a8", "never there", "a8"]) == 2
    assert "new" not in top(live, MATRIX[7], 5)
    assert len(live) == N - 1
    found, scores = live.search(MATRIX[:3], 10_000)
    assert found.shape == (3, N - 1)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == N - 1 for row in found)
    manifest = live.compact()
    assert manifest["facts"]["n"] == N - 1
    assert len(live.snapshot.delta) == 0
    assert top(live, -MATRIX[7]) == ["a7"]
    assert set(live.search(MATRIX[:1], N)[0][0]) == set(Index.open(folder).search(MATRIX[:1], N)[0][0]) == set(found[0])


def test_filters_reach_the_delta(folder):
    live = LiveIndex(folder)
    new = pa.table({"ad_id": ["f", "d", "x"], "surface": ["feed", "discovery", None]})
    live.upsert(new, np.stack([MATRIX[7]] * 3))
    assert top(live, MATRIX[7], 1, "surface=discovery") == ["d"]
    assert set(top(live, MATRIX[7], 2, "surface=feed")) == {"f", "a7"}
    everything = live.search(MATRIX[:1], N, "surface=feed")[0][0]
    assert set(everything) == {f"a{i}" for i in range(1, N, 2)} | {"f"}
    live.upsert(pa.table({"ad_id": ["a7"], "surface": ["discovery"]}), MATRIX[[7]])  # moved to the other surface
    assert "a7" not in live.search(MATRIX[:1], N, "surface=feed")[0][0]


def test_a_snapshot_does_not_change_under_its_reader(folder):
    live = LiveIndex(folder)
    live.upsert(["x"], MATRIX[[3]])
    before = live.snapshot
    first = before.search(MATRIX[:5], 20)
    live.upsert([f"y{i}" for i in range(3000)], np.repeat(MATRIX[:1], 3000, 0))  # the buffer grows
    live.delete(["x", "a0", "a1"])
    again = before.search(MATRIX[:5], 20)
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()


def test_all_deleted_and_bad_updates_change_nothing(folder):
    live = LiveIndex(folder)
    before = live.snapshot
    for ids, matrix, word in (([], MATRIX[:0], "no ads"), (["a", "a"], MATRIX[:2], "twice"),
                              (["a"], MATRIX[:2], "another number"), (["a"], MATRIX[:1, :3], "another length"),
                              (["a"], np.full((1, DIM), np.nan), "not finite")):
        with pytest.raises(InputError, match=word):
            live.upsert(ids, matrix)
    assert live.snapshot is before
    live.delete([f"a{i}" for i in range(N)])
    assert live.search(MATRIX[:2], 5)[0].shape == (2, 0)


def test_updates_during_compaction_are_carried_over(folder, monkeypatch):
    live = LiveIndex(folder)
    live.upsert(["early"], MATRIX[[0]])

    def slowly(*args):
        live.upsert(["late", "early"], -MATRIX[[0, 1]])
        live.delete(["a5"])
        assert top(live, -MATRIX[0]) == ["late"]  # served while the new version is built
        return write_index(*args)

    monkeypatch.setattr("recsys.retrieval.live.write_index", slowly)
    live.compact()
    assert top(live, -MATRIX[0]) == ["late"]
    assert top(live, -MATRIX[1]) == ["early"]
    everything = list(live.search(MATRIX[:1], 10_000)[0][0])
    assert len(everything) == len(set(everything)) == len(live) == N + 1
    assert "a5" not in everything


def test_refresh_follows_a_rollback_and_loses_no_update(folder):
    live, reader = LiveIndex(folder), LiveIndex(folder)
    assert reader.refresh() is False
    live.upsert(["new"], MATRIX[[7]])
    live.compact()
    assert reader.refresh() is True
    assert "new" in top(reader, MATRIX[7], 2)
    go_back(folder)
    reader.delete(["a1"])
    with pytest.raises(InputError, match="would be lost"):
        reader.refresh()
    assert live.refresh() is True
    assert "new" not in top(live, MATRIX[7], 2)


def test_readers_see_whole_updates_only(folder):
    """A writer moves a pair of ads back and forth in one update; no search may see one moved and the other not."""
    live, stop, wrong, searches = LiveIndex(folder), threading.Event(), [], []

    def read():
        while not stop.is_set():
            ids, scores = live.search(MATRIX[[0]], 4, "surface=feed")
            pair = scores[0][np.isin(ids[0].astype(str), ["p", "q"])]
            searches.append(len(ids[0]))
            if len(pair) not in (0, 2) or (len(pair) == 2 and abs(pair[0] - pair[1]) > 1e-5) or len(set(ids[0])) != 4:
                wrong.append((ids, scores))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    table = pa.table({"ad_id": ["p", "q"], "surface": ["feed", "feed"]})
    for step in range(150):
        live.upsert(table, np.repeat(MATRIX[[0]] * (-1) ** step, 2, 0))
        if step == 75:
            live.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(searches) > 20
