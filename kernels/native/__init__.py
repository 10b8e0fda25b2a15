"""The dot interaction in C++, for CPUs: built when the package is installed, where there is a compiler.

Without it (no compiler, another system) :mod:`recsys.kernels.dot_interaction` runs PyTorch's operators, whose sums are
in another order: the last bits differ.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch

_DTYPES = (torch.float32, torch.bfloat16)


@lru_cache(1)
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they were not built or PyTorch has not brought the OpenMP they call."""
    for file in sorted(Path(__file__).parent.glob("_dot_interaction*.so")):
        try:
            found = ctypes.CDLL(str(file))
        except OSError:
            continue
        for function, tensors in ((found.dot_forward, 2), (found.dot_backward, 3)):
            function.argtypes = [ctypes.c_void_p] * tensors + [ctypes.c_int64] * 6 + [ctypes.c_int] * 2
            function.restype = None
        return found
    return None


def takes(x: torch.Tensor) -> bool:
    """Whether a tensor [B, F, D] is one that the functions read: float32 or bfloat16 on the CPU, a row without gaps."""
    return (x.device.type == "cpu" and x.dtype in _DTYPES and x.stride(2) == 1 and x.stride(1) == x.shape[2]
            and library() is not None)


def forward(x: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """[B, (last - first) D + F (F - 1) / 2], as :func:`recsys.kernels.dot_interaction.dot_interaction`."""
    batch, features, dim = x.shape
    out = x.new_empty((batch, (last - first) * dim + features * (features - 1) // 2))
    found = library()
    assert found is not None
    found.dot_forward(x.data_ptr(), out.data_ptr(), *x.shape, first, last - first, x.stride(0),
                      x.dtype == torch.bfloat16, torch.get_num_threads())
    return out


def backward(grad: torch.Tensor, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Gradient of :func:`forward` by x, contiguous [B, F, D]."""
    grad, out = grad.to(x.dtype).contiguous(), x.new_empty(x.shape)
    found = library()
    assert found is not None
    found.dot_backward(grad.data_ptr(), x.data_ptr(), out.data_ptr(), *x.shape, first, last - first, x.stride(0),
                       x.dtype == torch.bfloat16, torch.get_num_threads())
    return out
