from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.features.batches import BatchLoader, Prefetch, gather
from recsys.features.encoded import Encoded, Jagged, write_encoded


def _data(n: int, seed: int = 0) -> Encoded:
    r = np.random.default_rng(seed)

    def jagged() -> Jagged:
        lengths = r.integers(0, 4, n)
        return Jagged(r.integers(0, 9, lengths.sum()).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))

    return Encoded(r.normal(size=(n, 2)).astype(np.float32), r.integers(0, 9, (n, 3)).astype(np.int32),
                   np.arange(n, dtype=np.int32), (jagged(),), jagged(), np.ones((n, 1), np.float32),
                   r.integers(0, 2, (n, 1)).astype(np.float32))


KEYS = ["a", "b", "c", "history"]


def test_batch_holds_the_rows_feature_major() -> None:
    data, rows = _data(20), np.array([7, 3, 19, 3])
    batch = gather(data, rows, KEYS)
    jagged = batch.sparse.to_dict()
    for i, name in enumerate("abc"):
        assert jagged[name].values().tolist() == data.sparse[rows, i].tolist()
    expected = [data.sequences[0].values[data.sequences[0].offsets[r] : data.sequences[0].offsets[r + 1]].tolist()
                for r in rows]
    assert [t.tolist() for t in jagged["history"].to_dense()] == expected
    assert batch.content_row.tolist() == rows.tolist()
    values, lengths = batch.history_content
    assert int(lengths.sum()) == len(values)
    assert batch.weight.tolist() == [1.0] * 4
    np.testing.assert_array_equal(batch.dense.numpy(), data.dense[rows])


@pytest.mark.parametrize(("n", "batch", "window"), [(100, 7, 20), (64, 8, 16), (10, 100, 3), (100, 10, 0)])
def test_an_epoch_has_every_row_once(n: int, batch: int, window: int) -> None:
    loader = BatchLoader(_data(n), np.arange(n), KEYS, batch, window, seed=1)
    parts = list(loader.order(0))
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert len(parts) == loader.batches
    assert sum(len(p) < batch for p in parts) <= 1


def test_order_is_decided_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = BatchLoader(_data(100), np.arange(100), KEYS, 8, 40, seed)
        return [int(b) for batch in loader.epoch(epoch) for b in batch.content_row]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_cursor_continues_exactly() -> None:
    loader = BatchLoader(_data(100), np.arange(100), KEYS, 8, 40, 3)
    whole = [b.content_row.tolist() for b in loader.epoch(2)]
    assert [b.content_row.tolist() for b in loader.epoch(2, start=5)] == whole[5:]
    assert list(loader.epoch(2, start=len(whole))) == []


def test_batches_kept_by_the_reader_stay_as_they_were() -> None:
    loader = BatchLoader(_data(100), np.arange(100), KEYS, 8)
    kept = list(loader.epoch(0))
    assert torch.cat([b.content_row for b in kept]).tolist() == list(range(100))


def test_error_in_the_thread_reaches_the_reader() -> None:
    def build() -> Iterator[int]:
        yield 1
        raise RuntimeError("from the thread")

    reader = Prefetch(build)
    assert next(reader) == 1
    with pytest.raises(RuntimeError, match="from the thread"):
        next(reader)


def test_leaving_early_ends_the_thread() -> None:
    def build() -> Iterator[int]:
        yield from range(10**9)

    with Prefetch(build, depth=2) as reader:
        assert next(reader) == 0
    assert not reader._thread.is_alive()
    with pytest.raises(StopIteration):
        next(reader)


def test_mapped_files_hold_the_stream(tmp_path: Path) -> None:
    parts = [_data(5, 1), _data(1, 2), _data(8, 3)]
    whole = write_encoded(parts, tmp_path)
    assert len(whole) == 14
    for name in ("dense", "sparse", "content_row", "successes"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(p, name) for p in parts]))
    rows = np.array([0, 5, 6, 13])
    for mapped, of in ((whole.sequences[0], lambda p: p.sequences[0]), (whole.history, lambda p: p.history)):
        values, lengths = mapped.take(rows)
        expected = [of(parts[0]).take(np.array([0])), of(parts[1]).take(np.array([0])),
                    of(parts[2]).take(np.array([0, 7]))]
        assert values.tolist() == np.concatenate([v for v, _ in expected]).tolist()
        assert lengths.tolist() == np.concatenate([n for _, n in expected]).tolist()
