"""Does the demo's interval cover the simulator's truth in worlds other than the shipped one?

    python benchmarks/demo_coverage.py --seeds 8 --work work/coverage

Runs the demo's experiment (without the slow encoder) for several seeds: other users, ads, texts, logs and models.
Writes benchmarks/results/demo_coverage.json.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from common import save

from recsys.config import load_config
from recsys.experiment import run_experiment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/coverage"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=100)
    args = parser.parse_args()
    arms = "arms={ids_only: {}, hashed_text: {content: hashed_text}, minilm: {content: minilm}}"
    rows = []
    for seed in range(args.first, args.first + args.seeds):
        out = args.work / str(seed)
        lift = run_experiment(load_config("marketplace", [f"seed={seed}", arms]), out)
        for name, arm in lift["arms"].items():
            if name != lift["baseline"]:
                rows.append({"seed": seed, "arm": name, **arm["lift"], "true_lift": arm["true_lift"],
                             "covers": arm["covers_truth"]})
                print(rows[-1], flush=True)
        shutil.rmtree(out)
    covered = sum(r["covers"] for r in rows)
    print(save("demo_coverage", {"intervals": rows, "covered": covered, "of": len(rows)}))


if __name__ == "__main__":
    main()
