"""Encoded rows to feature-major batches, and iterators that work ahead in a thread of their own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch.nn import functional

from recsys.features.bags import Bags
from recsys.features.encoded import Encoded

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """B rows as the model reads them.

    Attributes:
        dense: float32 [B, width].
        sparse: int32 ids, keys = categorical features then list features; the former have length 1 throughout. Of rows
            that are only scored :class:`Bags`.
        content_row: int64 [B], row of the ad in the content matrix; 0 is the zero vector.
        history_content: content rows int64 [sum of lengths] and lengths int64 [B] of the user's history.
        trials, successes: float32 [B, heads].
        weight: float32 [B].
        user: int64 [B], stable hash of the user, or None; surface: int64 [B], place in ``contracts.SURFACES``, -1
            unknown, or None. Evaluation streams have them where the data do.
    """

    dense: torch.Tensor
    sparse: KeyedJaggedTensor | Bags
    content_row: torch.Tensor
    history_content: tuple[torch.Tensor, torch.Tensor]
    trials: torch.Tensor
    successes: torch.Tensor
    weight: torch.Tensor
    user: torch.Tensor | None = None
    surface: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.dense.shape[0])

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device (itself where it is there already)."""
        if self.dense.device == device:
            return self
        values, lengths = (t.to(device, non_blocking=True) for t in self.history_content)
        moved = {f.name: value.to(device, non_blocking=True) for f in fields(self)
                 if f.name != "history_content" and (value := getattr(self, f.name)) is not None}
        return replace(self, history_content=(values, lengths), **moved)


def padded(batch: Batch, rows: int) -> Batch:
    """The batch with rows of nothing at its end: empty bags, zeros, weight 0, no trials. Itself where it has as many.

    Ranks that cut a table by rows must have batches of one size (gloo knows no other).
    """
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    more, features = rows - len(batch), len(batch.sparse.keys())
    if more <= 0:
        return batch
    lengths = functional.pad(batch.sparse.lengths().view(features, -1), (0, more))

    def longer(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])

    values, counts = batch.history_content
    return replace(
        batch, sparse=KeyedJaggedTensor(keys=batch.sparse.keys(), values=batch.sparse.values(),
                                        lengths=lengths.view(-1), stride=rows),
        history_content=(values, longer(counts)),
        **{f.name: longer(value) for f in fields(batch)
           if f.name not in ("sparse", "history_content") and (value := getattr(batch, f.name)) is not None})


def gather(data: Encoded, rows: np.ndarray, keys: Sequence[str]) -> Batch:
    """Build one batch of the given rows, int64 [B], of encoded data; ``keys`` as for :func:`to_batch`."""
    return to_batch(data.take(rows), keys)


def to_batch(data: Encoded, keys: Sequence[str], plain: bool = False) -> Batch:
    """All rows of some encoded data as a batch.

    The ids of all categorical features stand in one flat feature-major block [F, B]: the KeyedJaggedTensor is a view
    of it, where joining per-feature tensors costs more than the embedding lookup itself.

    Args:
        data: B encoded rows.
        keys: feature names, categorical then list features (``FeatureEncoder.keys``).
        plain: ids as :class:`Bags`, which need no TorchRec.
    """
    b, one_hot = len(data), data.sparse.shape[1]
    everything = np.arange(b)
    lists = [(s.values, np.diff(s.offsets).astype(np.int32)[None, :]) if not data.history_length
             else s.latest(everything, data.history_length) for s in data.sequences]
    block = np.ascontiguousarray(data.sparse.T).reshape(-1)
    flat = np.concatenate([block, *(values for values, _ in lists)]) if lists else block
    lengths = np.concatenate([np.ones((one_hot, b), np.int32), *(n for _, n in lists)])
    trials = np.ones((b, 1), np.float32) if data.trials is None else data.trials
    names, values, counts = list(keys), torch.from_numpy(flat), torch.from_numpy(lengths.reshape(-1))
    sparse: KeyedJaggedTensor | Bags
    if plain:
        sparse = Bags(names, values, counts, b)
    else:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        sparse = KeyedJaggedTensor(keys=names, values=values, lengths=counts, stride=b)
    return Batch(
        dense=torch.from_numpy(data.dense),
        sparse=sparse,
        content_row=torch.from_numpy(data.content_row.astype(np.int64)),
        history_content=(torch.from_numpy(data.history.values.astype(np.int64)),
                         torch.from_numpy(np.diff(data.history.offsets).astype(np.int64))),
        trials=torch.from_numpy(trials),
        successes=torch.from_numpy(np.zeros_like(trials) if data.successes is None else data.successes),
        weight=torch.from_numpy(np.ones(b, np.float32) if data.weight is None else data.weight),
        user=None if data.user is None else torch.from_numpy(data.user),
        surface=None if data.surface is None else torch.from_numpy(data.surface.astype(np.int64)),
    )


class Prefetch(Iterator[T]):
    """Runs an iterator in a thread, ``depth`` items ahead, and measures how long the reader had to wait.

    At most ``depth`` items are made or being made that the reader has not taken. An error in the thread is raised
    where the item is read. Use as a context manager, so that the thread ends when the reader stops early.
    """

    def __init__(self, build: Callable[[], Iterator[T]], depth: int = 4, name: str = "batches") -> None:
        self.stalled = 0.0
        """Seconds that the reader waited."""
        self._queue: queue.SimpleQueue[tuple[str, T | BaseException | None]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._ahead = threading.Semaphore(depth)
        self._thread = threading.Thread(target=self._run, args=(build,), daemon=True, name=f"recsys-{name}")
        self._thread.start()

    def _run(self, build: Callable[[], Iterator[T]]) -> None:
        try:
            items = iter(build())
            try:
                while True:
                    self._ahead.acquire()
                    if self._stop.is_set():
                        return
                    item = next(items, self)
                    if item is self:
                        break
                    self._queue.put(("item", item))  # type: ignore[arg-type]
                    del item  # a window that the reader has done with must not be held here
            finally:
                if isinstance(items, Generator):
                    items.close()  # ends the threads that it reads from
            self._queue.put(("end", None))
        except BaseException as error:
            self._queue.put(("error", error))

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        started = time.perf_counter()
        kind, item = self._queue.get()
        self.stalled += time.perf_counter() - started
        if kind == "item":
            self._ahead.release()
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
        self._ahead.release()
        self._thread.join()
