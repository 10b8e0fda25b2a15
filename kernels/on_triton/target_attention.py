"""Triton version of recsys.kernels.target_attention: a program a history forward, a few hundred programs backward.

With W_b = w_key + w_product * query_b (made once a history, in registers) the hidden layer of an item is one product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from recsys.kernels.on_triton.common import autotuned, matmul, on_its_device, power_of_2

_FORWARD = [triton.Config({"BL": n}, num_warps=w, num_stages=2)
            for n, w in ((16, 2), (16, 4), (32, 2), (32, 4), (64, 4), (64, 8))]
# Four tiles of H x D in registers at once. Of eleven configurations tried, up to 64 items and 16 warps, this one alone
# spills nothing on 8.0 and 9.0 at H 64, D 128 (benchmarks/gpu/compile.py).
_BACKWARD = [triton.Config({"BL": 16}, num_warps=8, num_stages=1)]
_PROGRAMS = 528  # backward: four for each of an H100's 132 multiprocessors


@triton.jit
def _weights(b, query, w_key, w_product, h, k, H: tl.constexpr, DK: tl.constexpr):
    mask = (h < H)[:, None] & (k < DK)[None, :]
    q = tl.load(query + b * DK + k, mask=k < DK, other=0.0).to(tl.float32)
    at = h[:, None] * DK + k[None, :]
    product = tl.load(w_product + at, mask=mask, other=0.0).to(tl.float32)
    return tl.load(w_key + at, mask=mask, other=0.0).to(tl.float32) + product * q[None, :]


@autotuned(_FORWARD, key=["H", "DK", "DV"])
@triton.jit
def _forward(base, query, keys, values, w_key, w_product, w_out, starts, lengths, out, scores, total, H: tl.constexpr,
             DK: tl.constexpr, DV: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
             BL: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    start, length = tl.load(starts + b), tl.load(lengths + b)
    h, k, v, ell = tl.arange(0, BH), tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BL)
    weights = _weights(b, query, w_key, w_product, h, k, H, DK)
    from_query = tl.load(base + b * H + h, mask=h < H, other=0.0).to(tl.float32)
    last = tl.load(w_out + h, mask=h < H, other=0.0).to(tl.float32)
    largest = float("-inf")
    mass = 0.0
    pooled = tl.zeros((BV,), tl.float32)
    for first in range(0, length, BL):
        begin = start + first  # int64, as all items' numbers may exceed 2^31; places in the block are int32
        here = first + ell < length
        key = tl.load(keys + begin * DK + ell[:, None] * DK + k[None, :], mask=here[:, None] & (k < DK)[None, :],
                      other=0.0)
        hidden = tl.maximum(matmul(key, tl.trans(weights).to(key.dtype)) + from_query[None, :], 0.0)
        score = tl.sum(hidden * last[None, :], axis=1)
        tl.store(scores + begin + ell, score, mask=here)
        score = tl.where(here, score, float("-inf"))
        new = tl.maximum(largest, tl.max(score, axis=0))
        scale, part = tl.exp(largest - new), tl.exp(score - new)
        value = tl.load(values + begin * DV + ell[:, None] * DV + v[None, :],
                        mask=here[:, None] & (v < DV)[None, :], other=0.0)
        pooled = pooled * scale + tl.sum(part[:, None] * value.to(tl.float32), axis=0)
        mass = mass * scale + tl.sum(part, axis=0)
        largest = new
    mass = tl.where(length > 0, mass, 1.0)  # an empty history: zeros
    tl.store(out + b * DV + v, (pooled / mass).to(out.dtype.element_ty), mask=v < DV)
    tl.store(total + b, tl.where(length > 0, largest + tl.log(mass), 0.0))


@autotuned(_BACKWARD, key=["H", "DK", "DV"])
@triton.jit
def _backward(grad, out, base, query, keys, values, w_key, w_product, w_out, starts, lengths, scores, total, d_base,
              d_query, d_keys, d_values, d_w_key, d_w_product, d_w_out, B, H: tl.constexpr, DK: tl.constexpr,
              DV: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    h, k, v, ell = tl.arange(0, BH), tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BL)
    last = tl.load(w_out + h, mask=h < H, other=0.0).to(tl.float32)
    sum_key = tl.zeros((BH, BK), tl.float32)
    sum_product = tl.zeros((BH, BK), tl.float32)
    sum_last = tl.zeros((BH,), tl.float32)
    own_at, own_mask = h[:, None] * DK + k[None, :], (h < H)[:, None] & (k < DK)[None, :]
    for b in range(program, B, tl.num_programs(0)):
        start, length = tl.load(starts + b), tl.load(lengths + b)
        weights = _weights(b, query, w_key, w_product, h, k, H, DK).to(keys.dtype.element_ty)
        from_query = tl.load(base + b * H + h, mask=h < H, other=0.0).to(tl.float32)
        g = tl.load(grad + b * DV + v, mask=v < DV, other=0.0).to(tl.float32)
        mean = tl.sum(g * tl.load(out + b * DV + v, mask=v < DV, other=0.0).to(tl.float32), axis=0)
        log_mass = tl.load(total + b)
        own = tl.zeros((BH, BK), tl.float32)
        own_base = tl.zeros((BH,), tl.float32)
        for first in range(0, length, BL):
            begin = start + first
            here = first + ell < length
            key_at, value_at = ell[:, None] * DK + k[None, :], ell[:, None] * DV + v[None, :]
            key_mask, value_mask = here[:, None] & (k < DK)[None, :], here[:, None] & (v < DV)[None, :]
            key = tl.load(keys + begin * DK + key_at, mask=key_mask, other=0.0)
            value = tl.load(values + begin * DV + value_at, mask=value_mask, other=0.0).to(tl.float32)
            part = tl.where(here, tl.exp(tl.load(scores + begin + ell, mask=here, other=0.0) - log_mass), 0.0)
            d_value = (part[:, None] * g[None, :]).to(d_values.dtype.element_ty)
            tl.store(d_values + begin * DV + value_at, d_value, mask=value_mask)
            d_score = part * (tl.sum(value * g[None, :], axis=1) - mean)
            hidden = matmul(key, tl.trans(weights)) + from_query[None, :]
            d_hidden = tl.where(hidden > 0, d_score[:, None] * last[None, :], 0.0)
            sum_last += tl.sum(d_score[:, None] * tl.maximum(hidden, 0.0), axis=0)
            own_base += tl.sum(d_hidden, axis=0)
            low = d_hidden.to(key.dtype)
            tl.store(d_keys + begin * DK + key_at,
                     matmul(low, weights).to(d_keys.dtype.element_ty), mask=key_mask)
            own += matmul(tl.trans(low), key)
        tl.store(d_base + b * H + h, own_base.to(d_base.dtype.element_ty), mask=h < H)
        # Read again: held through the loop, these would be registers that are spilled.
        q = tl.load(query + b * DK + k, mask=k < DK, other=0.0).to(tl.float32)
        product = tl.load(w_product + own_at, mask=own_mask, other=0.0).to(tl.float32)
        tl.store(d_query + b * DK + k, tl.sum(own * product, axis=0).to(d_query.dtype.element_ty), mask=k < DK)
        sum_key += own
        sum_product += own * q[None, :]
    # A program's share of the shared weights' gradients: summed afterwards, without atomics, alike in every run.
    at = program * H * DK + own_at
    tl.store(d_w_key + at, sum_key, mask=own_mask)
    tl.store(d_w_product + at, sum_product, mask=own_mask)
    tl.store(d_w_out + program * H + h, sum_last, mask=h < H)


def _sizes(base: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> dict[str, int]:
    found = {"H": base.shape[1], "DK": keys.shape[1], "DV": values.shape[1]}
    return found | {"BH": power_of_2(found["H"], 16), "BK": power_of_2(found["DK"], 16), "BV": power_of_2(found["DV"])}


@on_its_device
def forward(base: torch.Tensor, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, w_key: torch.Tensor,
            w_product: torch.Tensor, w_out: torch.Tensor, starts: torch.Tensor,
            lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means [B, DV], scores float32 [N], logarithms of the sums of their exponentials float32 [B]."""
    given = [t.contiguous() for t in (base, query, keys, values, w_key, w_product, w_out, starts, lengths)]
    batch = len(query)
    out = values.new_empty((batch, values.shape[1]))
    scores = torch.zeros(len(keys), dtype=torch.float32, device=keys.device)
    total = torch.zeros(batch, dtype=torch.float32, device=keys.device)
    if batch:
        _forward[(batch,)](*given, out, scores, total, **_sizes(base, keys, values))
    return out, scores, total


