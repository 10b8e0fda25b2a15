"""Hillstrom's e-mail experiment: both e-mails against none, with and without CUPED on history, and the Qini of a model.

    RECSYS_DATA_HOME=... python benchmarks/hillstrom.py --work work/hillstrom

Lifts of visit, conversion and spend by ``recsys ab``'s functions, Holm over the six comparisons. Then, per e-mail, a
model of uplift on recency and history (one boosted model per arm, five folds, so that no customer is scored by a model
that saw them), its Qini and AUUC over a random order, beside the same for recency and history themselves.
Writes benchmarks/results/hillstrom.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import save
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold

from recsys.contracts import IMPRESSIONS, read_parquet
from recsys.datasets.prepare import prepare
from recsys.evaluation.ab import Plan, aa_test, analyse, parse_metric, read_units
from recsys.evaluation.uplift import uplift_report

CONTROL, NAMES = "No E-Mail", {"click": "visit", "conversion": "conversion", "value": "spend"}


def cross_fitted_uplift(x: np.ndarray, y: np.ndarray, treated: np.ndarray, seed: int = 0) -> np.ndarray:
    """Predicted uplift of each customer by a model per arm, fitted on the other four folds."""
    score = np.empty(len(y))
    for train, held in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, treated * 2 + y):
        rates = []
        for arm in (1, 0):
            rows = train[treated[train] == arm]
            model = HistGradientBoostingClassifier(max_iter=60, learning_rate=0.05, max_leaf_nodes=8,
                                                   min_samples_leaf=200, random_state=seed)
            rates.append(model.fit(x[rows], y[rows]).predict_proba(x[held])[:, 1])
        score[held] = rates[0] - rates[1]
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/hillstrom"))
    args = parser.parse_args()
    prepare("hillstrom", args.work)
    file = args.work / "impressions.parquet"
    metrics = [parse_metric(name, {"": "history"}) for name in NAMES]
    units = read_units(file, "arm_id", "user_id", metrics)
    result = analyse(units, metrics, Plan(CONTROL), "user_id")
    result["aa"] = {m.name: aa_test(units, m) for m in metrics}
    for name, title in NAMES.items():
        for arm, line in result["metrics"][name]["variants"].items():
            raw, cuped = (line[k]["relative"] for k in ("raw", "cuped"))
            print(f"{title:<11}{arm:<14} {line['raw']['baseline']:.5f} -> {line['raw']['variant']:.5f}  "
                  f"{raw['estimate']:+.1%} ({raw['low']:+.1%} to {raw['high']:+.1%}); CUPED {cuped['estimate']:+.1%} "
                  f"({cuped['low']:+.1%} to {cuped['high']:+.1%}), variance "
                  f"-{line['cuped']['variance_reduction']:.2%}, adjusted p {line['p_adjusted']:.2g}")
    table = read_parquet(file, IMPRESSIONS)
    arm = np.array(table["arm_id"].to_pylist())
    columns = {c: table[c].to_numpy().astype(np.float64) for c in ("recency", "history", *NAMES)}
    qini: dict[str, Any] = {}
    for mail in sorted(set(arm) - {CONTROL}):
        rows = np.flatnonzero((arm == mail) | (arm == CONTROL))
        treated = (arm[rows] == mail).astype(int)
        x = np.column_stack([columns["recency"][rows], columns["history"][rows]])
        score = cross_fitted_uplift(x, columns["click"][rows].astype(int), treated)
        orders = {"model": score, "recency (latest first)": -x[:, 0], "history (largest first)": x[:, 1]}
        qini[mail] = {NAMES[outcome]: {n: uplift_report(columns[outcome][rows], treated, s) for n, s in orders.items()}
                      for outcome in ("click", "value")}
        for outcome, found in qini[mail].items():
            print(mail, outcome, {n: [round(r["qini"][k], 6) for k in ("estimate", "low", "high")]
                                  for n, r in found.items()})
    print(save("hillstrom", {"names": NAMES, **{k: result[k] for k in ("plan", "rows", "arms", "health", "metrics",
                                                                       "aa")}, "uplift_of_visit_model": qini}))


if __name__ == "__main__":
    main()
