"""Streaming metrics of predicted log odds against (weighted, possibly binomial) labels.

    metrics = StreamingMetrics(heads=2)
    for batch in batches:
        metrics.update(logits, trials, successes, user=batch.user, surface=batch.surface)
    metrics.reduce(world)          # several ranks: each then holds the metrics of all rows
    metrics.result(head=0)         # {"auc": ..., "normalized_entropy": ..., "by_surface": {"feed": {...}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from recsys.contracts import SURFACES
from recsys.errors import RecsysError
from recsys.training.grouping import ascending, starts_of_runs
from recsys.training.user_auc import ROWS, UserAuc

_BITS = 20
_RANGE = 20.0  # log odds beyond +-20 are probabilities beyond 2e-9: they share the outermost bins
_FLUSH = 1 << 19
_SLOTS = 1 + len(SURFACES)  # slot 0: surface unknown
ECE_BINS = 20


class Ranks(Protocol):
    """What is needed of :class:`recsys.training.world.World`."""

    rank: int
    size: int

    def all_reduce_sum(self, value: np.ndarray) -> np.ndarray:
        """Sum over ranks."""


def base_entropy(rates: Sequence[float]) -> float:
    """Nats a trial that predicting the base rates costs, mean over the heads: what a loss is divided by to be an NE."""
    p = np.clip(np.asarray(rates, np.float64), 1e-12, 1 - 1e-12)
    return float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).mean())


class StreamingMetrics:
    """AUC, normalized entropy, log loss, calibration and GAUC, by head and surface, over any number of batches.

    * AUC from a histogram of 2^20 bins over log odds -20 .. 20 (a bin is 4e-5 wide); ties within a bin count half, so
      that the error is at most half the share of (success, failure) pairs that meet in a bin (:func:`auc_and_bound`).
      Bins are kept as a sorted list of those that occur, for all heads and surfaces in one: three surfaces cost no
      more than one.
    * Normalized entropy (He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook"): log loss over
      the entropy of the base rate; 1 is what a constant base-rate prediction gets. Log loss is per trial, in nats.
    * ECE, the expected calibration error, over 20 bins of equal mass: sum of |mean prediction - rate| weighted by
      trials. Equal mass (Nixon et al. 2019, "Measuring Calibration in Deep Learning"), because predictions of clicks
      crowd near zero, where bins of equal width would hold them all in one.
    * GAUC (:mod:`recsys.training.user_auc`), where users are given.

    Args:
        heads: number of predictions a row.
        user_rows: rows kept at most for GAUC.
    """

    def __init__(self, heads: int = 1, user_rows: int = ROWS) -> None:
        self._heads, self._user_rows = heads, user_rows
        self._clear()

    def _clear(self) -> None:
        # int64 keys ((head, slot, bin) in one number), ascending; successes, failures, sum of predictions of each
        self._keys, self._values = np.zeros(0, np.int64), np.zeros((3, 0))
        self._sums = np.zeros((self._heads, _SLOTS, 3))  # loss, predictions, rows
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._pending_rows = 0
        self._surfaces = self._users = False
        self._by_user = UserAuc(self._heads, self._user_rows)

    def update(self, logits: np.ndarray, trials: np.ndarray, successes: np.ndarray,
               user: np.ndarray | None = None, surface: np.ndarray | None = None) -> None:
        """Add rows.

        Args:
            logits, trials, successes: [n] or [n, heads]: log odds, and trials and successes already times the rows'
                weights.
            user: int64 [n], a hash of each row's user; None: no GAUC.
            surface: int [n], place in :data:`recsys.contracts.SURFACES`, -1 unknown; None: nothing by surface.

        Raises:
            RecsysError: a prediction is not finite.
        """
        z, t, s = (np.asarray(a, np.float64).reshape(-1, self._heads) for a in (logits, trials, successes))
        if not np.isfinite(z).all():
            raise RecsysError("a prediction is not finite: the model diverged, or its weights are damaged")
        tail = np.exp(-np.abs(z))
        loss = t * (np.maximum(z, 0.0) + np.log1p(tail)) - s * z
        predicted = t * np.where(z >= 0, 1.0, tail) / (1.0 + tail)
        slot = np.zeros(len(z), np.int64) if surface is None else np.asarray(surface, np.int64) + 1
        for head in range(self._heads):
            for at, values in enumerate((loss[:, head], predicted[:, head], None)):
                self._sums[head, :, at] += np.bincount(slot, values, _SLOTS)
        bins = np.clip((z + _RANGE) * (2**_BITS / (2 * _RANGE)), 0, 2**_BITS - 1).astype(np.int64)
        keys = (np.arange(self._heads) * _SLOTS + slot[:, None] << _BITS) | bins
        self._pending.append((keys.reshape(-1), np.stack([s, t - s, predicted]).reshape(3, -1)))
        self._pending_rows += keys.size
        if self._pending_rows >= _FLUSH:
            self._flush()
        self._surfaces |= surface is not None
        if user is not None:
            self._users = True
            self._by_user.update(user, z, s, t - s)

    def _flush(self) -> None:
        if self._pending:
            keys, values = zip((self._keys, self._values), *self._pending, strict=True)
            self._keys, self._values = _sum_by_key(np.concatenate(keys), np.concatenate(values, axis=1))
            self._pending, self._pending_rows = [], 0

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays: what :meth:`merge` takes."""
        self._flush()
        return {"keys": self._keys, "values": self._values, "sums": self._sums,
                "flags": np.array([self._surfaces, self._users], np.int64),
                **{f"user.{k}": v for k, v in self._by_user.state().items()}}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add the rows of another's state."""
        self._pending.append((state["keys"], state["values"]))
        self._flush()
        self._sums = self._sums + state["sums"]
        self._surfaces, self._users = self._surfaces | bool(state["flags"][0]), self._users | bool(state["flags"][1])
        self._by_user.merge({k.removeprefix("user."): v for k, v in state.items() if k.startswith("user.")})

    def reduce(self, world: Ranks) -> None:
        """Take the rows of all ranks together, in place and on every rank; all ranks must call it."""
        if world.size == 1:
            return
        mine = self.state()
        flags = world.all_reduce_sum(mine["flags"])
        if flags[1]:  # no more rows over the wire than one process would have kept
            left = world.all_reduce_sum(self._by_user.survivors())
            most = int(world.all_reduce_sum(_one_hot(world, self._by_user.halvings)).max())
            fits = np.flatnonzero(left <= self._user_rows)
            self._by_user.halve(max(most, int(fits[0]) if len(fits) else 63))
            mine = self.state()
        whole = {"sums": world.all_reduce_sum(mine["sums"]), "flags": flags,
                 "user.halvings": mine["user.halvings"], "user.user": mine["user.user"],
                 "user.values": mine["user.values"]}
        for name, axis in (("keys", 0), ("values", 1), *((("user.user", 0), ("user.values", 1)) if flags[1] else ())):
            whole[name] = _concatenate_ranks(world, mine[name], axis)
        self._clear()
        self.merge(whole)

    def result(self, head: int = 0) -> dict[str, Any]:
        """Metrics of a head.

        Returns:
            auc, normalized_entropy, log_loss, calibration_ratio (sum of predictions / successes), ece, base_rate,
            trials, n; with users gauc, gauc_users, gauc_sample; with surfaces by_surface: the first list for each.
            AUC, normalized entropy, calibration and GAUC are None where the labels are all alike (they are not
            defined).
        """
        self._flush()
        first, last = np.searchsorted(self._keys, [head * _SLOTS << _BITS, (head + 1) * _SLOTS << _BITS])
        keys, values = self._keys[first:last], self._values[:, first:last]
        slots = keys >> _BITS
        _, pooled = _sum_by_key(keys & (2**_BITS - 1), values) if self._surfaces else (keys, values)
        found = _summary(pooled, self._sums[head].sum(0))
        if self._users:
            found |= self._by_user.result(head)
        if self._surfaces:
            found["by_surface"] = {}
            for at in range(_SLOTS):
                if self._sums[head, at, 2]:
                    name = SURFACES[at - 1] if at else "unknown"
                    here = slots == head * _SLOTS + at
                    found["by_surface"][name] = _summary(values[:, here], self._sums[head, at])
        return found


def _summary(values: np.ndarray, sums: np.ndarray) -> dict[str, Any]:
    hits, misses = float(values[0].sum()), float(values[1].sum())
    trials, rows = hits + misses, int(sums[2])
    if trials <= 0:
        return {"auc": None, "normalized_entropy": None, "log_loss": None, "calibration_ratio": None, "ece": None,
                "base_rate": None, "trials": 0.0, "n": rows}
    rate, loss = hits / trials, float(sums[0]) / trials
    defined = hits > 0 and misses > 0
    return {
        "auc": auc_and_bound(values[0], values[1])[0] if defined else None,
        "normalized_entropy": loss / base_entropy([rate]) if defined else None,
        "log_loss": loss,
        "calibration_ratio": float(sums[1]) / hits if hits > 0 else None,
        "ece": calibration_error(values[0], values[0] + values[1], values[2]),
        "base_rate": rate, "trials": trials, "n": rows,
    }


def auc_and_bound(hits: np.ndarray, misses: np.ndarray) -> tuple[float, float]:
    """AUC of a histogram in ascending order of prediction, and how far it can be from that of the rows themselves.

    Args:
        hits, misses: float64 [k], weights of successes and failures by bin; neither is zero throughout.

    Returns:
        AUC with pairs in one bin counted half, and half the share of such pairs: in truth each may count 0 or 1.
    """
    pairs = float(hits.sum()) * float(misses.sum())
    below = np.cumsum(misses) - misses
    return float((hits * (below + 0.5 * misses)).sum()) / pairs, float((hits * misses).sum()) / (2 * pairs)


def calibration_error(hits: np.ndarray, trials: np.ndarray, predicted: np.ndarray, bins: int = ECE_BINS) -> float:
    """Expected calibration error over bins of equal mass.

    Args:
        hits, trials, predicted: float64 [k] sums of successes, trials and predictions of cells in ascending order of
            prediction; a cell goes to one bin whole, that in which the middle of its trials lies.
    """
    total = float(trials.sum())
    middle = (np.cumsum(trials) - 0.5 * trials) / total
    of = np.minimum((middle * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(of, predicted - hits, bins)).sum() / total)


def _sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and the sums of each one's values [3, n]."""
    if not len(keys):
        return keys, values
    order = ascending(keys)
    keys = keys[order]
    starts = starts_of_runs(keys)
    return keys[starts], np.stack([np.add.reduceat(v[order], starts) for v in values])


def _one_hot(world: Ranks, value: int) -> np.ndarray:
    found = np.zeros(world.size, np.int64)
    found[world.rank] = value
    return found


def _concatenate_ranks(world: Ranks, array: np.ndarray, axis: int) -> np.ndarray:
    """The ranks' arrays one after another along an axis, as a sum of arrays that are zero elsewhere."""
    lengths = world.all_reduce_sum(_one_hot(world, array.shape[axis]))
    if not lengths.sum():
        return array
    shape = list(array.shape)
    shape[axis] = int(lengths.sum())
    whole = np.zeros(shape, array.dtype)
    start = int(lengths[: world.rank].sum())
    at: list[Any] = [slice(None)] * array.ndim
    at[axis] = slice(start, start + array.shape[axis])
    whole[tuple(at)] = array
    return world.all_reduce_sum(whole)
