"""Triton version of recsys.kernels.binomial_loss: every number is read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from recsys.kernels.dispatch import interpreted
from recsys.kernels.on_triton.common import on_its_device, power_of_2

_BLOCK = 64 if interpreted() else 1024


@triton.jit
def _forward(logits, trials, successes, weight, slope, histogram, parts, B, H, low, scale,
             BINS: tl.constexpr, BLOCK: tl.constexpr):
    head = tl.program_id(1).to(tl.int64)
    b = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = b < B
    z = tl.load(logits + b * H + head, mask=mask, other=0.0).to(tl.float32)
    w = tl.load(weight + b, mask=mask, other=0.0)
    t = w * tl.load(trials + b * H + head, mask=mask, other=0.0)
    s = w * tl.load(successes + b * H + head, mask=mask, other=0.0)
    tail = tl.exp(-tl.abs(z))
    p = tl.where(z >= 0, 1.0, tail) / (1.0 + tail)
    loss = t * (tl.maximum(z, 0.0) + tl.log(1.0 + tail)) - s * z
    tl.store(slope + b * H + head, t * p - s, mask=mask)
    # One program a block and head: sums without atomics, the same in every run.
    at = parts + (tl.program_id(0) * H + head) * 4
    tl.store(at, tl.sum(loss, axis=0))
    tl.store(at + 1, tl.sum(t, axis=0))
    tl.store(at + 2, tl.sum(s, axis=0))
    tl.store(at + 3, tl.sum(t * p, axis=0))
    if BINS > 0:
        # Clamped as floats: a logit beyond what an integer holds belongs to the last bin as well; NaN, to the first.
        place = tl.minimum(tl.maximum((tl.where(z == z, z, low) - low) * scale, 0.0), BINS - 1.0).to(tl.int64)
        cell = histogram + (head * BINS + place) * 2
        tl.atomic_add(cell, s, mask=mask & (s != 0), sem="relaxed")
        tl.atomic_add(cell + 1, t - s, mask=mask & (t != s), sem="relaxed")


@on_its_device
def forward(logits: torch.Tensor, trials: torch.Tensor, successes: torch.Tensor, weight: torch.Tensor, bins: int,
            reach: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slopes float32 [B, H], sums float32 [H, 4] and histogram float32 [H, bins, 2]."""
    logits, trials, successes, weight = (t.contiguous() for t in (logits, trials, successes, weight))
    batch, heads = logits.shape
    slope = torch.empty((batch, heads), dtype=torch.float32, device=logits.device)
    histogram = torch.zeros((heads, bins, 2), dtype=torch.float32, device=logits.device)
    block = min(_BLOCK, power_of_2(batch, 16))
    blocks = triton.cdiv(batch, block)
    parts = torch.empty((blocks, heads, 4), dtype=torch.float32, device=logits.device)
    if slope.numel():
        _forward[(blocks, heads)](logits, trials, successes, weight, slope, histogram, parts, batch, heads,
                                  -reach, bins / (2 * reach), BINS=bins, BLOCK=block, num_warps=4)
    return slope, parts.sum(0), histogram
