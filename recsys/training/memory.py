"""Keeping freed memory in the process, where the C library would hand it back to the system after every step."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGE = 1 << 30


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from its heap and never to trim it; True where that could be done.

    A training step allocates and frees some hundred megabytes of activations. By default glibc maps blocks of 32 MiB
    and more afresh and trims the heap's end, so that every step faults its pages in again: a fifth of a DLRM's step on
    a CPU (benchmarks/train_throughput.py). The price is that the process keeps its largest footprint until it ends.
    Elsewhere than on glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _LARGE))
    except (OSError, AttributeError):  # another C library
        return False
