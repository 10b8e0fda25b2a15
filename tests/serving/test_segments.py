from __future__ import annotations

import os

import pyarrow as pa
import pytest

from recsys.errors import InputError
from recsys.serving.segments import SegmentWriter, read_segment, take_orphans

SCHEMA = pa.schema([("id", pa.string()), ("p", pa.float64()), ("list", pa.list_(pa.float64()))])


def batch(start: int, rows: int) -> pa.RecordBatch:
    at = range(start, start + rows)
    return pa.RecordBatch.from_pydict({"id": [f"i{i}" for i in at], "p": [1 / (3 + i) for i in at],
                                       "list": [[0.1 * i] * (i % 4) for i in at]}, SCHEMA)


def test_what_is_written_is_read_to_the_last_bit(tmp_path):
    segment = SegmentWriter(tmp_path / "x-1.segment", SCHEMA)
    batches = [batch(0, 3), batch(3, 1), batch(4, 20)]
    for b in batches:
        segment.append(b)
    segment.sync()
    assert not segment.dirty
    found = read_segment(segment.path)
    assert found.table.equals(pa.Table.from_batches(batches))
    assert found.torn == 0
    assert segment.rows == 24


def test_cut_at_any_byte_every_whole_batch_is_there_and_no_half_one(tmp_path):
    segment = SegmentWriter(tmp_path / "x-1.segment", SCHEMA)
    ends = [segment.size]
    for i in range(3):
        segment.append(batch(2 * i, 2))
        ends.append(segment.size)
    whole = segment.path.read_bytes()
    cut = tmp_path / "cut.segment"
    for size in range(len(whole) + 1):
        cut.write_bytes(whole[:size])
        found = read_segment(cut)
        kept = sum(size >= e for e in ends[1:])
        assert found.table.num_rows == 2 * kept
        assert (found.torn > 0) == (size not in (0, *ends))
    damaged = bytearray(whole)
    damaged[ends[1] + 20] ^= 1
    cut.write_bytes(damaged)
    assert read_segment(cut).table.num_rows == 2


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"PAR1 and so on")
    with pytest.raises(InputError, match="not a segment"):
        read_segment(tmp_path / "x")


def test_a_write_that_fails_leaves_what_was_whole(tmp_path, monkeypatch):
    segment = SegmentWriter(tmp_path / "x-1.segment", SCHEMA)
    segment.append(batch(0, 2))
    write = os.pwrite

    def full(fd, data, at):
        if at > segment.size + 50:
            raise OSError(28, "No space left on device")
        return write(fd, data[:60], at)

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OSError, match="No space"):
        segment.append(batch(2, 2))
    monkeypatch.setattr("os.pwrite", write)
    assert read_segment(segment.path).torn == 0
    segment.append(batch(2, 2))
    assert read_segment(segment.path).table["id"].to_pylist() == ["i0", "i1", "i2", "i3"]


def test_only_segments_that_nobody_holds_are_taken_and_each_once(tmp_path):
    held, left = (SegmentWriter(tmp_path / f"x-{n}.segment", SCHEMA) for n in "12")
    SegmentWriter(tmp_path / "y-1.segment", SCHEMA).close()
    left.close()
    taken = take_orphans(tmp_path, "x")
    assert [s.path.name for s in taken] == ["x-2.segment"]
    assert take_orphans(tmp_path, "x") == []
    taken[0].discard()
    held.close()
    assert [s.path.name for s in take_orphans(tmp_path, "x")] == ["x-1.segment"]
