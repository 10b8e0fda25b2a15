"""Compile every Triton kernel for a GPU on a machine without one, and print what it needs there.

    TRITON_INTERPRET=0 python benchmarks/gpu/compile.py [--arch 90] [--all-configs] [--json FILE]

At the shapes of use (Criteo-shaped, dim 128, bfloat16), for each configuration of the autotuner: registers a thread,
bytes spilled a thread, shared memory. A kernel that does not compile, or spills in every configuration, is found here
and not on rented time. Triton brings the assembler (ptxas); nothing runs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from recsys.kernels.on_triton import (
    binomial_loss,
    cross_layer,
    dot_interaction,
    lookup_interaction,
    quantised_bags,
    target_attention,
)
from recsys.kernels.quantised_bags import row_bytes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64",
         torch.int32: "*i32", torch.uint8: "*u8"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def launches() -> dict[str, Callable[[], Any]]:
    """Kernel name -> a call that launches it, tensors of realistic widths and few rows."""
    half = torch.bfloat16
    x, grad = torch.zeros(4, 27, 128, dtype=half), torch.zeros(4, 128 + 351, dtype=half)
    wide, h = torch.zeros(128, 3456, dtype=half), torch.zeros(128, 512, dtype=half)
    up, bias = torch.zeros(3456, 512, dtype=half), torch.zeros(3456, dtype=half)
    items, query, base = (torch.zeros(*s, dtype=half) for s in ((32, 128), (4, 128), (4, 64)))
    layer, last = torch.zeros(64, 128, dtype=half), torch.zeros(64, dtype=half)
    long = torch.full((4,), 8)
    history = (base, query, items, items, layer, layer, last, torch.arange(4) * 8, long)
    ids, first_row = torch.zeros(26, 4, dtype=torch.int32), torch.zeros(26, dtype=torch.int64)
    offsets = torch.arange(26 * 4 + 1)
    one = torch.zeros(4, 1)

    def bags(kind: str) -> Callable[[], Any]:
        rows = torch.zeros(8, row_bytes(kind, 128), dtype=torch.uint8)
        return lambda: quantised_bags.forward(rows, kind, ids.flatten(), offsets, first_row, None, True, query[:, None])

    return {
        "dot_interaction": lambda: dot_interaction.forward(x, 26, 27),
        "dot_interaction_backward": lambda: dot_interaction.backward(grad, x, 26, 27),
        "cross_layer": lambda: cross_layer.forward(wide, wide, h, up, bias),
        "cross_layer_backward": lambda: cross_layer.backward(wide, wide, h, up, bias),
        **{f"quantised_bags_{kind}": bags(kind) for kind in ("int8", "int4", "fp8", "fp32")},
        "lookup_interaction": lambda: lookup_interaction.forward(x[0], ids, first_row, query),
        "target_attention": lambda: target_attention.forward(*history),
        "target_attention_backward": lambda: target_attention.backward(
            query, query, *history, torch.zeros(32), torch.zeros(4)),
        "binomial_loss": lambda: binomial_loss.forward(one, one, one, one[:, 0], 4096, 20.0),
    }


def compiled(kernel: JITFunction[Any], args: tuple[Any, ...], named: dict[str, Any], arch: int,
             options: dict[str, int]) -> dict[str, Any]:
    """What one configuration needs of a multiprocessor."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | named
    fixed = {p.name for p in kernel.params if p.is_constexpr}
    signature = {n: "constexpr" if n in fixed else _type(given[n]) for n in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names)
               if isinstance(given[n], torch.Tensor)}
    source = ASTSource(kernel, signature, {n: given[n] for n in fixed}, aligned)
    program = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(program.asm["cubin"])
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {**options, **{k: v for k, v in named.items() if k in ("BM", "BN", "BK", "BL", "BB")},
            "registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"], "shared": program.metadata.shared}


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


@contextmanager
def recorded(arch: int, every: bool, into: list[dict[str, Any]]) -> Iterator[None]:
    """Inside, a launch compiles instead."""
    launch, tune = JITFunction.run, Autotuner.run

    def only_compile(kernel: Any, *args: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
        options = {n: named.pop(n) for n in ("num_warps", "num_stages") if n in named}
        into.append(compiled(kernel, args, named, arch, options))

    def each_config(tuner: Any, *args: Any, grid: Any, **named: Any) -> None:
        for config in tuner.configs if every else tuner.configs[:1]:
            only_compile(tuner.fn, *args, grid=grid, **named, **config.kwargs, num_warps=config.num_warps,
                         num_stages=config.num_stages)

    JITFunction.run, Autotuner.run = only_compile, each_config  # type: ignore[method-assign]
    try:
        yield
    finally:
        JITFunction.run, Autotuner.run = launch, tune  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="compute capability: 80 A100, 90 H100 and H200")
    parser.add_argument("--all-configs", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {}
    for name, launch in launches().items():
        found: list[dict[str, Any]] = []
        with recorded(args.arch, args.all_configs, found):
            launch()
        results[name] = found
        for row in found:
            print(f"{name:<26} " + "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if args.json:
        found_all = {"arch": args.arch, "triton": triton.__version__, "kernels": results}
        args.json.write_text(json.dumps(found_all, indent=1) + "\n")


if __name__ == "__main__":
    main()
