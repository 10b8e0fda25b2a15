"""Clocks, ceilings and facts that every section of run_all.py shares."""

from __future__ import annotations

import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec", "transformers", "faiss-gpu", "faiss-cpu")


def find_project() -> None:
    """Make ``recsys.kernels`` importable from a checkout that is not installed (a machine without a network)."""
    if (found := importlib.util.find_spec("recsys")) is None:
        sys.path.insert(0, str(ROOT))
        found = importlib.util.find_spec("recsys")
    assert found is not None
    if importlib.util.find_spec("recsys.kernels") is None:
        spec = importlib.util.spec_from_file_location("recsys.kernels", ROOT / "kernels/__init__.py",
                                                      submodule_search_locations=[str(ROOT / "kernels")])
        assert spec is not None
        sys.modules["recsys.kernels"] = importlib.util.module_from_spec(spec)


def has(package: str) -> bool:
    """Whether a package can be imported here (not only found: its libraries may not fit)."""
    try:
        importlib.import_module(package)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def facts(device: torch.device) -> dict[str, Any]:
    """Machine and versions."""
    found: dict[str, Any] = {"python": platform.python_version(), "packages": {}}
    for name in PACKAGES:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            continue
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"gpu": card.name, "memory_gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda,
                  "multiprocessors": card.multi_processor_count, "capability": f"{card.major}.{card.minor}"}
    else:
        found["processor"] = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text()
                                   .splitlines() if line.startswith("model name")), platform.processor())
    return found


def seconds(run: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """Median seconds of a call, warm; on a GPU with the L2 cache emptied between calls."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=20, rep=100, return_mode="median")) / 1e3
    run()
    taken = []
    for _ in range(min(repeats, 3)):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def ceilings(device: torch.device, tiny: bool) -> dict[str, float]:
    """What the machine gives at best: bytes/s of a large copy (read and written), FLOP/s of a bfloat16 product."""
    numbers, side = (1 << 16, 128) if tiny else (1 << 30, 8192)
    source = torch.zeros(numbers, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.nbytes
    copied = moved / seconds(partial(target.copy_, source), device)
    del source, target
    a = torch.randn(side, side, device=device).to(torch.bfloat16)
    return {"bytes_per_second": copied, "flops_per_second": 2 * side**3 / seconds(lambda: a @ a, device)}


def against(ceiling: dict[str, float], taken: float, moved: float, flops: float) -> dict[str, Any]:
    """A time as a share of the ceiling that binds: the larger of bytes and FLOPs over what the machine gives."""
    memory, arithmetic = moved / ceiling["bytes_per_second"], flops / ceiling["flops_per_second"]
    bound = "memory" if memory >= arithmetic else "arithmetic"
    return {"seconds": taken, "bound": bound, "share_of_ceiling": max(memory, arithmetic) / taken,
            "gigabytes_per_second": moved / taken / 1e9}
