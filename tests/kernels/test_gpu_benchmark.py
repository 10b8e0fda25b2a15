from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks/gpu"


def _run(script: str, *args: str, interpret: str) -> str:
    done = subprocess.run([sys.executable, str(GPU / script), *args], capture_output=True, text=True, check=False,
                          env={**os.environ, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_run_all_runs_without_a_gpu(tmp_path: Path) -> None:
    _run("run_all.py", str(tmp_path), "--tiny", interpret="1")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["kernels"]) == set(found["correctness"])
    assert {name.split(",")[0].split()[0] for name in found["kernels"]} == {
        "dot_interaction", "cross_layer", "quantised_bags", "lookup_interaction", "target_attention", "binomial_loss"}
    assert all(set(errors) == {"float32", "float16", "bfloat16"} for errors in found["correctness"].values())
    bags = {name: row for name, row in found["kernels"].items() if name.startswith("quantised_bags")}
    assert len(bags) == 4
    assert all("fbgemm" in row for row in bags.values())
    assert found["rankers"]["dlrm"]["triton"]["train_samples_per_second"] > 0
    assert found["llama"]["tokens_per_second"] > 0
    assert found["sanitizer"] == {"left_out": "no GPU"}
    assert "torch" in found["machine"]["packages"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90"])
def test_every_kernel_compiles_for_a_gpu_without_spills(tmp_path: Path, arch: str) -> None:
    """By Triton and its assembler, for A100 and H100, where the interpreter would run anything."""
    _run("compile.py", "--arch", arch, "--all-configs", "--json", str(tmp_path / "compile.json"), interpret="0")
    found = json.loads((tmp_path / "compile.json").read_text())["kernels"]
    assert len(found) == 12
    assert all(row["registers"] > 0 for rows in found.values() for row in rows)
    # Of every configuration: the autotuner picks by the clock, which a busy GPU may mislead.
    assert {name: [row for row in rows if row["spilled"]] for name, rows in found.items()} == {n: [] for n in found}
