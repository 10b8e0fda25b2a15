from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import ServedLogConfig
from recsys.errors import InputError
from recsys.serving import segments, served_log
from recsys.serving.served_log import LogFull, ServedLog
from tests.processes import wait_until

SCHEMA = pa.schema([("id", pa.string()), ("p", pa.float64())])


def batch(start: int, rows: int = 1, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    at = range(start, start + rows)
    columns = {"id": [f"i{i}" for i in at], "p": [1 / (3 + i) for i in at]}
    return pa.RecordBatch.from_pydict({n: columns.get(n, [None] * rows) for n in schema.names}, schema)


def published(folder) -> list[str]:
    ids = [i for f in sorted(folder.glob("*.parquet")) for i in pq.read_table(f)["id"].to_pylist()]
    assert len(ids) == len(set(ids))
    return ids


def test_all_of_it_in_order_and_nothing_else_in_the_folder(tmp_path):
    log = ServedLog("impressions", ServedLogConfig(folder=str(tmp_path / "log")))
    for i in range(0, 300, 3):
        log.append(batch(i, 3))
    assert log.close()
    assert published(tmp_path / "log") == [f"i{i}" for i in range(300)]
    assert [p.name for p in (tmp_path / "log").iterdir() if p.suffix != ".parquet"] == ["_state"]
    assert not list((tmp_path / "log" / "_state").iterdir())
    assert log.counts["published"] == log.counts["appended"] == 300
    with pytest.raises(LogFull):
        log.append(batch(0))


def test_rotated_by_size_by_time_and_by_schema(tmp_path):
    log = ServedLog("a", ServedLogConfig(folder=str(tmp_path / "size"), rotate_bytes=3000))
    for i in range(40):
        log.append(batch(i))
    assert log.close()
    assert len(list((tmp_path / "size").glob("*.parquet"))) > 2
    assert published(tmp_path / "size") == [f"i{i}" for i in range(40)]

    log = ServedLog("a", ServedLogConfig(folder=str(tmp_path / "time"), rotate_seconds=0.05, sync_seconds=0.01))
    log.append(batch(0))
    wait_until(lambda: log.counts["published"] == 1, "a file published")  # although nothing more came
    assert log.close()

    log = ServedLog("a", ServedLogConfig(folder=str(tmp_path / "schema")))
    for i in range(20):  # two arms in turn, whose models have other columns
        log.append(batch(i, schema=SCHEMA if i % 2 else SCHEMA.append(pa.field("more", pa.int64()))))
    assert log.close()
    files = sorted((tmp_path / "schema").glob("*.parquet"))
    assert sorted((pq.read_schema(f).names, pq.read_metadata(f).num_rows) for f in files) == [
        (["id", "p"], 10), (["id", "p", "more"], 10)]


def test_a_full_queue_is_refused_at_once_and_loses_nothing(tmp_path, monkeypatch):
    """A full disk: batches wait, then the next is refused; with space again everything taken is published once."""
    full = threading.Event()
    full.set()
    write = os.pwrite

    def pwrite(fd, data, at):
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, at)

    monkeypatch.setattr(segments.os, "pwrite", pwrite)
    monkeypatch.setattr(served_log, "_RETRY_SECONDS", 0.02)
    log = ServedLog("a", ServedLogConfig(folder=str(tmp_path), queue=5))
    taken = 0
    for i in range(50):
        try:
            log.append(batch(i))
            taken += 1
        except LogFull:
            break
    assert 5 <= taken <= 7  # the queue, and what the writer has in hand
    wait_until(lambda: log.counts["errors"] > 2, "errors counted")
    assert not log.flush(0.1)
    full.clear()
    assert log.flush()
    log.append(batch(1000))
    assert log.close()
    assert published(tmp_path) == [*(f"i{i}" for i in range(taken)), "i1000"]


def test_a_disk_too_full_for_parquet_keeps_the_segment_for_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(served_log, "_RETRY_SECONDS", 0.02)
    with monkeypatch.context() as patch:
        def fail(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(served_log.pq, "write_table", fail)
        log = ServedLog("a", ServedLogConfig(folder=str(tmp_path)))
        log.append(batch(0, 4))
        assert not log.close()
    assert published(tmp_path) == []
    again = ServedLog("a", ServedLogConfig(folder=str(tmp_path)))
    wait_until(lambda: again.counts["recovered"] == 4, "rows recovered")
    assert again.close()
    assert published(tmp_path) == ["i0", "i1", "i2", "i3"]


def test_killed_between_publishing_and_clearing_away_nothing_is_doubled(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(segments.SegmentWriter, "discard", lambda self: self.close())
        log = ServedLog("a", ServedLogConfig(folder=str(tmp_path)))
        log.append(batch(0, 4))
        assert log.close()
    assert list((tmp_path / "_state").iterdir())
    assert ServedLog("a", ServedLogConfig(folder=str(tmp_path))).close()
    assert published(tmp_path) == ["i0", "i1", "i2", "i3"]
    assert not list((tmp_path / "_state").iterdir())


def test_two_processes_share_a_folder(tmp_path):
    one, two = (ServedLog("a", ServedLogConfig(folder=str(tmp_path))) for _ in range(2))
    one.append(batch(0))
    assert one.flush()
    two.append(batch(1))
    assert ServedLog("a", ServedLogConfig(folder=str(tmp_path))).close()  # takes nothing of the living
    assert published(tmp_path) == []
    assert two.close()
    assert one.close()
    assert sorted(published(tmp_path)) == ["i0", "i1"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        ServedLog("a", ServedLogConfig(folder=str(tmp_path / "file" / "log")))


_WRITER = """
import sys, pyarrow as pa
from recsys.config import ServedLogConfig
from recsys.serving.served_log import ServedLog
schema = pa.schema([("id", pa.string()), ("p", pa.float64())])
log = ServedLog("a", ServedLogConfig(folder=sys.argv[1], rotate_bytes=20_000, sync_seconds=0.001))
start = int(sys.argv[2])
for i in range(start, start + 100_000):
    log.append(pa.RecordBatch.from_pydict({"id": [f"i{i}"], "p": [1 / (3 + i)]}, schema))
    if i % 50 == 0:
        assert log.flush()
        print(i, flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments_what_was_synced_is_there_once(tmp_path):
    import random

    synced: list[tuple[int, int]] = []
    for run in range(12):
        start = run * 1_000_000
        child = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(start)], stdout=subprocess.PIPE,
                                 text=True)
        assert child.stdout is not None
        last = int(child.stdout.readline())
        time.sleep(random.Random(run).uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        last = max([last, *(int(line) for line in child.stdout.read().split())])
        child.wait()
        synced.append((start, last))
    recovering = ServedLog("a", ServedLogConfig(folder=str(tmp_path)))
    assert recovering.close()
    ids = {int(i[1:]) for i in published(tmp_path)}  # and each once
    for start, last in synced:
        mine = {i for i in ids if start <= i < start + 1_000_000}
        assert set(range(start, last + 1)) <= mine
        assert mine == set(range(start, max(mine) + 1))  # no hole before what was lost
    assert not list((tmp_path / "_state").iterdir())
    assert not list(tmp_path.glob(".*.partial"))
