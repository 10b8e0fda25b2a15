"""The ops on a CPU: plain PyTorch (the oracle), what ``kernels: auto`` runs there, and torch.compile of the oracle.

    python benchmarks/kernels_cpu.py --warm        # compile first; the compiler's cache keeps it
    python benchmarks/kernels_cpu.py [--rounds 30] # time them; writes benchmarks/results/kernels_cpu.json
    python benchmarks/kernels_cpu.py --threads 1 --only dot_interaction "mlps, scored"  # .../kernels_cpu_threads_1.json

Batches of 4,096 rows of 27 vectors of 16 numbers in bfloat16, as in train_throughput.py; forward and backward where
the op is trained. Contenders take turns, medians are reported. ``compact`` is another way of target attention
that was tried (docs/decisions/0038-kernels.md): on the items alone that are there, gathered first. ``metrics`` is the
loss alone and, in numpy, what evaluation computes of the same logits. ``views`` is ``auto`` where the C++ version
was not built.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import torch
from common import save
from recsys.kernels import native
from recsys.kernels.binomial_loss import binomial_loss
from recsys.kernels.cross_layer import cross_layer
from recsys.kernels.dot_interaction import dot_interaction
from recsys.kernels.lookup_interaction import lookup_interaction
from recsys.kernels.quantised_bags import quantise, quantised_bags
from torch.nn import functional

from recsys.memory import keep_freed_memory
from recsys.models.attention import TargetAttention
from recsys.models.layers import mlp, tower
from recsys.models.packed_linear import pack_linears
from recsys.training.metrics import StreamingMetrics
from recsys.training.step import BINS

BATCH, VECTORS, DIM, LENGTH = 4096, 27, 16, 20
Contender = Callable[[], Any]


def trained(op: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> Contender:
    """Forward and backward."""
    ones = torch.ones_like(op(*inputs))

    def run() -> Any:
        return torch.autograd.grad(op(*inputs), inputs, ones)

    return run


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> torch.Tensor:
    return torch.randn(shape).to(dtype).requires_grad_(grad)


def interaction() -> dict[str, Contender]:
    def plain(x: torch.Tensor) -> torch.Tensor:
        return dot_interaction(x, VECTORS - 1, VECTORS, "reference")

    x = [draw(BATCH, VECTORS, DIM)]
    found = {"eager": trained(plain, x), "auto": trained(lambda t: dot_interaction(t, VECTORS - 1, VECTORS), x),
             "compiled": trained(torch.compile(plain), x)}
    built = found["auto"]

    def without() -> Any:
        with mock.patch.object(native, "takes", return_value=False):
            return built()

    return found | {"views": without}


def mlps() -> dict[str, Contender]:
    """The DLRM's layers in bfloat16; ``auto``: packed, as a bundle has them."""
    bottom, top = tower((13, 512, 256), 16).bfloat16().eval(), mlp((367, 512, 256)).bfloat16().eval()
    packed = copy.deepcopy((bottom, top))
    for layers in packed:
        pack_linears(layers)
    counts, crossed = draw(BATCH, 13, grad=False), draw(BATCH, 367, grad=False)

    def scored(first: Callable[..., Any], second: Callable[..., Any]) -> Contender:
        def run() -> Any:
            with torch.no_grad():
                return first(counts), second(crossed)

        return run

    found = {"eager": scored(bottom, top), "auto": scored(*packed),
             "compiled": scored(torch.compile(bottom), torch.compile(top))}
    assert all(torch.equal(a, b) for a, b in zip(found["eager"](), found["auto"](), strict=True))
    return found


def cross() -> dict[str, Contender]:
    width = VECTORS * DIM
    inputs = [draw(*s) for s in ((BATCH, width), (BATCH, width), (64, width), (width, 64), (width,))]

    def plain(*given: torch.Tensor) -> torch.Tensor:
        return cross_layer(*given, kernels="reference")

    return {"eager": trained(plain, inputs), "auto": trained(lambda *given: cross_layer(*given), inputs),
            "compiled": trained(torch.compile(plain), inputs)}


def bags(kind: Any) -> dict[str, Contender]:
    features, rows = VECTORS - 1, 20_000
    tables = quantise(torch.randn(features * rows, DIM), kind)
    ids, offsets = torch.randint(0, rows, (features * BATCH,)), torch.arange(features * BATCH + 1)
    first_row, dense = torch.arange(features) * rows, torch.randn(BATCH, 1, DIM)

    def plain(beside: torch.Tensor) -> torch.Tensor:
        return quantised_bags(tables, kind, ids, offsets, first_row, beside, kernels="reference")

    compiled = torch.compile(plain)
    return {"eager": lambda: plain(dense), "compiled": lambda: compiled(dense),
            "auto": lambda: quantised_bags(tables, kind, ids, offsets, first_row, dense)}


def lookup() -> dict[str, Contender]:
    features, rows = VECTORS - 1, 20_000
    given = (torch.randn(features * rows, DIM), torch.randint(0, rows, (features, BATCH)),
             torch.arange(features) * rows, torch.randn(BATCH, DIM))

    def plain(*inputs: torch.Tensor) -> torch.Tensor:
        return lookup_interaction(*inputs, kernels="reference")

    compiled = torch.compile(plain)
    return {"eager": lambda: plain(*given), "auto": lambda: lookup_interaction(*given),
            "compiled": lambda: compiled(*given)}


