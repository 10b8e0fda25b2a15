from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
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
    lookup = found["kernels"]["lookup_interaction"]
    assert {"fbgemm fp16, then dot_interaction", "fbgemm fp16, lookup alone"} < set(lookup)
    assert found["rankers"]["dlrm"]["triton"]["train_samples_per_second"] > 0
    assert found["llama"]["tokens_per_second"] > 0
    assert found["sanitizer"] == {"left_out": "no GPU"}
    assert "torch" in found["machine"]["packages"]


def test_what_is_packed_comes_back_from_its_parts(tmp_path: Path) -> None:
    """By the line that pack.sh gives for the other machine; more parts than two digits count."""
    files = {"fbgemm_gpu/__init__.py": b"from . import lib", "fbgemm_gpu/lib.so": random.Random(0).randbytes(200_000),
             "torchrec/deep/name with a space.txt": b"", "torchrec/__init__.py": b"x = 1\n" * 1000}
    (tmp_path / "wheels").mkdir()
    for package in ("fbgemm_gpu", "torchrec"):
        with zipfile.ZipFile(tmp_path / f"wheels/{package}-1.6.0-py3-none-any.whl", "w") as wheel:
            for name in [n for n in files if n.startswith(package)]:
                wheel.writestr(name, files[name])
            if package == "fbgemm_gpu":
                wheel.writestr("fbgemm_gpu/bench/left_out.py", b"")
    out = tmp_path / "pack"
    out.mkdir()
    (out / "p.99").write_bytes(b"of an earlier packing")
    subprocess.run([GPU / "pack.sh", out, "3.12", "1.6.0", "1.6.0", "1K"], check=True, capture_output=True,
                   env={**os.environ, "WHEELS": str(tmp_path / "wheels")})
    assert len(list(out.iterdir())) > 100
    assert max(p.stat().st_size for p in out.iterdir()) == 1024
    subprocess.run("mkdir -p site && cat p.* | tar -xJ -C site", shell=True, cwd=out, check=True)
    site = out / "site"
    found = {str(p.relative_to(site)): p.read_bytes() for p in site.rglob("*") if p.is_file()}
    assert found == files


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
