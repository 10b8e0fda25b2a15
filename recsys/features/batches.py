"""Encoded rows to feature-major batches, built off the main thread in an order that (seed, epoch) decides.

A batch is a pure function of (seed, epoch, index): the cursor (epoch, index) is all that a resumed run needs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.features.encoded import Encoded

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """B rows as the model reads them.

    Attributes:
        dense: float32 [B, width].
        sparse: int32 ids, keys = categorical features then list features; the former have length 1 throughout.
        content_row: int64 [B], row of the ad in the content matrix; 0 is the zero vector.
        history_content: content rows int64 [sum of lengths] and lengths int64 [B] of the user's history.
        trials, successes: float32 [B, heads].
        weight: float32 [B].
    """

    dense: torch.Tensor
    sparse: KeyedJaggedTensor
    content_row: torch.Tensor
    history_content: tuple[torch.Tensor, torch.Tensor]
    trials: torch.Tensor
    successes: torch.Tensor
    weight: torch.Tensor

    def __len__(self) -> int:
        return int(self.dense.shape[0])

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device (itself where it is there already)."""
        if self.dense.device == device:
            return self
        values, lengths = (t.to(device, non_blocking=True) for t in self.history_content)
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)
                 if f.name != "history_content"}
        return replace(self, history_content=(values, lengths), **moved)


def gather(data: Encoded, rows: np.ndarray, keys: Sequence[str]) -> Batch:
    """Build one batch of the given rows.

    The ids of all categorical features stand in one flat feature-major block [F, B]: the KeyedJaggedTensor is a view
    of it, where joining per-feature tensors costs more than the embedding lookup itself.

    Args:
        data: encoded rows.
        rows: int64 [B].
        keys: feature names, categorical then list features.
    """
    b, one_hot = len(rows), data.sparse.shape[1]
    lists = [s.take(rows) for s in data.sequences]
    flat = np.empty(one_hot * b + sum(len(v) for v, _ in lists), np.int32)
    lengths = np.ones((one_hot + len(lists), b), np.int32)
    flat[: one_hot * b].reshape(one_hot, b)[:] = data.sparse[rows].T
    at = one_hot * b
    for i, (values, counts) in enumerate(lists):
        flat[at : at + len(values)] = values
        lengths[one_hot + i] = counts
        at += len(values)
    history, history_lengths = data.history.take(rows)
    trials = np.ones((b, 1), np.float32) if data.trials is None else data.trials[rows]
    return Batch(
        dense=torch.from_numpy(data.dense[rows]),
        sparse=KeyedJaggedTensor(keys=list(keys), values=torch.from_numpy(flat),
                                 lengths=torch.from_numpy(lengths.reshape(-1)), stride=b),
        content_row=torch.from_numpy(data.content_row[rows].astype(np.int64)),
        history_content=(torch.from_numpy(history.astype(np.int64)),
                         torch.from_numpy(history_lengths.astype(np.int64))),
        trials=torch.from_numpy(trials),
        successes=torch.from_numpy(np.zeros_like(trials) if data.successes is None else data.successes[rows]),
        weight=torch.from_numpy(np.ones(b, np.float32) if data.weight is None else data.weight[rows]),
    )


@dataclass(frozen=True)
class BatchLoader:
    """Batches of some rows of a data set.

    Rows are shuffled within windows of ``window`` rows, and the windows among each other; a window is a whole number
    of batches, so that only the last window holds a short batch.

    Attributes:
        data: encoded rows.
        rows: int64, the rows to go through.
        keys: feature names of the KeyedJaggedTensor.
        batch_size: rows a batch.
        window: rows shuffled together; 0: no shuffling.
        seed: with the epoch's number it decides the order.
    """

    data: Encoded
    rows: np.ndarray
    keys: Sequence[str]
    batch_size: int
    window: int = 0
    seed: int = 0

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def order(self, epoch: int) -> Iterator[np.ndarray]:
        """Row numbers of each batch of an epoch, in order."""
        if not self.window:
            for start in range(0, len(self.rows), self.batch_size):
                yield self.rows[start : start + self.batch_size]
            return
        window = max(self.window // self.batch_size, 1) * self.batch_size
        count = -(-len(self.rows) // window)
        for w in np.random.default_rng([self.seed, epoch]).permutation(count):
            part = self.rows[w * window : (w + 1) * window]
            part = part[np.random.default_rng([self.seed, epoch, int(w)]).permutation(len(part))]
            for start in range(0, len(part), self.batch_size):
                yield part[start : start + self.batch_size]

    def epoch(self, epoch: int = 0, start: int = 0, depth: int = 4) -> Prefetch[Batch]:
        """Batches of an epoch from batch ``start`` on, built ahead in a thread of their own."""
        def build() -> Iterator[Batch]:
            for index, rows in enumerate(self.order(epoch)):
                if index >= start:
                    yield gather(self.data, rows, self.keys)

        return Prefetch(build, depth)


class Prefetch(Iterator[T]):
    """Runs an iterator in a thread, ``depth`` items ahead, and measures how long the reader had to wait.

    An error in the thread is raised where the item is read. Use as a context manager, so that the thread ends
    when the reader stops early.
    """

    def __init__(self, build: Callable[[], Iterator[T]], depth: int = 4) -> None:
        self.stalled = 0.0
        """Seconds that the reader waited."""
        self._queue: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(build,), daemon=True, name="recsys-batches")
        self._thread.start()

    def _run(self, build: Callable[[], Iterator[T]]) -> None:
        try:
            for item in build():
                if not self._put(("item", item)):
                    return
            self._put(("end", None))
        except BaseException as error:
            self._put(("error", error))

    def _put(self, item: tuple[str, T | BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        started = time.perf_counter()
        kind, item = self._queue.get()
        self.stalled += time.perf_counter() - started
        if kind == "item":
            return item  # type: ignore[return-value]
        self.close()
        if kind == "error":
            raise item  # type: ignore[misc]
        raise StopIteration

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
