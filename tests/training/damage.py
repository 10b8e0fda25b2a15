"""What can happen to a checkpoint, by what is said of it then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def flip(path: Path) -> None:
    """Another byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "rank-0.safetensors does not have the SHA-256": lambda c: flip(c / "rank-0.safetensors"),
    "rank-0.safetensors has": lambda c: os.truncate(c / "rank-0.safetensors", 1000),
    "rank-0.safetensors is missing": lambda c: (c / "rank-0.safetensors").unlink(),
    "manifest.json is missing": lambda c: (c / "manifest.json").unlink(),
}
