"""Row groups to shuffled batches: streamed, dealt to ranks, and the same for every number of ranks.

The order is a pure function of (seed, epoch, lanes), so the cursor (epoch, batch) is all that a resumed run needs.
Row groups are permuted; their rows in that order are cut into ``lanes`` equal parts; a lane is shuffled within windows
of consecutive row groups and cut into as many batches as every other lane. Batch i of a run is the i-th batch of all
lanes, whichever rank serves them (docs/decisions/0028-streaming-data.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from recsys.errors import InputError
from recsys.features.batches import Batch, Prefetch, to_batch
from recsys.features.encoded import Encoded


class Source(Protocol):
    """Where rows come from."""

    @property
    def counts(self) -> np.ndarray:
        """int64 [G], rows of each row group that count."""

    def read(self, group: int) -> Encoded:
        """Those rows of a row group, encoded."""


@dataclass
class _Window:
    """Rows of a lane that are shuffled together.

    Attributes:
        lane, index: which window of which lane.
        start, stop: positions within the lane.
        pieces: (row group, first row, row behind the last) among the row group's rows that count.
    """

    lane: int
    index: int
    start: int
    stop: int = 0
    pieces: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class StreamLoader:
    """Batches of a source.

    Memory holds the windows that are being read from and as many that come next: twice ``window`` rows, and twice a
    row group for each lane of this rank, however many rows the source has.

    Attributes:
        source: where rows come from.
        keys: feature names of the KeyedJaggedTensor.
        batch_size: rows of a batch over all ranks; batches of a lane differ by at most one row.
        window: rows shuffled together over all lanes; 0: the order of the file. Windows are whole row groups (or the
            lane's part of them). Rows that fit into one are one; else the first two of a lane are smaller, so that an
            epoch starts soon.
        seed: with the epoch's number it decides the order.
        lanes: parts that the rows are dealt to; a multiple of ``world``.
        rank, world: this process and their number; it serves the lanes rank, rank + world, ...

    Raises:
        InputError: the ranks do not divide the lanes, or there are fewer rows than lanes.
    """

    source: Source
    keys: Sequence[str]
    batch_size: int
    window: int = 0
    seed: int = 0
    lanes: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.lanes % self.world:
            fit = [n for n in range(1, self.lanes + 1) if self.lanes % n == 0]
            raise InputError("the number of ranks does not divide the lanes", column="training.lanes",
                             got=f"{self.world} ranks, {self.lanes} lanes", expected=f"ranks: one of {fit}")
        if self.rows < self.lanes:
            raise InputError("fewer rows than lanes", column="training.lanes", got=f"{self.rows} rows",
                             expected=f"at least {self.lanes}")

    @property
    def rows(self) -> int:
        """Rows an epoch, over all ranks."""
        return int(self.source.counts.sum())

    @property
    def batches(self) -> int:
        """Batches an epoch, the same on every rank; no lane's batch is ever empty."""
        return min(-(-self.rows // self.batch_size), self.rows // self.lanes)

    @property
    def largest(self) -> int:
        """Rows of the largest batch that any rank can get; the same on every rank."""
        lane = math.ceil(self.rows / self.lanes)
        return self.lanes // self.world * math.ceil(lane / self.batches)

    @property
    def _own(self) -> range:
        return range(self.rank, self.lanes, self.world)

    def _cuts(self, lane: int) -> np.ndarray:
        """Positions within a lane at which its batches begin, and its end: int64 [batches + 1]."""
        rows = self.rows * (lane + 1) // self.lanes - self.rows * lane // self.lanes
        return np.arange(self.batches + 1) * rows // self.batches

    def _windows(self, epoch: int, lane: int) -> list[_Window]:
        counts = self.source.counts
        order = np.arange(len(counts))
        if self.window:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(counts))
        begin, end = self.rows * lane // self.lanes, self.rows * (lane + 1) // self.lanes
        stops = np.cumsum(counts[order])
        found: list[_Window] = []
        wanted, whole = 0, self.window // self.lanes
        for at in range(int(np.searchsorted(stops, begin, "right")), len(order)):
            group, stop = int(order[at]), int(stops[at])
            start = stop - int(counts[group])
            if start >= end:
                break
            first, last = max(start, begin) - start, min(stop, end) - start
            if first == last:
                continue
            if not found or found[-1].stop - found[-1].start >= wanted:
                place = found[-1].stop if found else 0
                wanted = whole >> (max(2 - len(found), 0) if end - begin > whole else 0)
                found.append(_Window(lane, len(found), place, place))
            found[-1].pieces.append((group, first, last))
            found[-1].stop += last - first
        return found

    def _schedule(self, epoch: int, start: int) -> list[_Window]:
        """Windows of this rank from batch ``start`` on, in the order in which batches need them."""
        needed: list[tuple[int, int, int, _Window]] = []
        for lane in self._own:
            cuts = self._cuts(lane)
            for window in self._windows(epoch, lane):
                if window.stop > cuts[start]:
                    batch = int(np.searchsorted(cuts, max(window.start, cuts[start]), "right")) - 1
                    needed.append((batch, lane, window.index, window))
        return [window for *_, window in sorted(needed, key=lambda n: n[:3])]

    def _load(self, epoch: int, windows: list[_Window]) -> Iterator[tuple[_Window, Encoded, np.ndarray]]:
        for window in windows:
            data = Encoded.concatenate([self._piece(*piece) for piece in window.pieces])
            rows = np.arange(len(data))
            if self.window:
                rows = np.random.default_rng([self.seed, epoch, window.lane, window.index]).permutation(len(data))
            yield window, data, rows
            del data

    def _piece(self, group: int, first: int, last: int) -> Encoded:
        data, count = self.source.read(group), int(self.source.counts[group])
        if len(data) != count:
            raise InputError("the file has changed since it was counted", file=getattr(self.source, "file", None),
                             got=f"{len(data)} rows in row group {group}", expected=f"{count}")
        return data if (first, last) == (0, count) else data.slice(first, last)

    def _build(self, epoch: int, start: int) -> Iterator[Batch]:
        cuts = {lane: self._cuts(lane) for lane in self._own}
        schedule = self._schedule(epoch, start)
        held: dict[int, tuple[_Window, Encoded, np.ndarray]] = {}
        with Prefetch(lambda: self._load(epoch, schedule), len(self._own), "windows") as windows:
            for batch in range(start, self.batches):
                parts = []
                for lane in self._own:
                    at, stop = int(cuts[lane][batch]), int(cuts[lane][batch + 1])
                    while at < stop:
                        if lane not in held:
                            held[lane] = next(windows)
                        window, data, rows = held[lane]
                        until = min(stop, window.stop)
                        parts.append(data.take(rows[at - window.start : until - window.start]))
                        at = until
                        if at == window.stop:
                            del held[lane]
                        del data
                yield to_batch(Encoded.concatenate(parts), self.keys)

    def epoch(self, epoch: int = 0, start: int = 0, depth: int = 4) -> Prefetch[Batch]:
        """This rank's batches of an epoch from batch ``start`` on.

        One thread reads and encodes the next windows, another gathers batches, ``depth`` of them ahead; what lies
        before ``start`` is not read, but for the window that it stands in.
        """
        return Prefetch(lambda: self._build(epoch, start), depth)
