"""What the Triton modules share; imported by them alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from recsys.kernels.dispatch import interpreted

# Triton 3.7's interpreter multiplies bfloat16 tiles as the integers that hold them: there they are widened first.
WIDEN = tl.constexpr(interpreted())


@triton.jit
def matmul(a, b):
    """Tile product with float32 sums; float32 tiles are multiplied exactly and not as TF32."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


T = TypeVar("T")


def on_its_device(launch: Callable[..., T]) -> Callable[..., T]:
    """Launch where the first tensor is, whichever GPU is the process's current one."""

    @wraps(launch)
    def run(first: torch.Tensor, *rest: Any) -> T:
        with torch.cuda.device_of(first):
            return launch(first, *rest)

    return run


def autotuned(configs: list[triton.Config], key: list[str]) -> Callable[[Any], Any]:
    """``triton.autotune``; under the interpreter, which times nothing, the first of the configurations."""
    return triton.autotune(configs[:1] if interpreted() else configs, key=key)


def power_of_2(n: int, least: int = 1) -> int:
    """The next power of two from ``least`` on: tiles have no other sides."""
    return max(least, 1 << max(n - 1, 0).bit_length())
