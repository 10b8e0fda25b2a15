"""A log that serving writes and never waits for: bounded queue -> write-ahead segment -> Parquet files.

    log = ServedLog("impressions", ServedLogConfig(folder="work/served"))
    log.append(batch)            # returns at once; LogFull where the disk has been behind for too long
    log.close()                  # everything is synced and published

A batch is in a segment (safe from a kill of the process) within a moment, and synced (safe from a power cut) within
``sync_seconds``. A segment that is full or old becomes one Parquet file, named when the segment was opened, and is then
deleted: locally by a hidden partial and a rename, in an object store by one put of that name. A crash between the two
makes the same file again. At the start, segments that dead processes left are published first. While an object store
does not answer, segments stay on the local disk and are tried again.

On a full disk nothing is lost and nothing crashes: batches wait in the queue, and when that is full :class:`LogFull`
tells the service to refuse (503): what is not logged is not shown.
"""

from __future__ import annotations

import datetime as dt
import os
import queue
import secrets
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import ServedLogConfig
from recsys.errors import InputError, RecsysError
from recsys.log import log
from recsys.row_groups import ROWS
from recsys.serving.counts import Counts
from recsys.serving.segments import SUFFIX, SegmentWriter, read_segment, take_orphans
from recsys.storage import filesystem, first_line, is_url, join, need_bucket

_RETRY_SECONDS = 0.5
_MOST_OPEN = 16


class LogFull(RecsysError):
    """The log is behind by more than its queue holds: try again in a moment."""


