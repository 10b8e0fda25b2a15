"""The batch scripts by bash, with real training under them; only ``srun`` and ``scontrol`` stand in for Slurm's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from recsys.config import load_config
from tests.processes import live_glob
from tests.ranks import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Variables as Slurm sets them, and a PATH with its two commands: srun runs, scontrol notes what it is asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    (tools / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\necho 127.0.0.1\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
            "SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2",
            "SLURM_JOB_ID": str(free_port())}


def _train(slurm: dict[str, str], experiment: Path, out: Path, script: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(["bash", str(script), str(experiment), str(out)], cwd=ROOT, env=slurm, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


@pytest.mark.slow
def test_a_preempted_job_saves_asks_for_its_place_and_goes_on(slurm: dict[str, str], tmp_path: Path) -> None:
    small = "data.simulate={users: 300, advertisers: 20, ads: 150, requests: 12000}"
    experiment = load_config("marketplace", [small]).resolved()
    experiment["arms"], experiment["encoders"] = {"ids_only": {}}, {}
    experiment |= {"baseline": None}
    experiment["training"] |= {"epochs": 40, "patience": 0, "batch_size": 512, "ensemble": 1, "checkpoint_seconds": 1.0}
    file, out = tmp_path / "small.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(experiment))
    script = tmp_path / "train.sbatch"  # the port of its rendezvous is free here
    script.write_text((ROOT / "deploy/slurm/train.sbatch").read_text().replace("29500", str(free_port())))
    job = _train(slurm, file, out, script)
    try:
        until = time.monotonic() + 240
        while not live_glob(tmp_path, "**/checkpoint/member-*/*/manifest.json") and time.monotonic() < until:
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.2)
        job.send_signal(signal.SIGTERM)  # to the batch script alone, as --signal=B: does
        said, _ = job.communicate(timeout=120)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode != 0
    assert "SIGTERM: saved" in said
    assert f"requeue {slurm['SLURM_JOB_ID']}" in (tmp_path / "asked").read_text()
    again = _train({**slurm, "SLURM_GPUS_ON_NODE": "1"}, file, out, script)
    said, _ = again.communicate(timeout=400)
    assert again.returncode == 0, said
    assert "goes on from" in said
    assert json.loads((out / "metrics.json").read_text())["usage"]["samples"] > 0
    assert (tmp_path / "asked").read_text().count("requeue") == 1
