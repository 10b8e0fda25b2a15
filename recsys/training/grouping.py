"""Sorting and grouping of whole numbers: what the metrics' histograms and per-user rankings stand on."""

from __future__ import annotations

import numpy as np


def ascending(keys: np.ndarray) -> np.ndarray:
    """int64 [n]: the stable order that sorts non-negative int64 or uint64 keys.

    A radix sort of 16 bits at a time: numpy sorts 16-bit numbers by counting, several times as fast as it compares
    64-bit ones.
    """
    keys = keys.view(np.uint64)
    varying = int(np.bitwise_or.reduce(keys ^ keys[0])) if len(keys) else 0
    order = np.arange(len(keys))
    for shift in range(0, 64, 16):
        if varying >> shift & 0xFFFF:
            order = order[np.argsort((keys[order] >> np.uint64(shift)).astype(np.uint16), kind="stable")]
    return order


def starts_of_runs(sorted_keys: np.ndarray) -> np.ndarray:
    """int64: where each run of equal keys begins; none where there are no keys."""
    if not len(sorted_keys):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))
