"""Every launch file read by those who will run it: SkyPilot, Kubernetes' schema, Kubeflow Trainer's models, shellcheck.

    python -m venv work/deploy && work/deploy/bin/pip install -r deploy/requirements.txt
    work/deploy/bin/python deploy/check.py [FOLDER]      # this folder, unless another one is named

Prints a line a file; exit code 1 where one is refused. Nothing is started and nothing is asked of any cloud.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

KUBERNETES = "1.33"
TARGETS = {(cloud, card) for cloud in ("aws", "gcp", "azure", "kubernetes") for card in ("H100", "H200", "A100-80GB")}


def sky(file: Path) -> str:
    """SkyPilot reads the task and finds the same cards on all four clouds, spot, with a bucket and a recovery."""
    import sky as skypilot

    task = skypilot.Task.from_yaml(str(file))
    wanted = list(task.resources)
    found = {(str(r.cloud).lower(), card) for r in wanted for card in (r.accelerators or {})}
    if found != TARGETS:
        raise ValueError(f"any_of: {sorted(found ^ TARGETS)} is missing or too much")
    if not all(r.use_spot and r.accelerators and set(r.accelerators.values()) == {8} for r in wanted):
        raise ValueError("every resource: eight cards, spot")
    if any(r.job_recovery is None for r in wanted):
        raise ValueError("every resource: job_recovery")
    if not task.storage_mounts:
        raise ValueError("file_mounts: a bucket for what must outlive the machine")
    return f"{len(wanted)} resources"


def kubernetes(file: Path) -> str:
    """Strict against the schema of :data:`KUBERNETES`; a TrainJob through Kubeflow's models and back."""
    import kubernetes_validate
    import yaml
    from kubeflow_trainer_api import models

    kinds = []
    for document in yaml.safe_load_all(file.read_text()):
        if document["kind"] == "TrainJob":
            again = models.TrainerV1alpha1TrainJob.from_dict(document).to_dict()
            if lost := _lost(document, again):  # what the models do not know is dropped without a word
                raise ValueError(f"TrainJob: {lost} is not known to Kubeflow Trainer")
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        kinds.append(document["kind"])
    return ", ".join(kinds)


def _lost(before: Any, after: Any, at: str = "") -> str:
    """Path of the first value that is not the same afterwards; empty: all are."""
    if isinstance(before, dict) and isinstance(after, dict):
        return next((lost for k in before if (lost := _lost(before[k], after.get(k), f"{at}.{k}"))), "")
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return next((lost for i, (x, y) in enumerate(zip(before, after, strict=True))
                     if (lost := _lost(x, y, f"{at}[{i}]"))), "")
    return "" if before == after else at.lstrip(".")


def shell(file: Path) -> str:
    """No finding of shellcheck's."""
    beside = Path(sys.executable).parent / "shellcheck"
    tool = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if tool is None:
        raise ValueError("shellcheck is not installed")
    found = subprocess.run([tool, "--shell=bash", str(file)], capture_output=True, text=True, check=False)
    if found.returncode:
        raise ValueError(found.stdout.strip())
    return "shellcheck"


CHECKS = {"skypilot/*.yaml": sky, "kubernetes/*.yaml": kubernetes, "slurm/*.sbatch": shell, "ray/*.sh": shell}


def main(folder: Path) -> int:
    """Check all files of ``folder``; returns the exit code."""
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    bad = 0
    for pattern, check in CHECKS.items():
        files = sorted(folder.glob(pattern))
        if not files:
            print(f"FAIL {pattern}: no such file")
            bad += 1
        for file in files:
            try:
                print(f"ok   {file.relative_to(folder)}: {check(file)}")
            except Exception as error:  # whatever a validator raises is its verdict
                print(f"FAIL {file.relative_to(folder)}: {type(error).__name__}: {error}")
                bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
