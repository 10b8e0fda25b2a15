"""The GPU path, measured: correctness, ceilings, every kernel beside its rivals, whole steps. Under 8 minutes.

    python benchmarks/gpu/run_all.py [OUT] [--only correctness,kernels,...] [--device cuda]
    TRITON_INTERPRET=1 python benchmarks/gpu/run_all.py OUT --tiny      # the same code on a CPU, in seconds: no figures

Writes OUT/gpu.json (default: benchmarks/results/gpu.json) after every section, so that what was measured survives a
time limit, and prints a short table last. Times are medians with the L2 cache emptied; shares are of the ceiling that
binds, measured in the same run. Sections: correctness, ceilings, kernels, rankers, inference, llama, top_k, sanitizer.
What is not installed (FBGEMM, FAISS, compute-sanitizer, transformers) is left out and said so. The project itself need
not be installed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch  # noqa: E402
from measure import ROOT, against, ceilings, facts, find_project, has, seconds  # noqa: E402

find_project()
from ops import TINY, Case, Sizes, cases  # noqa: E402

SECTIONS = ("correctness", "ceilings", "kernels", "rankers", "inference", "llama", "top_k", "sanitizer")
# Of the largest value; sums are in float32, so this is the rounding of inputs, weights and results.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 5e-2}
CHECKED = Sizes(batch=130, features=27, dim=128, rank=72, rows=300, histories=37, longest=50, hidden=40, bins=64)


def once(case: Case, kernels: str) -> list[torch.Tensor]:
    """Result and gradients of one call; the incoming gradient is the same for every contender."""
    found = case.op(kernels)
    if not case.inputs:
        return [found]
    gradient = torch.linspace(-1, 1, found.numel(), device=found.device, dtype=torch.float32).view(found.shape)
    return [found, *torch.autograd.grad(found, case.inputs, gradient.to(found.dtype))]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().float(), b.detach().float()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1.0))


def correctness(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Largest difference between kernel and reference, of the reference's largest value, forward and gradients."""
    worst: dict[str, Any] = {}
    for dtype in TOLERANCE:
        torch.manual_seed(0)
        for case in cases(TINY if tiny else CHECKED, device, dtype):
            mine, exact = once(case, "triton"), once(case, "reference")
            error = max(difference(a, b) for a, b in zip(mine, exact, strict=True))
            name = str(dtype).removeprefix("torch.")
            worst.setdefault(case.name, {})[name] = error
            if not error <= TOLERANCE[dtype]:
                raise SystemExit(f"{case.name}, {name}: off by {error:.2g}, more than {TOLERANCE[dtype]}")
    return worst


def kernels(device: torch.device, tiny: bool, ceiling: dict[str, float]) -> dict[str, Any]:
    """Every op in bfloat16 at the sizes of use: Triton, eager, torch.compile, FBGEMM."""
    found: dict[str, Any] = {}
    for case in cases(TINY if tiny else Sizes(), device, torch.bfloat16):
        choice = "auto" if device.type == "cpu" else "triton"
        mine = against(ceiling, seconds(lambda: once(case, choice), device), case.moved, case.flops)  # noqa: B023
        row = {"triton": mine, "eager": {"seconds": seconds(lambda: once(case, "reference"), device)}}  # noqa: B023
        if device.type == "cuda":
            compiled = Case(case.name, torch.compile(case.op), case.inputs, 0, 0)
            row["compiled"] = {"seconds": seconds(lambda: once(compiled, "reference"), device)}  # noqa: B023
            torch._dynamo.reset()
        row |= {n: {"seconds": seconds(run, device)} for n, run in case.others.items()}
        for rival in [r for r in row.values() if r is not mine]:
            rival["triton_is_times_as_fast"] = rival["seconds"] / mine["seconds"]
        found[case.name] = row
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def sanitizer(device: torch.device) -> dict[str, Any]:
    """compute-sanitizer memcheck over the correctness section, in a process of its own."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if device.type != "cuda" or not Path(tool).exists():
        return {"left_out": "no GPU" if device.type != "cuda" else "compute-sanitizer is not installed"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__,
               str(ROOT / "work/sanitizer"), "--only", "correctness", "--small"]
    # Its own allocator, or an overrun lands in memory that PyTorch holds.
    done = subprocess.run(command, env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, capture_output=True,
                          text=True, check=False, timeout=240)
    return {"clean": done.returncode == 0, "last_lines": (done.stdout + done.stderr).strip().splitlines()[-3:]}


def section(name: str, device: torch.device, args: argparse.Namespace, results: dict[str, Any]) -> Any:
    import end_to_end

    if name == "correctness":
        return correctness(device, args.tiny or args.small)
    if name == "ceilings":
        return ceilings(device, args.tiny)
    if name == "kernels":
        ceiling = results.setdefault("ceilings", None) or ceilings(device, args.tiny)
        return kernels(device, args.tiny, ceiling)
    if name == "rankers":
        return end_to_end.rankers(device, args.tiny, compiles=device.type == "cuda")
    if name == "inference":
        return end_to_end.fused_inference(device, args.tiny)
    if name == "llama":
        return end_to_end.llama(device, args.tiny) if has("transformers") else {"left_out": "transformers is missing"}
    if name == "top_k":
        return end_to_end.top_k(device, args.tiny)
    return sanitizer(device)


def table(results: dict[str, Any]) -> str:
    lines = []
    for name, row in (results.get("kernels") or {}).items():
        mine = row["triton"]
        rivals = ", ".join(f"{n} x{r['triton_is_times_as_fast']:.2f}" for n, r in row.items() if n != "triton")
        lines.append(f"{name:<34} {mine['seconds'] * 1e3:9.3f} ms  {mine['share_of_ceiling']:5.0%} of "
                     f"{mine['bound']:<10} {rivals}")
    for kind in ("dlrm", "dcnv2"):
        for name, row in (results.get("rankers") or {}).get(kind, {}).items():
            if isinstance(row, dict):
                lines.append(f"{kind} {name:<12} train {row['train_samples_per_second']:>12,.0f}/s   infer "
                             f"{row['infer_samples_per_second']:>12,.0f}/s")
    for name in ("inference", "llama", "top_k", "sanitizer"):
        if name in results:
            lines.append(f"{name}: {json.dumps(results[name])}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma-separated sections")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, any device: does everything still run?")
    parser.add_argument("--small", action="store_true", help="correctness at the smallest sizes (under a sanitizer)")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu" and not args.tiny:
        parser.error("no GPU here: only --tiny, with TRITON_INTERPRET=1")
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    if args.out is None and args.tiny:
        parser.error("--tiny needs a folder for its output: its times are no results")
    args.out = args.out or HERE.parent / "results"
    args.out.mkdir(parents=True, exist_ok=True)
    # Float32 products are float32: the references are oracles.
    torch.set_float32_matmul_precision("highest")
    command = "python benchmarks/gpu/run_all.py" + " --tiny" * args.tiny + " --small" * args.small
    results: dict[str, Any] = {"command": command, "date": dt.date.today().isoformat(), "machine": facts(device),
                               "section_seconds": {}}
    for name in [s for s in SECTIONS if s in wanted]:
        began = time.perf_counter()
        results[name] = section(name, device, args, results)
        results["section_seconds"][name] = round(time.perf_counter() - began, 1)
        (args.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
        print(f"{name}: {results['section_seconds'][name]} s", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
