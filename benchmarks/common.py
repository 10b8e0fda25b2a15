"""What every benchmark records beside its numbers: machine, versions, command."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recsys.stage import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "faiss-cpu", "pyarrow", "numpy", "scipy", "scikit-learn",
            "statsmodels", "tea-tasting", "transformers")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, Python and package versions."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
            "memory_gib": round(memory, 1), "python": platform.python_version(),
            "packages": {n: version(n) for n in PACKAGES}}


def facts() -> dict[str, Any]:
    """Command, date and machine of this run."""
    given = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]  # no machine's folders in a result
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])
    return {"command": command, "date": dt.date.today().isoformat(), "machine": machine()}


def save(name: str, results: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json."""
    path = RESULTS / f"{name}.json"
    write_json(path, {**facts(), **results})
    return path
