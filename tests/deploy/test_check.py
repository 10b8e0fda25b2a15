"""The launch files before their real readers, in an environment of their own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def python() -> Path:
    """The validators' interpreter; made once, kept in the cache folder by the hash of what it should hold."""
    needs = DEPLOY / "requirements.txt"
    folder = ROOT / ".cache" / "deploy" / hashlib.sha256(needs.read_bytes()).hexdigest()[:12]
    made = folder / "made"
    if not made.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r",
                        needs], check=True, timeout=900)
        made.touch()
    return folder / "bin" / "python"


def _check(python: Path, folder: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    return subprocess.run([python, DEPLOY / "check.py", folder], capture_output=True, text=True, timeout=300,
                          check=False, env=environment)


@pytest.mark.slow
def test_the_files_are_taken_and_mistakes_in_them_are_not(python: Path, tmp_path: Path) -> None:
    found = _check(python, DEPLOY, tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("ok ") == sum(p.suffix in (".yaml", ".sbatch", ".sh") for p in DEPLOY.rglob("*"))
    broken = tmp_path / "broken"
    shutil.copytree(DEPLOY, broken)
    for name, before, after in (
            ("skypilot/train.yaml", "any_of:", "any_off:"),
            ("skypilot/embed.yaml", "    - {infra: gcp, accelerators: {H200: 8}}\n", ""),
            ("skypilot/score.yaml", "use_spot: true", "use_spot: false"),
            ("kubernetes/serve.yaml", "periodSeconds: 10", "periodSecond: 10"),
            ("kubernetes/trainjob.yaml", "numNodes: 2", "nodes: 2"),
            ("kubernetes/score.yaml", "backoffLimit: 10", "backoffLimit: many"),
            ("slurm/train.sbatch", '"$EXPERIMENT" --out "$OUT"', "$EXPERIMENT --out $OUT"),
            ("ray/embed.sh", '"$DATASET"', "$DATASET")):
        text = (broken / name).read_text()
        assert before in text, (name, before)
        (broken / name).write_text(text.replace(before, after, 1))
    found = _check(python, broken, tmp_path)
    assert found.returncode == 1
    refused = {line.split()[1].rstrip(":") for line in found.stdout.splitlines() if line.startswith("FAIL")}
    assert refused == {"skypilot/train.yaml", "skypilot/embed.yaml", "skypilot/score.yaml", "kubernetes/serve.yaml",
                       "kubernetes/trainjob.yaml", "kubernetes/score.yaml", "slurm/train.sbatch", "ray/embed.sh"}
