"""Which implementation an op runs: Triton's on a GPU, PyTorch's elsewhere, or what the experiment file asks for.

``auto``       Triton for CUDA tensors of float32, float16 or bfloat16 where the package is installed; else PyTorch's.
``triton``     Triton, also for CPU tensors where its interpreter is on (TRITON_INTERPRET=1: slow, for tests); else an
               error.
``reference``  plain PyTorch operations, differentiated by autograd: the oracle of the tests.

The ops are registered with torch.library under ``recsys::``; their registered form takes the choice as a string, so
that torch.export keeps it. Triton code is in ``on_triton/``, imported at the first launch.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, get_args

import torch

from recsys.errors import InputError

Kernels = Literal["auto", "reference", "triton"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether the package is installed (it comes with PyTorch's CUDA builds for Linux)."""


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def uses_triton(kernels: str, x: torch.Tensor) -> bool:
    """Whether an op on ``x`` runs its Triton version.

    Raises:
        InputError: an unknown choice; ``triton`` where there is neither a GPU nor the interpreter, without the package,
            or for another dtype than float32, float16 and bfloat16.
    """
    if kernels not in get_args(Kernels):
        raise InputError("no such kernels", column="model.kernels", got=kernels, expected="auto, reference or triton")
    if kernels == "reference":
        return False
    able = HAS_TRITON and (x.device.type == "cuda" or (interpreted() and kernels == "triton")) and x.dtype in DTYPES
    if kernels == "triton" and not able:
        raise InputError("Triton kernels cannot run here", column="model.kernels", got=f"{x.device.type}, {x.dtype}",
                         expected="a CUDA device (or TRITON_INTERPRET=1), the package triton, and " +
                                  ", ".join(str(d).removeprefix("torch.") for d in DTYPES))
    return able


def wants_op(*tensors: torch.Tensor) -> bool:
    """Whether a call must go through an op's registered form: something traces, tensors are fake, meta or of another
    subclass, or a gradient is wanted.

    Else its plain function does: an op of Python code imports ``torch._dynamo`` when the dispatcher first calls it,
    which takes as long as importing all else that a scoring process needs besides PyTorch.
    """
    return torch.compiler.is_compiling() or any(type(t) is not torch.Tensor or t.is_meta for t in tensors) or (
        torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """Autocast's dtype for a floating tensor where it is on, else the tensor's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