@on_its_device
def backward(grad: torch.Tensor, out: torch.Tensor, base: torch.Tensor, query: torch.Tensor, keys: torch.Tensor,
             values: torch.Tensor, w_key: torch.Tensor, w_product: torch.Tensor, w_out: torch.Tensor,
             starts: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor,
             total: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gradients of base, query, keys, values, w_key, w_product and w_out."""
    given = [t.contiguous() for t in (grad, out, base, query, keys, values, w_key, w_product, w_out, starts, lengths,
                                      scores, total)]
    batch, (hidden, dim) = len(query), w_key.shape
    programs = min(batch, _PROGRAMS)
    d_base, d_query = torch.empty_like(given[2]), torch.empty_like(given[3])
    # Items that no history holds have no gradient.
    d_keys, d_values = torch.zeros_like(given[4]), torch.zeros_like(given[5])
    shared = [torch.zeros((programs, *shape), dtype=torch.float32, device=keys.device)
              for shape in ((hidden, dim), (hidden, dim), (hidden,))]
    if batch:
        _backward[(programs,)](*given, d_base, d_query, d_keys, d_values, *shared, batch, **_sizes(base, keys, values))
    sums = [part.sum(0).to(w.dtype) for part, w in zip(shared, (w_key, w_product, w_out), strict=True)]
    return d_base, d_query, d_keys, d_values, *sums
