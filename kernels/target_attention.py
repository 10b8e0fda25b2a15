"""Target attention over jagged histories, after the Deep Interest Network (Zhou et al. 2018, arXiv:1706.06978).

An MLP with one hidden layer of H units scores each item k of a history against the query q (the ad),

    score = w_out . relu(W [q; k; q - k; q * k] + bias),

and the history becomes the mean of its items' values, weighted by a softmax of the scores. With W = [Wq, Wk, Wd, Wp]
the hidden layer is (Wq + Wd) q + bias, once a row, and (Wk - Wd + Wp * q) k, once an item: half of the arithmetic, and
no [items, 4 D] in memory. N items in all, of D numbers of e bytes:

=========  ==============  ========================================================================================
           FLOPs           bytes moved, at the least (keys and values one tensor)
=========  ==============  ========================================================================================
forward    2 N D (H + 1)   e N D + 4 N: read the items, write the scores
backward   6 N D H         3 e N D + 4 N: read items and scores, write their gradients as keys and as values
padded     8 B L D H       e B L (12 D + 2 H) forward alone: L the longest history, the [B, L, 4 D] written and read
=========  ==============  ========================================================================================

Short histories beside long ones cost what they hold. At H = 32 to 64 in bfloat16, H operations a byte: bound by memory
bandwidth.
"""

from __future__ import annotations

from typing import Any

import torch
from recsys.kernels.dispatch import autocast_dtype, uses_triton
from torch.nn import functional


def target_attention_reference(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, starts: torch.Tensor,
                               lengths: torch.Tensor, longest: int, weight: torch.Tensor, bias: torch.Tensor,
                               out: torch.Tensor) -> torch.Tensor:
    """The oracle of :func:`target_attention`: histories padded to the longest, as the paper's own code does it."""
    place = torch.arange(longest, device=keys.device)
    there_BL = place < lengths.unsqueeze(1)
    at_BL = torch.where(there_BL, starts.unsqueeze(1) + place, len(keys))
    items = torch.cat([keys, keys.new_zeros(1, keys.shape[1])])[at_BL]
    ad = query.unsqueeze(1).expand_as(items)
    hidden = functional.linear(torch.cat([ad, items, ad - items, ad * items], dim=2), weight, bias).relu()
    scores_BL = functional.linear(hidden, out.unsqueeze(0)).squeeze(2).float()
    # The smallest number and not -inf: a row without any item would be 0/0, and its gradient with it.
    scores_BL = scores_BL.masked_fill(~there_BL, torch.finfo(scores_BL.dtype).min)
    weights_BL = (scores_BL.softmax(1) * there_BL).to(values.dtype)
    values_BLV = torch.cat([values, values.new_zeros(1, values.shape[1])])[at_BL]
    return torch.bmm(weights_BL.unsqueeze(1), values_BLV).squeeze(1)


@torch.library.custom_op("recsys::target_attention", mutates_args=())
def _target_attention(base: torch.Tensor, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
                      w_key: torch.Tensor, w_product: torch.Tensor, w_out: torch.Tensor, starts: torch.Tensor,
                      lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from recsys.kernels.on_triton import target_attention as on_triton

    return on_triton.forward(base, query, keys, values, w_key, w_product, w_out, starts, lengths)


@_target_attention.register_fake
def _(base: torch.Tensor, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, w_key: torch.Tensor,
      w_product: torch.Tensor, w_out: torch.Tensor, starts: torch.Tensor,
      lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = query.shape[0]
    return (values.new_empty((batch, values.shape[1])), keys.new_empty((keys.shape[0],), dtype=torch.float32),
            keys.new_empty((batch,), dtype=torch.float32))


@torch.library.custom_op("recsys::target_attention_backward", mutates_args=())
def _target_attention_backward(
        grad: torch.Tensor, out: torch.Tensor, base: torch.Tensor, query: torch.Tensor, keys: torch.Tensor,
        values: torch.Tensor, w_key: torch.Tensor, w_product: torch.Tensor, w_out: torch.Tensor, starts: torch.Tensor,
        lengths: torch.Tensor, scores: torch.Tensor, total: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from recsys.kernels.on_triton import target_attention as on_triton

    return on_triton.backward(grad, out, base, query, keys, values, w_key, w_product, w_out, starts,  # type: ignore
                              lengths, scores, total)


@_target_attention_backward.register_fake
def _(grad: torch.Tensor, out: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in given[:7])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    out, scores, total = output
    ctx.mark_non_differentiable(scores, total)
    ctx.save_for_backward(out, *inputs, scores, total)


def _gradient(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    return *_target_attention_backward(grad, *ctx.saved_tensors), None, None


_target_attention.register_autograd(_gradient, setup_context=_keep)


def target_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, starts: torch.Tensor,
                     lengths: torch.Tensor, longest: int, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor,
                     kernels: str = "auto") -> torch.Tensor:
    """Each row's history as one vector.

    Args:
        query: [B, D], the ads.
        keys: [N, D], what the scores look at: items of the histories end to end, or padded.
        values: [N, V], what is averaged; may be ``keys``.
        starts, lengths: int64 [B]: row b's items are ``starts[b]`` to ``starts[b] + lengths[b]`` - 1. No item is
            in two rows.
        longest: no less than the longest history.
        weight, bias: [H, 4 D] and [H], the hidden layer on [q; k; q - k; q * k].
        out: [H], the last layer.
        kernels: ``auto`` | ``reference`` | ``triton`` (:mod:`recsys.kernels.dispatch`); PyTorch's is the reference.

    Returns:
        [B, V], dtype of ``values`` (under autocast, autocast's where Triton runs); zeros for an empty history.
        Differentiable once.

    Raises:
        InputError: Triton is asked for where it cannot run.
    """
    if not uses_triton(kernels, keys):
        return target_attention_reference(query, keys, values, starts, lengths, longest, weight, bias, out)
    same = autocast_dtype(keys)
    query, keys, values, weight, bias, out = (t.to(same) for t in (query, keys, values, weight, bias, out))
    w_query, w_key, w_difference, w_product = weight.split(query.shape[1], dim=1)
    base = functional.linear(query, w_query + w_difference, bias)
    pooled, _, _ = _target_attention(base, query, keys, values, w_key - w_difference, w_product, out, starts, lengths)
    return pooled
