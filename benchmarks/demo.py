"""The demo as a user runs it: wall time, peak memory, and each arm's lift beside the simulator's truth.

    python benchmarks/demo.py --work work/demo

Writes benchmarks/results/demo.json and, from the same run, docs/images/report.png.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import save

from recsys.report import render_png


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/demo"))
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "recsys", "demo", "--out", str(args.work)], check=True)
    wall = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    lift = json.loads((args.work / "report" / "lift.json").read_text())
    keys = ("lift", "true_lift", "covers_truth", "cost_per_mille_usd", "n")
    arms = {name: {k: arm[k] for k in keys if k in arm} for name, arm in lift["arms"].items()}
    render_png(lift, "docs/images/report.png", json.loads((args.work / "report" / "statement.json").read_text()))
    print(save("demo", {"wall_seconds": wall, "peak_resident_gib": peak, "baseline": lift["baseline"], "arms": arms}))


if __name__ == "__main__":
    main()
