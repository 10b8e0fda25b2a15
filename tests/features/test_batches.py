from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.features.batches import Batch, Prefetch, gather, to_batch
from recsys.features.encoded import Encoded, Jagged


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


def test_concatenated_slices_are_the_rows() -> None:
    data = _data(30)
    parts = [data.slice(0, 7), data.slice(7, 8), data.slice(20, 30)]
    rows = np.concatenate([np.arange(8), np.arange(20, 30)])
    for got, want in zip(_flat(gather(Encoded.concatenate(parts), np.arange(18), KEYS)),
                         _flat(gather(data, rows, KEYS)), strict=True):
        assert got.tolist() == want.tolist()


def _flat(batch: Batch) -> list[torch.Tensor]:
    return [batch.dense, batch.sparse.values(), batch.sparse.lengths(), batch.content_row, *batch.history_content,
            batch.trials, batch.successes, batch.weight]


def test_the_latest_items_become_features_of_one_item() -> None:
    data = replace(_data(20), history_length=2)
    rows = np.array([3, 4, 5, 6, 7, 8])
    jagged = gather(data, rows, ["a", "b", "c", "history@0", "history@1"]).sparse.to_dict()
    for j in range(2):
        items = [data.sequences[0].take(np.array([r]))[0].tolist()[::-1] for r in rows]  # the latest first
        assert [t.tolist() for t in jagged[f"history@{j}"].to_dense()] == [i[j : j + 1] for i in items]


def test_a_batch_moves_with_what_it_has() -> None:
    batch = gather(replace(_data(4), user=np.arange(4), surface=np.array([0, 1, -1, 2], np.int8)), np.arange(4), KEYS)
    moved = batch.to(torch.device("meta"))
    assert {moved.user.device.type, moved.sparse.values().device.type, moved.dense.device.type} == {"meta"}
    assert batch.surface.tolist() == [0, 1, -1, 2]
    assert gather(_data(4), np.arange(4), KEYS).to(torch.device("meta")).user is None


def test_ids_stand_in_one_feature_major_block() -> None:
    """Joining a tensor a feature costs more than the lookup: the KeyedJaggedTensor is a view of one block."""
    sparse = np.arange(12, dtype=np.int32).reshape(4, 3)
    data = Encoded(np.zeros((4, 1), np.float32), sparse, np.zeros(4, np.int32), (), Jagged.empty(4))
    batch = to_batch(data, ["a", "b", "c"])
    np.testing.assert_array_equal(batch.sparse.values().numpy(), sparse.T.reshape(-1))
    assert batch.sparse.values().is_contiguous()
    assert batch.sparse["b"].values().data_ptr() == batch.sparse.values()[4:].data_ptr()


def test_padding_adds_rows_of_nothing() -> None:
    from recsys.features.batches import padded
    from tests.models.toy import batch

    plain = batch(6)
    more = padded(plain, 9)
    assert padded(plain, 6) is plain
    assert len(more) == 9
    assert more.sparse.stride() == 9
    for key, bag in more.sparse.to_dict().items():
        assert bag.lengths()[:6].tolist() == plain.sparse[key].lengths().tolist()
        assert bag.lengths()[6:].tolist() == [0, 0, 0]
        assert bag.values().tolist() == plain.sparse[key].values().tolist()
    assert more.weight[6:].tolist() == [0, 0, 0]
    assert not more.trials[6:].any()
    assert more.history_content[1].tolist() == [*plain.history_content[1].tolist(), 0, 0, 0]
