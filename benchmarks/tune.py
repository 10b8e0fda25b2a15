"""recsys tune on Criteo attribution: from the shipped settings, and from the package's defaults.

    RECSYS_DATA_HOME=... python benchmarks/tune.py --work work/tune [--trials 20]

Each search's best file is then trained and the test part looked at once, beside the settings it started from. A run
that was interrupted goes on. Writes benchmarks/results/tune.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import save

from recsys.config import load_config
from recsys.experiment import run_training
from recsys.experiment.tuning import run_tuning

STARTS = {"shipped": [], "defaults": ["model={}", "training={epochs: 4}"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/tune"))
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    results = {}
    for name, overrides in STARTS.items():
        out = args.work / name
        config = load_config("criteo_attribution", overrides)
        found = run_tuning(config, out, trials=args.trials)
        tested = {}
        for key, tried in (("start", config), ("best", load_config(out / "best.yaml"))):
            test = run_training(tried, out / f"train-{key}")["test"]
            tested[key] = {k: test[k] for k in ("normalized_entropy", "auc", "calibration_ratio")}
        results[name] = {"overrides": overrides, "counts": found["counts"], "best": found["best"],
                         "validation_ne": {"start": found["experiment"], "best": found["best"]["value"]},
                         "test": tested, "training_seconds": sum(t["training_seconds"] for t in found["trials"])}
    print(save("tune", {"data": "criteo_attribution", "trials": args.trials, "searches": results}))


if __name__ == "__main__":
    main()
