"""IPS, SNIPS and DR with betting intervals on long logs: seconds and memory, and beside obp on the same rows.

    python benchmarks/evaluate.py [--rows 10000000] [--obp-python PYTHON] [--obp-rows 200000]

Rows are drawn once from a known bandit with ads 0..9: a uniformly random log of one slot per request, and a
deterministic target policy (one POLICY row per request) with the target's expected click. ``recsys ope`` reads both
Parquet files from disk. obp 0.4.1 (in an environment of its own, named by --obp-python, with the alias np.int that it
uses put back) gets the same rows as numpy arrays in memory, its action_dist of shape (rows, 10, 1) made beforehand and
not timed. Its bootstrap intervals are timed at its estimators' default of 10,000 draws (what is compared) and at 100,
and its point estimates alone. Every run is a process of its own, so that peak memory is its own; ours include importing
and reading the files. The median of --repeats runs of ours is compared with one run of obp.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ADS, BLOCK = 10, 1_000_000

OURS = """
import json, re, sys, time
started = time.perf_counter()
from recsys.evaluation.offpolicy.evaluate import evaluate
result = evaluate(sys.argv[1], sys.argv[2], estimators=["ips", "snips", "dr"], interval="betting")
print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time(),
                  "estimators": result["estimators"],
                  "peak_gib": int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20}))
"""

OBP = """
import json, re, sys, time, types
import numpy as np
np.int = int
try:
    import torch
except ImportError:  # obp imports it for policies that are not used here
    sys.modules["torch"] = torch = types.ModuleType("torch")
    torch.nn, torch.optim = types.ModuleType("torch.nn"), types.ModuleType("torch.optim")
    torch.Tensor, torch.nn.Module = object, object
    sys.modules["torch.nn"] = sys.modules["torch.nn.functional"] = torch.nn
    torch.nn.functional = torch.nn
    sys.modules["torch.optim"] = torch.optim
    torch.utils = sys.modules["torch.utils"] = types.ModuleType("torch.utils")
    torch.utils.data = sys.modules["torch.utils.data"] = types.ModuleType("torch.utils.data")
    torch.utils.data.Dataset = torch.utils.data.DataLoader = object
    torch.optim.lr_scheduler = sys.modules["torch.optim.lr_scheduler"] = types.ModuleType("torch.optim.lr_scheduler")
from obp.ope.estimators import DoublyRobust, InverseProbabilityWeighting, SelfNormalizedInverseProbabilityWeighting
data = np.load(sys.argv[1])
n = len(data["action"])
action_dist = np.zeros((n, len(data["model"]), 1))
action_dist[np.arange(n), data["target"], 0] = 1.0
q = np.repeat(data["model"][None, :, None], n, axis=0)
common = dict(reward=data["reward"], action=data["action"], pscore=data["pscore"], action_dist=action_dist,
              position=np.zeros(n, dtype=int))
made = {}
started = time.perf_counter()
for name, one in (("ips", InverseProbabilityWeighting()), ("snips", SelfNormalizedInverseProbabilityWeighting()),
                  ("dr", DoublyRobust())):
    extra = {"estimated_rewards_by_reg_model": q} if name == "dr" else {}
    made[name] = {"estimate": float(one.estimate_policy_value(**common, **extra))}
points = time.perf_counter() - started
seconds = {}
for draws in (100, 10_000):
    started = time.perf_counter()
    for name, one in (("ips", InverseProbabilityWeighting()), ("snips", SelfNormalizedInverseProbabilityWeighting()),
                      ("dr", DoublyRobust())):
        extra = {"estimated_rewards_by_reg_model": q} if name == "dr" else {}
        ends = one.estimate_interval(**common, **extra, n_bootstrap_samples=draws, random_state=0)
        made[name]["low"], made[name]["high"] = [float(v) for k, v in ends.items() if "CI" in k]
    seconds[draws] = time.perf_counter() - started
print(json.dumps({"seconds": seconds[10_000], "seconds_100_draws": seconds[100], "seconds_points_only": points,
                  "estimators": made,
                  "peak_gib": int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20}))
"""


def write_rows(folder: Path, rows: int) -> None:
    """log.parquet, policy.parquet and, for obp, rows.npz; drawn in blocks."""
    world = np.random.default_rng(0)
    rate = world.uniform(0.002, 0.03, ADS)
    model = np.round(rate * np.exp(world.normal(0, 0.3, ADS)), 5)
    writers: dict[str, pq.ParquetWriter] = {}
    kept: dict[str, list[np.ndarray]] = {"action": [], "reward": [], "target": []}
    names = pa.array([f"ad{a}" for a in range(ADS)])
    for start in range(0, rows, BLOCK):
        rng, n = np.random.default_rng([1, start]), min(BLOCK, rows - start)
        action, target = rng.integers(0, ADS, n), rng.integers(0, ADS, n)
        reward = (rng.random(n) < rate[action]).astype(np.int8)
        ids = pc.binary_join_element_wise("r", pa.array(np.arange(start, start + n)).cast(pa.string()), "")
        slot = pa.array(np.zeros(n), pa.int32())
        tables = {
            "log": pa.table({"impression_id": ids, "request_id": ids, "slot": slot, "ad_id": names.take(action),
                             "propensity": np.full(n, 1 / ADS), "click": reward}),
            "policy": pa.table({"request_id": ids, "slot": slot, "ad_id": names.take(target),
                                "probability": np.ones(n), "expected_click": model[target]}),
        }
        for name, table in tables.items():
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", table.schema)
            writers[name].write_table(table)
        for name, values in (("action", action), ("reward", reward), ("target", target)):
            kept[name].append(values)
    for writer in writers.values():
        writer.close()
    np.savez(folder / "rows.npz", model=model, pscore=np.full(rows, 1 / ADS),
             **{name: np.concatenate(values) for name, values in kept.items()})


def timed(python: str, code: str, *arguments: Path, repeats: int) -> dict[str, Any]:
    """Median run of a script in a process of its own."""
    runs = []
    for _ in range(repeats):
        done = subprocess.run([python, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit {done.returncode}"}
        runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    runs.sort(key=lambda r: r["seconds"])
    return {**runs[len(runs) // 2], "all_seconds": [round(r["seconds"], 2) for r in runs]}


def run(rows: int, obp_rows: int, obp_python: str | None, repeats: int) -> dict[str, Any]:
    """Everything this benchmark measures."""
    results: dict[str, Any] = {"rows": rows, "repeats": repeats}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, rows)
        files = folder / "log.parquet", folder / "policy.parquet"
        results["ours"] = timed(sys.executable, OURS, *files, repeats=repeats)
        if obp_python is not None:
            write_rows(folder, obp_rows)
            side: dict[str, Any] = {
                "rows": obp_rows,
                "ours": timed(sys.executable, OURS, *files, repeats=repeats),
                "obp": timed(obp_python, OBP, folder / "rows.npz", repeats=1)}
            if "seconds" in side["ours"] and "seconds" in side["obp"]:
                side["times_obp"] = side["obp"]["seconds"] / side["ours"]["seconds"]
                side["largest_difference"] = max(
                    abs(side["ours"]["estimators"][n]["estimate"] - e["estimate"])
                    for n, e in side["obp"]["estimators"].items())
            results["beside_obp"] = side
    return results


def main() -> None:
    from common import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--obp-python", help="interpreter of an environment with obp==0.4.1")
    parser.add_argument("--obp-rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = run(options.rows, options.obp_rows, options.obp_python, options.repeats)
    print(json.dumps(results, indent=2))
    print(save("evaluate", results))


if __name__ == "__main__":
    main()