def compact(layer: TargetAttention, ad: torch.Tensor, items: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    hidden, last = layer.score[0][0], layer.score[1]
    of_ad, of_item, of_difference, of_product = hidden.weight.split(ad.shape[1], dim=1)
    at = there.flatten().nonzero().squeeze(1)
    rows = at // there.shape[1]
    key = items.flatten(0, 1).index_select(0, at)
    units = functional.linear(torch.cat([key, ad.index_select(0, rows) * key], dim=1),
                              torch.cat([of_item - of_difference, of_product], dim=1))
    units = units + functional.linear(ad, of_ad + of_difference, hidden.bias).index_select(0, rows)
    scores = torch.zeros(there.numel()).index_copy(0, at, last(units.relu()).squeeze(1).float())
    scores = scores.view(there.shape)
    weights = scores.masked_fill(~there, torch.finfo(scores.dtype).min).softmax(1) * there
    return torch.bmm(weights.unsqueeze(1), items.float()).squeeze(1)


def attention(share: float) -> dict[str, Contender]:
    layer, plain = TargetAttention(DIM, (32,)), TargetAttention(DIM, (32,), kernels="reference")
    torch.nn.init.normal_(layer.score[1].weight)
    plain.load_state_dict(layer.state_dict())
    inputs = [draw(BATCH, DIM), draw(BATCH, LENGTH, DIM)]
    there = torch.arange(LENGTH) < (torch.rand(BATCH, 1) * (2 * share * LENGTH + 1)).clamp(max=LENGTH).int()

    def under(op: Callable[..., torch.Tensor]) -> Contender:
        def low(*given: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return op(*given).float()

        return trained(low, inputs)

    return {"eager": under(lambda a, b: plain(a, b, there)), "auto": under(lambda a, b: layer(a, b, there)),
            "compact": under(lambda a, b: compact(layer, a, b, there)),
            "compiled": under(torch.compile(lambda a, b: plain(a, b, there)))}


def loss(bins: int) -> dict[str, Contender]:
    clicks, ones, weight = (torch.rand(BATCH, 1) < 0.2).float(), torch.ones(BATCH, 1), torch.ones(BATCH)
    inputs = [draw(BATCH, 1, dtype=torch.float32)]

    def plain(z: torch.Tensor) -> torch.Tensor:
        return binomial_loss(z, ones, clicks, weight, bins, "reference").loss

    def metrics() -> Any:
        StreamingMetrics().update(inputs[0].detach().numpy(), ones.numpy(), clicks.numpy())
        return alone()

    # Where sums and histogram are asked for, the graph gives them, or the compiler would leave them out.
    alone = trained(lambda z: binomial_loss(z, ones, clicks, weight, 0, "reference").loss, inputs)
    given = torch.compile(lambda z: binomial_loss(z, ones, clicks, weight, bins, "reference"))
    held: list[Any] = []

    def compiled(z: torch.Tensor) -> torch.Tensor:
        held[:] = [given(z)]
        return held[0].loss

    found = {"eager": trained(plain, inputs),
             "auto": trained(lambda z: binomial_loss(z, ones, clicks, weight, bins).loss, inputs),
             "compiled": trained(compiled, inputs)}
    return found | ({"metrics": metrics} if bins else {})


OPS: dict[str, Callable[[], dict[str, Contender]]] = {
    "dot_interaction": interaction, "cross_layer": cross, "quantised_bags int8": lambda: bags("int8"),
    "quantised_bags int4": lambda: bags("int4"), "lookup_interaction": lookup,
    "target_attention, full histories": lambda: attention(1.0),
    "target_attention, a quarter full": lambda: attention(0.25),
    "mlps, scored": mlps, "binomial_loss": lambda: loss(0), "binomial_loss, with histogram": lambda: loss(BINS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(OPS), choices=list(OPS))
    parser.add_argument("--warm", action="store_true", help="compile and run each contender once; write nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as training does: else whoever frees large blocks pays for the next one's
    results: dict[str, Any] = {}
    for name, make in ((n, OPS[n]) for n in args.only):
        torch.manual_seed(0)
        contenders = make()
        taken: dict[str, list[float]] = {n: [] for n in contenders}
        for i in range(1 if args.warm else args.rounds + 2):
            order = list(contenders.items())
            for which, run in order[i % len(order) :] + order[: i % len(order)]:  # what one leaves in the cache differs
                began = time.perf_counter()
                run()
                if i > 1:
                    taken[which].append(time.perf_counter() - began)
        if args.warm:
            continue
        milliseconds = {n: 1e3 * median(t) for n, t in taken.items()}
        times = {n: milliseconds["eager"] / v for n, v in milliseconds.items()}
        results[name] = {"milliseconds": milliseconds, "times_as_fast_as_eager": times}
        shown = (f"{n} {v:.2f} ms (x{times[n]:.2f})" for n, v in milliseconds.items())
        print(f"{name:<34}" + "   ".join(shown), flush=True)
        save("kernels_cpu" if args.threads == 2 else f"kernels_cpu_threads_{args.threads}",
             {"threads": args.threads, "rounds": args.rounds, "batch": BATCH, "ops": results})


if __name__ == "__main__":
    main()
