"""The ops at the sizes of use: inputs, contenders, bytes and FLOPs that each needs at the least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from measure import has
from recsys.kernels.binomial_loss import binomial_loss
from recsys.kernels.cross_layer import cross_layer
from recsys.kernels.dot_interaction import dot_interaction
from recsys.kernels.lookup_interaction import lookup_interaction
from recsys.kernels.quantised_bags import quantise, quantised_bags, row_bytes
from recsys.kernels.target_attention import target_attention


@dataclass(frozen=True)
class Sizes:
    """Criteo-shaped, as MLPerf's DLRM-DCNv2; ``tiny``: the same code paths in a second."""

    batch: int = 65_536
    features: int = 27
    dim: int = 128
    rank: int = 512
    rows: int = 1_000_000
    histories: int = 16_384
    longest: int = 100
    hidden: int = 64
    bins: int = 4096


TINY = Sizes(batch=6, features=5, dim=16, rank=8, rows=50, histories=4, longest=8, hidden=8, bins=16)


@dataclass
class Case:
    """One op, one direction of use.

    Attributes:
        op: ``kernels`` -> its result, a tensor.
        inputs: what gradients are taken of; empty: inference.
        moved, flops: at the least, of ``op`` (and of its backward, where there are inputs).
        others: further contenders by name.
    """

    name: str
    op: Callable[[str], torch.Tensor]
    inputs: list[torch.Tensor]
    moved: float
    flops: float
    others: dict[str, Callable[[], Any]] = field(default_factory=dict)


def cases(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One after another, so that only one case's tensors are alive."""
    yield from _interaction(sizes, device, dtype)
    yield from _cross(sizes, device, dtype)
    yield from _bags(sizes, device, dtype)
    yield _lookup(sizes, device, dtype)
    yield from _attention(sizes, device, dtype)
    yield _loss(sizes, device)


def _draw(*shape: int, device: torch.device, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, device=device, dtype=dtype) * scale).to(dtype)


