from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.features.encoded import Encoded, Jagged
from recsys.features.stream import StreamLoader


@dataclass
class Numbered:
    """Row groups whose rows carry their own number; remembers what was read."""

    counts: np.ndarray
    reads: list[int] = field(default_factory=list)
    fails_at: int = -1

    def read(self, group: int) -> Encoded:
        if group == self.fails_at:
            raise InputError("damaged Parquet file", file="x.parquet")
        self.reads.append(group)
        first, n = int(self.counts[:group].sum()), int(self.counts[group])
        rows = np.arange(first, first + n, dtype=np.int32)
        return Encoded(rows[:, None].astype(np.float32), np.asfortranarray(np.stack([rows, rows + 1], 1)), rows,
                       (Jagged(rows, np.arange(n + 1)),), Jagged.empty(n), np.ones((n, 1), np.float32),
                       np.zeros((n, 1), np.float32))


KEYS = ["a", "b", "list"]


def _rows(loader: StreamLoader, epoch: int = 0, start: int = 0) -> list[list[int]]:
    with loader.epoch(epoch, start) as batches:
        return [b.content_row.tolist() for b in batches]


sources = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda c: sum(c) > 0).map(
    lambda c: Numbered(np.array(c, np.int64)))


@settings(deadline=None, max_examples=60)
@given(sources, st.integers(1, 30), st.integers(0, 60), st.integers(1, 6), st.integers(0, 3), st.data())
def test_every_row_once_in_batches_of_one_size(source: Numbered, batch: int, window: int, lanes: int, epoch: int,
                                               data: st.DataObject) -> None:
    lanes = min(lanes, int(source.counts.sum()))
    loader = StreamLoader(source, KEYS, batch, window, 5, lanes)
    whole = _rows(loader, epoch)
    assert sorted(r for b in whole for r in b) == list(range(loader.rows))
    assert len(whole) == loader.batches
    sizes = [len(b) for b in whole]
    assert max(sizes) - min(sizes) <= lanes  # a lane's batches differ by a row at most
    if batch % lanes == 0 and len(whole) == -(-loader.rows // batch):
        assert max(sizes) <= batch
    if not window:
        assert lanes > 1 or [r for b in whole for r in b] == list(range(loader.rows))
    start = data.draw(st.integers(0, len(whole)))
    assert _rows(loader, epoch, start) == whole[start:]


@settings(deadline=None, max_examples=40)
@given(sources, st.integers(1, 30), st.integers(0, 60), st.sampled_from([(2, 2), (4, 2), (4, 4), (6, 3), (6, 2)]))
def test_ranks_together_are_one_rank(source: Numbered, batch: int, window: int, lanes_world: tuple[int, int]) -> None:
    lanes, world = lanes_world
    if source.counts.sum() < lanes:
        return
    alone = _rows(StreamLoader(source, KEYS, batch, window, 1, lanes))
    ranks = [_rows(StreamLoader(source, KEYS, batch, window, 1, lanes, r, world)) for r in range(world)]
    assert {len(r) for r in ranks} == {len(alone)}  # equal counts, however odd the sizes
    for i, whole in enumerate(alone):
        parts = [r[i] for r in ranks]
        assert all(parts)
        assert sorted(r for part in parts for r in part) == sorted(whole)


def test_a_batch_is_the_rows_of_the_source() -> None:
    source = Numbered(np.array([50, 3, 70]))
    with StreamLoader(source, KEYS, 16, 64, 2, 2).epoch() as batches:
        for batch in batches:
            rows, found = batch.content_row.tolist(), batch.sparse.to_dict()
            assert found["a"].values().tolist() == rows
            assert found["b"].values().tolist() == [r + 1 for r in rows]
            assert [v.tolist() for v in found["list"].to_dense()] == [[r] for r in rows]
            assert batch.dense[:, 0].tolist() == rows
            assert batch.sparse.lengths().tolist() == [1] * (3 * len(rows))


def test_seed_and_epoch_decide_the_order() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return _rows(StreamLoader(Numbered(np.array([30, 30, 30])), KEYS, 8, 40, seed), epoch)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_rows_are_shuffled_within_the_window_and_no_further() -> None:
    loader = StreamLoader(Numbered(np.full(40, 10)), KEYS, 10, 40, 3)
    order = np.array([r for b in _rows(loader) for r in b])
    groups = order // 10
    for begin in range(30, 390, 40):  # after the two smaller windows at the start, windows of four row groups
        assert len(set(groups[begin : begin + 40])) == 4
    assert len(set(groups[30:40])) > 1
    assert groups.tolist() != sorted(groups.tolist())


def test_seeking_reads_nothing_that_it_skips() -> None:
    source = Numbered(np.full(40, 10))
    loader = StreamLoader(source, KEYS, 10, 20, 3)
    whole = _rows(loader)
    source.reads.clear()
    assert _rows(loader, start=36) == whole[36:]
    assert len(source.reads) <= 6


def test_a_rank_reads_its_own_row_groups_only() -> None:
    reads = []
    for rank in range(2):
        source = Numbered(np.full(20, 10))
        _rows(StreamLoader(source, KEYS, 10, 40, 3, 2, rank, 2))
        assert len(source.reads) == len(set(source.reads))
        reads.append(set(source.reads))
    assert len(reads[0] & reads[1]) == 0
    assert len(reads[0] | reads[1]) == 20


def test_few_windows_are_ahead() -> None:
    source = Numbered(np.full(100, 10))
    with StreamLoader(source, KEYS, 10, 10, 0).epoch(depth=1) as batches:
        for taken in range(1, 50):
            next(batches)
            # the batch taken, one waiting, one being made; and the next window
            assert len(source.reads) <= taken + 4


@pytest.mark.parametrize(("lanes", "world", "message"), [
    (6, 4, r"training\.lanes.*got '4 ranks, 6 lanes'; expected ranks: one of \[1, 2, 3, 6\]"),
    (200, 1, r"fewer rows than lanes; got '100 rows'; expected at least 200"),
])
def test_lanes_that_do_not_fit_are_refused(lanes: int, world: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        StreamLoader(Numbered(np.full(10, 10)), KEYS, 10, 10, 0, lanes, 0, world)


def test_an_error_of_the_source_reaches_the_reader() -> None:
    loader = StreamLoader(Numbered(np.full(10, 10), fails_at=7), KEYS, 10)
    with loader.epoch() as batches:
        for _ in range(7):
            next(batches)
        with pytest.raises(InputError, match=r"x\.parquet: damaged Parquet file"):
            next(batches)


def test_a_file_that_changed_is_noticed() -> None:
    class Grown(Numbered):
        def read(self, group: int) -> Encoded:
            return super().read(group).slice(0, 9)

    with pytest.raises(InputError, match="has changed since it was counted; got '9 rows in row group 0'"):
        _rows(StreamLoader(Grown(np.full(3, 10)), KEYS, 10))
