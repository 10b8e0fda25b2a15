"""Binary cross-entropy of (weighted, possibly binomial) labels, and what AUC and normalized entropy need, in one pass.

    loss = sum over rows of weight * (trials * softplus(z) - successes * z)

For B rows of H heads:

=========  ==========  ==================================================================================
           FLOPs       bytes moved, at the least
=========  ==========  ==================================================================================
forward    about 20 B H  4 B (4 H + 1): read logits, trials, successes and weights, write the slopes
backward   B H         8 B H: the slopes times the gradient
=========  ==========  ==================================================================================

PyTorch's own operations read and write [B, H] some ten times, and the metrics some ten times more. All of it is bound
by memory bandwidth, and small: at 65,536 rows of one head a megabyte, so that on a GPU the number of launches counts.

AUC from the histogram is exact but for pairs that meet in a bin (recsys.training.metrics.auc_and_bound). Normalized
entropy: He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from recsys.kernels.dispatch import uses_triton
from torch.nn import functional

REACH = 20.0
"""Log odds beyond +-REACH share the outermost bins."""


class Counted(NamedTuple):
    """What one pass gives; all on the logits' device."""

    loss: torch.Tensor
    """float32 [], nats, summed over rows and heads; alone differentiable."""
    sums: torch.Tensor
    """float32 [H, 4]: loss, trials, successes and predictions, each times the rows' weights."""
    histogram: torch.Tensor
    """float32 [H, bins, 2]: successes and failures by bin of the log odds; NaN is in the first."""


def binomial_loss_reference(logits: torch.Tensor, trials: torch.Tensor, successes: torch.Tensor, weight: torch.Tensor,
                            bins: int = 0) -> Counted:
    """The oracle of :func:`binomial_loss`."""
    column = weight.unsqueeze(1)
    loss = (column * (trials * functional.softplus(logits) - successes * logits)).sum()
    with torch.no_grad():
        z, t, s = logits.float(), column * trials, column * successes
        each = [t * functional.softplus(z) - s * z, t, s, t * z.sigmoid()]
        sums = torch.stack([x.sum(0) for x in each], dim=1)
        heads = logits.shape[1]
        histogram = z.new_zeros((heads * bins, 2))
        if bins:
            place = ((z + REACH) * (bins / (2 * REACH))).clamp(0, bins - 1).nan_to_num(0.0).long()
            place += torch.arange(heads, device=z.device) * bins
            histogram.index_add_(0, place.flatten(), torch.stack([s, t - s], dim=2).flatten(0, 1))
    return Counted(loss, sums, histogram.view(heads, bins, 2))


@torch.library.custom_op("recsys::binomial_loss", mutates_args=())
def _binomial_loss(logits: torch.Tensor, trials: torch.Tensor, successes: torch.Tensor, weight: torch.Tensor,
                   bins: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from recsys.kernels.on_triton import binomial_loss as on_triton

    slope, sums, histogram = on_triton.forward(logits, trials, successes, weight, bins, REACH)
    return sums[:, 0].sum(), sums, histogram, slope


@_binomial_loss.register_fake
def _(logits: torch.Tensor, trials: torch.Tensor, successes: torch.Tensor, weight: torch.Tensor,
      bins: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    heads = logits.shape[1]
    shapes: list[Any] = [(), (heads, 4), (heads, bins, 2), logits.shape]
    loss, sums, histogram, slope = (logits.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return loss, sums, histogram, slope


@torch.library.custom_op("recsys::binomial_loss_backward", mutates_args=())
def _binomial_loss_backward(grad: torch.Tensor, slope: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # An operator, as autograd would take the slopes for a constant and be wrong about a second derivative.
    return (grad * slope).to(dtype)


@_binomial_loss_backward.register_fake
def _(grad: torch.Tensor, slope: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return slope.new_empty(slope.shape, dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[3])
    ctx.dtype = inputs[0].dtype


def _gradient(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    (slope,) = ctx.saved_tensors
    return _binomial_loss_backward(grad, slope, ctx.dtype), None, None, None, None


_binomial_loss.register_autograd(_gradient, setup_context=_keep)


def binomial_loss(logits: torch.Tensor, trials: torch.Tensor, successes: torch.Tensor, weight: torch.Tensor,
                  bins: int = 0, kernels: str = "auto") -> Counted:
    """Negative log likelihood of successes among trials, with the sums and the histogram that metrics are made of.

    Args:
        logits: [B, H] log odds; the loss is differentiable by them alone, once.
        trials, successes: float32 [B, H].
        weight: float32 [B].
        bins: of the histogram over log odds -20 .. 20; 0: none.
        kernels: ``auto`` | ``reference`` | ``triton`` (:mod:`recsys.kernels.dispatch`); PyTorch's is the reference.

    Raises:
        InputError: Triton is asked for where it cannot run.
    """
    if not uses_triton(kernels, logits):
        return binomial_loss_reference(logits, trials, successes, weight, bins)
    loss, sums, histogram, _ = _binomial_loss(logits, trials, successes, weight, bins)
    return Counted(loss, sums, histogram)


def normalized_entropy(sums: torch.Tensor) -> torch.Tensor:
    """Loss over the entropy of the base rate, float64 [H], of :attr:`Counted.sums` (or of their sums over batches)."""
    loss, trials, successes, _ = sums.double().unbind(1)
    rate = successes / trials
    return loss / trials / -(torch.xlogy(rate, rate) + torch.xlogy(1 - rate, 1 - rate))
