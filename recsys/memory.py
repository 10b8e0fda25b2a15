"""Keeping freed memory in the process, where the C library would hand it back to the system after every use."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGE = 1 << 30


@cache
def keep_freed_memory(block: int = _LARGE, free: int = _LARGE) -> bool:
    """Tell glibc to serve large blocks from its heap and to leave the heap's end be; True where that could be done.

    A training step allocates and frees some hundred megabytes of activations, a request some hundred kilobytes. By
    default glibc maps large blocks afresh and trims the heap's end, so that each time the pages are faulted in again: a
    fifth of a DLRM's step on a CPU (benchmarks/train_throughput.py), a tenth of a request's (decision 0034). The price
    is that the process keeps its largest footprint until it ends. Elsewhere than on glibc nothing is done.

    Args:
        block: bytes up to which a block comes from the heap.
        free: bytes that may lie unused at a heap's end.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, block)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, free))
    except (OSError, AttributeError):  # another C library
        return False
