"""Criteo attribution: the shipped DLRM beside gradient boosting on the same rows, several random splits.

    RECSYS_DATA_HOME=... python benchmarks/criteo_attribution.py --work work/criteo     # pip install lightgbm, too

LightGBM where it is installed, else scikit-learn's histogram gradient boosting; both on native categories. The
settings of both were chosen by cross-validation on this file. Writes benchmarks/results/criteo_attribution.json.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import save
from sklearn.metrics import log_loss, roc_auc_score

from recsys.config import load_config
from recsys.contracts import read_parquet
from recsys.experiment import run_training

FEATURES = ("cat1", "cat4", "cat6", "cat8", "cat9")


def boosted(train: pa.Table, test: pa.Table) -> tuple[str, dict[str, float]]:
    """Name and metrics of the gradient-boosted peer."""
    known = {f: sorted(set(train[f].to_pylist())) for f in FEATURES}
    x, held = (np.column_stack([_codes(t[f].to_pylist(), known[f]) for f in FEATURES]) for t in (train, test))
    y, truth = (np.asarray(t["click"].to_pylist()) for t in (train, test))
    if importlib.util.find_spec("lightgbm"):
        from lightgbm import LGBMClassifier

        name = "lightgbm"
        model = LGBMClassifier(n_estimators=100, learning_rate=0.05, num_leaves=15, verbose=-1, random_state=0)
        model.fit(x, y, categorical_feature=list(range(len(FEATURES))))
    else:
        from sklearn.ensemble import HistGradientBoostingClassifier

        name = "sklearn"
        model = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.05, max_leaf_nodes=31, random_state=0,
                                               categorical_features=list(range(len(FEATURES))))
        model.fit(x, y)
    p = model.predict_proba(held)[:, 1]
    rate = truth.mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return name, {"auc": float(roc_auc_score(truth, p)), "normalized_entropy": float(log_loss(truth, p) / entropy)}


def _codes(values: list[str], known: list[str]) -> np.ndarray:
    at = {v: i for i, v in enumerate(known)}
    return np.array([at.get(v, len(known)) for v in values])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/criteo"))
    parser.add_argument("--splits", type=int, default=5)
    args = parser.parse_args()
    rows, peer = [], ""
    for seed in range(args.splits):
        out = args.work / str(seed)
        metrics = run_training(load_config("criteo_attribution", [f"seed={seed}"]), out)
        peer, other = boosted(*(read_parquet(out / "split" / f"{part}.parquet") for part in ("train", "test")))
        ours = {k: metrics["test"][k] for k in ("auc", "normalized_entropy", "calibration_ratio")}
        rows.append({"seed": seed, "recsys": ours, peer: other,
                     "samples_per_second": metrics["samples_per_second"]})
        print(rows[-1], flush=True)
    means = {m: {k: float(np.mean([r[m][k] for r in rows])) for k in ("auc", "normalized_entropy")}
             for m in ("recsys", peer)}
    ahead = sum(r["recsys"]["normalized_entropy"] < r[peer]["normalized_entropy"] for r in rows)
    print(save("criteo_attribution", {"splits": rows, "mean": means, "lower_entropy_in": f"{ahead} of {len(rows)}"}))


if __name__ == "__main__":
    main()
