"""Recall of held-out clicks: two towers beside popularity, the mean content of the history, and chance.

    python benchmarks/two_tower.py [--seeds 3]

Simulated marketplaces as the demo's, split by time: among all ads, is the ad that a test user clicked among the k that
the retriever puts first? And of the ads without a click in training alone. The retriever has its default settings.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from recsys.config import load_config
from recsys.experiment import run_retriever

WITHOUT_TRAINING = ("popularity", "history", "random")


def main() -> None:
    """Print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="worlds, each with its own simulation")
    arguments = parser.parse_args()
    worlds: list[dict[str, Any]] = []
    for seed in range(1, arguments.seeds + 1):
        config = load_config("marketplace", [f"seed={seed}", "retrievers={towers: {content: minilm}}"])
        with tempfile.TemporaryDirectory() as folder:
            worlds.append(run_retriever(config, Path(folder), "towers"))
        print(seed, worlds[-1], flush=True)
    means = {name: {part: {str(k): float(np.mean([(w if name == "two_tower" else w[name])[part][k] for w in worlds]))
                           for k in worlds[0][part]} for part in ("recall", "cold_recall")}
             for name in ("two_tower", *WITHOUT_TRAINING)}
    save("two_tower", {"worlds": worlds, "mean": means})
    for name, found in means.items():
        print(f"{name:<12}", *(f"{part} @{k} {v:.4f}" for part, of in found.items() for k, v in of.items()))


if __name__ == "__main__":
    main()
