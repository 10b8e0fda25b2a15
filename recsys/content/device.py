"""What a device is called and how fast it multiplies matrices: the ceiling that measured utilisation refers to."""

from __future__ import annotations

import platform
import time
from functools import cache
from pathlib import Path


def device_name(device: str) -> str:
    """The processor's own name, such as ``NVIDIA H100 80GB HBM3`` or ``AMD EPYC 7763 64-Core Processor``."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if device == "remote":
        return device
    info = Path("/proc/cpuinfo")
    for line in info.read_text(errors="replace").splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def matmul_ceiling(device: str, dtype: str, seconds: float = 0.15) -> float:
    """Floating-point operations a second of a large square matrix product, best of as many as fit into ``seconds``.

    Measured once a process. What the same threads reach on the friendliest work is the honest ceiling of a shared
    machine; a data sheet's peak is neither reachable nor, on a CPU with other tenants, ours.

    Returns:
        2 n^3 / seconds of the fastest product (n = 1024 on a CPU, 8192 on a GPU).
    """
    import torch

    n = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds or best == float("inf"):
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best
