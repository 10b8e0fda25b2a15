"""Cross layer of DCN V2 (Wang et al. 2021, arXiv:2008.13535, equations 1 and 2): x' = x0 * (U V x + b) + x.

The narrow product h = V x is left to the library; the wide one is fused with what follows. For x of shape [B, W], rank
R and e bytes an element:

=========  ===================  ======================================================================================
           FLOPs                bytes moved, at the least (weights, W R e, stay in the cache)
=========  ===================  ======================================================================================
forward    2 B W R + 2 B W      e B (3 W + R): read x0, x and h, write x'. Unfused: the product also written and read,
                                e B (2 W) more
backward   2 B W R + 2 B W      e B (4 W + R): read the gradient, x0 and h, write those of x0 and of the product, which
                                is computed again: keeping it would cost e B W of memory a layer, and reading it
=========  ===================  ======================================================================================

Then the library's products for V, U and x. At rank 512 in bfloat16 the fused products need 2 R / (3 e) = 171 operations
a byte, below the ratio of an H100 (about 295): memory bandwidth binds, the more so the smaller the rank.
On a CPU PyTorch's own operations are what ``auto`` runs (benchmarks/kernels_cpu.py).
"""

from __future__ import annotations

from typing import Any

import torch
from recsys.kernels.dispatch import autocast_dtype, uses_triton
from torch.nn import functional


def cross_layer_reference(x0: torch.Tensor, x: torch.Tensor, down: torch.Tensor | None, up: torch.Tensor,
                          bias: torch.Tensor) -> torch.Tensor:
    """The oracle of :func:`cross_layer`."""
    h = x if down is None else functional.linear(x, down)
    return torch.addcmul(x, x0, functional.linear(h, up, bias))


@torch.library.custom_op("recsys::cross", mutates_args=())
def _cross(x0: torch.Tensor, x: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
           kernels: str) -> torch.Tensor:
    if uses_triton(kernels, x):
        from recsys.kernels.on_triton import cross_layer as on_triton

        return on_triton.forward(x0, x, h, weight, bias)
    return torch.addcmul(x, x0, functional.linear(h, weight, bias)).contiguous()


@_cross.register_fake
def _(x0: torch.Tensor, x: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
      kernels: str) -> torch.Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("recsys::cross_backward", mutates_args=())
def _cross_backward(grad: torch.Tensor, x0: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
                    kernels: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if uses_triton(kernels, x0):
        from recsys.kernels.on_triton import cross_layer as on_triton

        return on_triton.backward(grad, x0, h, weight, bias)
    d_up = (grad * x0).contiguous()
    return (grad * functional.linear(h, weight, bias)).contiguous(), d_up, d_up.sum(0)


@_cross_backward.register_fake
def _(grad: torch.Tensor, x0: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
      kernels: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape), bias.new_empty(bias.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x0, _, h, weight, bias, ctx.kernels = inputs
    ctx.save_for_backward(x0, h, weight, bias)


def _gradient(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x0, h, weight, bias = ctx.saved_tensors
    d_x0, d_up, d_bias = _cross_backward(grad, x0, h, weight, bias, ctx.kernels)
    return d_x0, grad, d_up @ weight, d_up.T @ h, d_bias, None


_cross.register_autograd(_gradient, setup_context=_keep)


def cross_layer(x0: torch.Tensor, x: torch.Tensor, down: torch.Tensor | None, up: torch.Tensor, bias: torch.Tensor,
                kernels: str = "auto") -> torch.Tensor:
    """One cross layer.

    Args:
        x0: [B, W], what the first layer got.
        x: [B, W], what the layer before gave.
        down: V [R, W]; None: U is a full matrix.
        up: U [W, R], or [W, W].
        bias: [W].
        kernels: ``auto`` | ``reference`` | ``triton`` (:mod:`recsys.kernels.dispatch`).

    Returns:
        [B, W], dtype of ``x`` (under autocast, autocast's where Triton runs). Differentiable once.

    Raises:
        InputError: Triton is asked for where it cannot run.
    """
    if kernels == "reference" or (kernels == "auto" and x.device.type != "cuda"):
        return cross_layer_reference(x0, x, down, up, bias)
    x0, x, up, bias = (t.to(autocast_dtype(t)) for t in (x0, x, up, bias))
    h = x if down is None else functional.linear(x, down)
    return _cross(x0, x, h, up, bias, kernels)