class ServedLog:
    """Thread-safe; one per process and name. Make it after a fork, not before.

    Args:
        name: of the files: ``NAME-TIME-RANDOM.parquet``.
        config: folder, rotation, queue.

    Attributes:
        name: as given.
        counts: rows appended, written, published, recovered; batches refused; errors; torn bytes found at recovery.

    Raises:
        InputError: the folders cannot be made or written, an address that is none, or a bucket that does not exist.
    """

    def __init__(self, name: str, config: ServedLogConfig) -> None:
        self.name, self._config = name, config
        self._state = config.state or Path(config.folder) / "_state"
        self.counts = Counts()
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            if is_url(config.folder):
                need_bucket(config.folder)
            else:
                Path(config.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("the log's folder cannot be used", file=error.filename, got=error.strerror,
                             expected="a folder that may be written") from None
        self._queue: queue.Queue[pa.RecordBatch | threading.Event] = queue.Queue(config.queue)
        self._closed: queue.Queue[SegmentWriter | None] = queue.Queue()
        self._open: list[SegmentWriter] = []
        self._left: list[SegmentWriter] = []  # the publisher's, not published yet
        self._last_sync = time.monotonic()
        self._ending, self._door = threading.Event(), threading.Lock()
        for orphan in take_orphans(self._state, name):
            self._closed.put(orphan)
        self._publisher = threading.Thread(target=self._publish_all, name=f"{name}-publisher", daemon=True)
        self._writer = threading.Thread(target=self._write_all, name=f"{name}-writer", daemon=True)
        self._publisher.start()
        self._writer.start()

    def append(self, batch: pa.RecordBatch) -> None:
        """Take a batch; never waits.

        Raises:
            LogFull: the queue is full, or the log is closed; the batch was not taken.
        """
        with self._door:  # nothing slips in behind the last look at the queue
            if self._ending.is_set():
                raise LogFull("the served log is closed")
            try:
                self._queue.put_nowait(batch)
            except queue.Full:
                self.counts.add(refused=1)
                raise LogFull("the served log is behind: the disk is full or too slow") from None
            self.counts.add(appended=batch.num_rows)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything appended so far is on the disk; False where it is not within ``timeout`` seconds."""
        done = threading.Event()
        try:
            self._queue.put(done, timeout=timeout)
        except queue.Full:
            return False
        return done.wait(timeout)

    def close(self, timeout: float = 30.0) -> bool:
        """Sync, publish and end; what a full disk keeps from being published lies in segments for the next start.

        Returns:
            Whether everything was published.
        """
        with self._door:
            self._ending.set()
        deadline = time.monotonic() + timeout
        self._writer.join(timeout)
        self._closed.put(None)
        self._publisher.join(max(0.0, deadline - time.monotonic()))
        ended = not self._writer.is_alive() and not self._publisher.is_alive()
        if ended and self._queue.empty() and not self._left:
            return True
        log.warning("served log %s: %d batches not written, segments left in %s for the next start", self.name,
                    self._queue.qsize(), self._state)
        return False

    # The writer's thread.

    def _write_all(self) -> None:
        waiting: list[threading.Event] = []
        held: pa.RecordBatch | None = None  # taken from the queue, and not written yet
        gave_up = time.monotonic() + float("inf")
        while True:
            try:
                if held is None:
                    item = self._next()
                    if isinstance(item, threading.Event):
                        waiting.append(item)
                    else:
                        held = item
                if held is not None:
                    self._write(held)
                    held = None
                idle = self._queue.empty()
                self._sync(force=bool(waiting) or (idle and self._ending.is_set()))
                if waiting and idle:
                    for event in waiting:
                        event.set()
                    waiting.clear()
                self._rotate(force=idle and self._ending.is_set())
                if idle and held is None and self._ending.is_set() and self._queue.empty():
                    return
            except OSError as error:
                self._complain(error)
                if self._ending.is_set():
                    gave_up = min(gave_up, time.monotonic() + 5.0)
                    if time.monotonic() > gave_up:
                        return
                time.sleep(_RETRY_SECONDS)

    def _next(self) -> pa.RecordBatch | threading.Event | None:
        try:
            wait = max(0.01, min(self._config.sync_seconds, 0.5))
            return self._queue.get(timeout=0.01 if self._ending.is_set() else wait)
        except queue.Empty:
            return None

    def _write(self, batch: pa.RecordBatch) -> None:
        at = next((s for s in self._open if s.schema.equals(batch.schema)), None)
        if at is None:  # arms whose models have other columns have segments of their own
            if len(self._open) >= _MOST_OPEN:
                self._end(self._open[0])
            now = dt.datetime.now(dt.UTC)
            name = f"{self.name}-{now:%Y%m%dT%H%M%S}-{now.microsecond:06d}{secrets.token_hex(4)}"
            at = SegmentWriter(self._state / f"{name}{SUFFIX}", batch.schema)
            self._open.append(at)
        at.append(batch)
        self.counts.add(written=batch.num_rows)

    def _sync(self, force: bool) -> None:
        if force or time.monotonic() - self._last_sync >= self._config.sync_seconds:
            for segment in self._open:
                if segment.dirty:
                    segment.sync()
            self._last_sync = time.monotonic()

    def _rotate(self, force: bool = False) -> None:
        now = time.monotonic()
        for segment in list(self._open):
            old = now - segment.opened >= self._config.rotate_seconds
            if force or old or segment.size >= self._config.rotate_bytes:
                self._end(segment)

    def _end(self, segment: SegmentWriter) -> None:
        segment.sync()
        self._open.remove(segment)
        self._closed.put(segment)

    # The publisher's thread.

    def _publish_all(self) -> None:
        while True:
            try:
                item = self._closed.get(timeout=_RETRY_SECONDS if self._left else None)
                ending = item is None
                if item is not None:
                    self._left.append(item)
            except queue.Empty:
                ending = False
            self._left = [s for s in self._left if not self._publish(s)]
            if ending:
                for segment in self._left:
                    segment.close()
                return

    def _publish(self, segment: SegmentWriter) -> bool:
        try:
            found = read_segment(segment.path)
        except InputError as error:  # not ours: left for a person to look at
            log.error("served log: %s", error)
            self.counts.add(errors=1)
            segment.close()
            return True
        except OSError as error:
            self._complain(error)
            return False
        try:
            if found.table.num_rows:
                write_parquet(found.table, self._config.folder, segment.path.name.removesuffix(SUFFIX) + ".parquet")
            segment.discard()
        except (OSError, InputError) as error:
            self._complain(error)
            return False
        self.counts.add(torn_bytes=found.torn)
        self.counts.add(published=found.table.num_rows)
        if not len(segment.schema):  # left by another process
            self.counts.add(recovered=found.table.num_rows)
        return True

    def _complain(self, error: Exception) -> None:
        if self.counts["errors"] % 100 == 0:
            log.warning("served log %s: %s; it is tried again", self.name, first_line(error))
        self.counts.add(errors=1)


def write_parquet(table: pa.Table, folder: str | Path, name: str) -> None:
    """Publish a table as one file: whole or not at all, and the same name again is the same file again.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    if is_url(folder):
        # The whole of it before the first byte goes out: a stream that is left by an error is closed, too, and then the
        # object is there.
        made = pa.BufferOutputStream()
        pq.write_table(table, made, compression="zstd", row_group_size=ROWS)
        system, path = filesystem(str(join(folder, name)))
        with system.open_output_stream(path) as sink:
            sink.write(made.getvalue())
        return
    final = Path(folder) / name
    partial = final.with_name(f".{name}.partial")
    try:
        pq.write_table(table, partial, compression="zstd", row_group_size=ROWS)
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