def _interaction(s: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    x = _draw(s.batch, s.features, s.dim, device=device, dtype=dtype)
    e, f, d, pairs = dtype.itemsize, s.features, s.dim, s.features * (s.features - 1) // 2
    forward = e * s.batch * (f * d + d + pairs)
    yield Case("dot_interaction", lambda k: dot_interaction(x, f - 1, f, k), [], forward, 2 * s.batch * pairs * d)
    x = x.requires_grad_()
    yield Case("dot_interaction, with gradient", lambda k: dot_interaction(x, f - 1, f, k), [x],
               forward + e * s.batch * (2 * f * d + d + pairs), 6 * s.batch * pairs * d)


def _cross(s: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    width = s.features * s.dim
    shapes = [(s.batch, width), (s.batch, width), (s.rank, width), (width, s.rank), (width,)]
    inputs = [_draw(*shape, device=device, dtype=dtype, scale=shape[-1] ** -0.5 if i > 1 else 1.0)
              for i, shape in enumerate(shapes)]
    e, product = dtype.itemsize, 2 * s.batch * width * s.rank
    forward = e * (s.batch * (4 * width + 2 * s.rank) + 2 * width * s.rank)  # x once more for the narrow product
    yield Case("cross_layer", lambda k: cross_layer(*inputs, kernels=k), [], forward, 2 * product)
    inputs = [t.requires_grad_() for t in inputs]
    # The wide product again, four products of gradients; what they read is counted once each.
    yield Case("cross_layer, with gradient", lambda k: cross_layer(*inputs, kernels=k), inputs,
               forward + e * s.batch * (10 * width + 5 * s.rank), 7 * product)


def _bags(s: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    features = s.features - 1
    ids = torch.randint(0, s.rows, (features * s.batch,), device=device)
    offsets = torch.arange(features * s.batch + 1, device=device)
    first_row = torch.arange(features, device=device) * s.rows
    dense = _draw(s.batch, 1, s.dim, device=device, dtype=dtype)
    for kind in ("int8", "int4", "fp8", "fp32"):
        size = row_bytes(kind, s.dim)
        some = quantise(_draw(min(s.rows, 4096), s.dim, device=device, dtype=torch.float32), kind)
        tables = some.repeat(-(-features * s.rows // len(some)), 1)[: features * s.rows].contiguous()
        case = Case(f"quantised_bags {kind}",
                    lambda k, t=tables, kind=kind: quantised_bags(t, kind, ids, offsets, first_row, dense, kernels=k),
                    [], features * s.batch * (size + 8 + 8) + s.batch * (s.features + 1) * s.dim * dtype.itemsize,
                    2 * features * s.batch * s.dim)
        if has("fbgemm_gpu"):
            case.others["fbgemm"] = _fbgemm_bags(s, kind, ids, offsets, device)
        yield case
        del tables, case


def _fbgemm_bags(s: Sizes, kind: str, ids: torch.Tensor, offsets: torch.Tensor,
                 device: torch.device) -> Callable[[], Any]:
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    where = EmbeddingLocation.DEVICE if device.type == "cuda" else EmbeddingLocation.HOST
    op = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("", s.rows, s.dim, SparseType[kind.upper()], where) for _ in range(s.features - 1)], device=device,
        output_dtype=SparseType.BF16, fp8_exponent_bits=4, fp8_exponent_bias=7)
    op.fill_random_weights()
    values, places = ids.int(), offsets.int()
    return lambda: op(values, places)


def _lookup(s: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    features, pairs = s.features - 1, s.features * (s.features - 1) // 2
    tables = torch.empty(features * s.rows, s.dim, device=device, dtype=dtype).uniform_(-1, 1)
    ids = torch.randint(0, s.rows, (features, s.batch), device=device)
    first_row = torch.arange(features, device=device) * s.rows
    dense = _draw(s.batch, s.dim, device=device, dtype=dtype)
    e = dtype.itemsize
    moved = e * s.batch * (s.features * s.dim + s.dim + pairs) + 8 * s.batch * features
    case = Case("lookup_interaction", lambda k: lookup_interaction(tables, ids, first_row, dense, k), [], moved,
                2 * s.batch * pairs * s.dim)
    if has("fbgemm_gpu"):
        look_up = _fbgemm_bags(s, "fp16", ids.flatten(), torch.arange(ids.numel() + 1, device=device), device)

        def apart() -> torch.Tensor:
            found = look_up().view(s.batch, features, s.dim).to(dtype)
            return dot_interaction(torch.cat([found, dense.unsqueeze(1)], dim=1), features, features + 1)

        case.others |= {"fbgemm fp16, then dot_interaction": apart, "fbgemm fp16, lookup alone": look_up}
    return case


def _attention(s: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    lengths = torch.randint(0, s.longest // 2 + 1, (s.histories,), device=device)  # mean: a quarter
    starts, items = torch.cumsum(lengths, 0) - lengths, int(lengths.sum())
    shapes = [(s.histories, s.dim), (items, s.dim), (s.hidden, 4 * s.dim), (s.hidden,), (s.hidden,)]
    inputs = [_draw(*shape, device=device, dtype=dtype, scale=shape[-1] ** -0.5 if i > 1 else 1.0)
              for i, shape in enumerate(shapes)]

    def op(kernels: str) -> torch.Tensor:
        query, keys, weight, bias, out = inputs
        return target_attention(query, keys, keys, starts, lengths, s.longest, weight, bias, out, kernels)

    e, flops = dtype.itemsize, 2 * items * s.dim * s.hidden
    forward = e * (items + 2 * s.histories) * s.dim + 4 * items
    yield Case("target_attention", op, [], forward, flops)
    for t in inputs:
        t.requires_grad_()
    yield Case("target_attention, with gradient", op, inputs,
               forward + e * (4 * items + 4 * s.histories) * s.dim + 4 * items, 4 * flops)


def _loss(s: Sizes, device: torch.device) -> Case:
    logits = torch.randn(s.batch, 1, device=device, requires_grad=True)
    ones = torch.ones(s.batch, 1, device=device)
    clicks, weight = (torch.rand(s.batch, 1, device=device) < 0.1).float(), torch.ones(s.batch, device=device)
    return Case("binomial_loss, with gradient",
                lambda k: binomial_loss(logits, ones, clicks, weight, s.bins, k).loss, [logits],
                4 * s.batch * 5 + 8 * s.batch, 20 * s.batch)
