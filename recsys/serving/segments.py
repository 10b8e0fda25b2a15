"""Write-ahead segments: record batches in a local file that survives a kill at any byte.

A segment is ``MAGIC, frame(schema), frame(batch), frame(batch), ...`` with ``frame = length u32, crc32 u32, bytes``
(little endian), the bytes being Arrow IPC messages. A reader takes whole frames up to the first that is torn. The
writer holds an flock on its file: a segment that nobody holds was left by a process that died.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recsys.errors import InputError

_MAGIC = b"recsyswal1\n"
_HEAD = struct.Struct("<II")
SUFFIX = ".segment"


def _frame(payload: bytes | pa.Buffer) -> bytes:
    data = bytes(payload)
    return _HEAD.pack(len(data), zlib.crc32(data)) + data


class SegmentWriter:
    """Appends record batches of one schema to a new segment.

    Args:
        path: must not exist; its name says what the published file will be called.
        schema: of every batch.

    Attributes:
        size: bytes written; ``rows``: rows of them.
        opened: when, by the monotonic clock.

    Raises:
        OSError: the file cannot be made (a full disk); nothing is left of it.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.size, self.rows = path, schema, 0, 0
        self.opened, self._synced = time.monotonic(), 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(_MAGIC + _frame(schema.serialize()))
        except OSError:
            self.discard()
            raise

    def append(self, batch: pa.RecordBatch) -> None:
        """Hand a batch to the operating system: from here on it survives a kill of the process.

        Raises:
            OSError: it does not fit (a full disk); the segment stands as before and may be appended to again.
        """
        self._write(_frame(batch.serialize()))
        self.rows += batch.num_rows

    def _write(self, data: bytes) -> None:
        view, at = memoryview(data), 0
        try:
            while at < len(data):
                at += os.pwrite(self._fd, view[at:], self.size + at)
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    @property
    def dirty(self) -> bool:
        """Is anything written that is not synced?"""
        return self._synced < self.size

    def sync(self) -> None:
        """Hand what is written to the disk: from here on it survives a power cut."""
        size = self.size
        os.fsync(self._fd)
        self._synced = size

    def close(self) -> None:
        """Give up the lock: the segment is anybody's to recover."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Delete the segment: it is published, or holds nothing."""
        self.path.unlink(missing_ok=True)
        self.close()


@dataclass(frozen=True)
class Segment:
    """What a segment holds; ``torn`` bytes at its end belong to a batch that was never whole."""

    table: pa.Table
    torn: int


def read_segment(path: Path) -> Segment:
    """Read a segment up to the first torn frame.

    Raises:
        InputError: it is not a segment.
    """
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        if len(data) < len(_MAGIC) and _MAGIC.startswith(data):  # killed while the file was made
            return Segment(pa.table({}), len(data))
        raise InputError("not a segment", file=path, got=data[:12], expected="what the served log writes")
    payloads, at = [], len(_MAGIC)
    while at + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, at)
        payload = memoryview(data)[at + _HEAD.size:at + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != crc:
            break
        payloads.append(payload)
        at += _HEAD.size + length
    if not payloads:
        return Segment(pa.table({}), len(data))
    schema = pa.ipc.read_schema(pa.py_buffer(payloads[0]))
    batches = [pa.ipc.read_record_batch(pa.py_buffer(p), schema) for p in payloads[1:]]
    return Segment(pa.Table.from_batches(batches, schema), len(data) - at)


def take_orphans(folder: Path, name: str) -> list[SegmentWriter]:
    """Lock every segment ``NAME-*`` in a folder that no living process holds; oldest first."""
    taken = []
    for path in sorted(folder.glob(f"{name}-*{SUFFIX}")):
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        if os.fstat(fd).st_nlink == 0:  # another process published and deleted it meanwhile
            os.close(fd)
            continue
        taken.append(_adopt(path, fd))
    return taken


def _adopt(path: Path, fd: int) -> SegmentWriter:
    segment = SegmentWriter.__new__(SegmentWriter)
    segment.path, segment._fd = path, fd
    segment.schema, segment.size, segment.rows = pa.schema([]), os.fstat(fd).st_size, 0
    segment.opened, segment._synced = time.monotonic(), segment.size
    return segment
