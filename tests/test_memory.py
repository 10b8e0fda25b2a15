"""Freed memory stays in the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Blocks as a request's: a few at a time, all freed again.
RUN = """
import resource, sys
from recsys.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory(32 << 20, 256 << 20):
    sys.exit("not here")
def use():
    for _ in range(50):
        blocks = [b"x" * (1 << 20) for _ in range(8)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", RUN, how], capture_output=True, text=True, check=False)
    if "not here" in done.stderr:
        pytest.skip("another C library than glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_pages_are_faulted_in_once() -> None:
    assert _faults("keep") * 20 < _faults("leave")
