"""Who is shown where with which probability: Plackett-Luce, the softmax drawn without replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.errors import InputError

Floats = NDArray[np.float64]

_SMALLEST = 1e-50  # relative to a row's largest weight; keeps every quotient below a finite double
_CHUNK = 4_000_000  # doubles in one (rows, K, K) block


def _positive_rows(weights: ArrayLike, slots: int) -> Floats:
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 2:
        raise InputError("weights are not a matrix", got=w.shape, expected="(requests, candidates)")
    if not np.isfinite(w).all() or (w < 0).any():
        row = int(np.argmax((~np.isfinite(w) | (w < 0)).any(axis=1)))
        raise InputError("weight not allowed", column="weights", row=row, got=w[row].tolist(), expected="finite, >= 0")
    short = (w > 0).sum(axis=1) < slots
    if short.any():
        row = int(np.argmax(short))
        raise InputError("fewer candidates than slots", column="weights", row=row, got=int((w[row] > 0).sum()),
                         expected=f"at least {slots} positive weights")
    if not len(w):
        return w
    w = w / w.max(axis=1, keepdims=True)
    w = np.where(w > 0, np.maximum(w, _SMALLEST), 0.0)
    normalised: Floats = w / w.sum(axis=1, keepdims=True)
    return normalised


def slot_marginals(weights: ArrayLike, slots: int) -> Floats:
    """Exact probability that a candidate is shown in a slot when slots are filled by Plackett-Luce draws.

    Slot 0 is drawn in proportion to the weights, each next slot in proportion to the weights of those
    not yet shown. The sum over all orders of the candidates above is taken in closed form; every
    remainder is a sum of positive terms (never ``1 - w``), so a weight close to 1 loses no digits.

    Args:
        weights: float[n, K], >= 0; 0 marks padding that is never shown. Need not sum to 1.
        slots: 1, 2 or 3.

    Returns:
        float64[n, slots, K]; each [i, s, :] sums to 1.

    Raises:
        InputError: more than three slots, fewer positive weights than slots, or a weight that is not a finite
            number >= 0.

    References:
        Plackett, R. L. (1975). The analysis of permutations. Applied Statistics 24(2).
    """
    if slots not in (1, 2, 3):
        raise InputError("number of slots not supported", got=slots, expected="1, 2 or 3")
    w = _positive_rows(weights, slots)
    n, k = w.shape
    out = np.empty((n, slots, k))
    out[:, 0] = w
    step = max(1, _CHUNK // (k * k))
    for at in range(0, n if slots > 1 else 0, step):
        _later_slots(w[at:at + step], out[at:at + step])
    return out


def _later_slots(w: Floats, out: Floats) -> None:
    k, slots = w.shape[1], out.shape[1]
    others = 1.0 - np.eye(k)
    rest = w @ others  # weight left once i is shown
    out[:, 1] = w * (np.divide(w, rest, out=np.zeros_like(w), where=rest > 0) @ others)
    if slots == 2:
        return
    # apart[i, j, l] is 1 where i, j and l are three different candidates.
    apart = others[:, :, None] * others[:, None, :] * others[None, :, :]
    rest_pair = (w @ apart.reshape(k * k, k).T).reshape(-1, k, k)  # weight left once i and j are shown
    first = np.divide(w, rest, out=np.zeros_like(w), where=rest > 0)
    pair = first[:, :, None] * w[:, None, :]
    pair = np.divide(pair, rest_pair, out=np.zeros_like(pair), where=rest_pair > 0)
    out[:, 2] = w * (pair.reshape(-1, k * k) @ apart.reshape(k * k, k))


def sample_slots(weights: ArrayLike, slots: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw who is shown: int64[n, slots], candidate positions, by Plackett-Luce without replacement.

    Adding Gumbel noise to the log weights and sorting draws from exactly this distribution
    (Kool et al. 2019, "Stochastic beams and where to find them").

    Args:
        weights: float[n, K], >= 0; 0 is never shown.
        slots: how many are shown.
        rng: the generator that is drawn from, n * K times.
    """
    w = _positive_rows(weights, slots)
    with np.errstate(divide="ignore"):
        noisy = np.log(w) + rng.gumbel(size=w.shape)
    shown: NDArray[np.int64] = np.argsort(-noisy, axis=1, kind="stable")[:, :slots]
    return shown
