"""Clustered A/B with CUPED on ten million rows: this library beside tea-tasting alone, on the same file.

    python benchmarks/evaluate_ab.py --work work/evaluate_ab [--rows 10000000] [--repeat 3]

One million users see ten million impressions; click-through (clicks over rows) and value per user, CUPED on a column
from before. Each side runs in a process of its own and is timed from the file to the numbers, imports included.
tea-tasting analyses one row per user, so its side first sums the rows by user with Arrow, then calls
Experiment.analyze on the pandas table. On the Arrow table itself tea-tasting 1.14 with narwhals 2.29 takes some users'
deviations from the other arm's mean (a join that loses the order of rows above some size), so that its variances are
a little too large; how far off is measured, too, on one more run. Writes benchmarks/results/evaluate_ab.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METRICS = ("click/rows", "value")


def write_log(file: Path, rows: int) -> None:
    """Rows in random order: a user's impressions lie all over the file."""
    users = rows // 10
    rng = np.random.default_rng(0)
    activity = rng.gamma(2, 1, users)
    order, arm, rate = np.cumsum(activity) / activity.sum(), rng.integers(0, 2, users), rng.beta(2, 60, users)
    before = rng.poisson(activity * rate * 100).astype(float)
    names, arms = np.array([f"u{u:07d}" for u in range(users)]), np.array(["control", "treatment"])
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = None
    for _ in range(10):
        user = np.minimum(np.searchsorted(order, rng.random(rows // 10)), users - 1)
        click = rng.random(len(user)) < rate[user] * (1 + 0.03 * arm[user])
        table = pa.table({"user_id": names[user], "arm": arms[arm[user]], "click": click.astype(np.int8),
                          "value": click * rng.gamma(2, 1, len(user)), "before": before[user]})
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table, row_group_size=500_000)
    if writer is not None:
        writer.close()


def ours(file: Path) -> dict[str, Any]:
    from recsys.evaluation.ab import Plan, analyse, parse_metric, read_units

    metrics = [parse_metric(m, {"": "before"}) for m in METRICS]
    result = analyse(read_units(file, "arm", "user_id", metrics), metrics, Plan("control"), "user_id")
    lines = {m: result["metrics"][m]["variants"]["treatment"] for m in METRICS}
    return {f"{m} {kind}": {"control": line[kind]["baseline"], "treatment": line[kind]["variant"],
                            "low": line[kind]["absolute"]["low"], "high": line[kind]["absolute"]["high"],
                            "p_value": line[kind]["absolute"]["p_value"]}
            for m, line in lines.items() for kind in ("raw", "cuped")}


def peer(file: Path, arrow: bool = False) -> dict[str, Any]:
    import tea_tasting as tt

    users = pq.read_table(file).group_by(["user_id", "arm"]).aggregate(
        [("click", "sum"), ("value", "sum"), ("before", "max"), ([], "count_all")])
    users = users.rename_columns(["user_id", "arm", "click", "value", "before", "rows"])
    parts = {"click/rows": ("click", "rows"), "value": ("value", None)}
    metrics = {f"{m} raw": tt.RatioOfMeans(*parts[m]) for m in METRICS}
    metrics |= {f"{m} cuped": tt.RatioOfMeans(*parts[m], "before") for m in METRICS}
    found = tt.Experiment(metrics, variant="arm").analyze(
        users if arrow else users.to_pandas(), control="control")
    return {m: {"control": float(r.control), "treatment": float(r.treatment), "low": float(r.effect_size_ci_lower),
                "high": float(r.effect_size_ci_upper), "p_value": float(r.pvalue)} for m, r in found.items()}


def timed(side: str, file: Path) -> dict[str, Any]:
    """Run a side in a new process: seconds of wall and processor time, peak resident memory, its numbers."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--side", side, "--file", str(file)], check=True,
                          capture_output=True, text=True)
    return {"seconds": time.perf_counter() - began, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/evaluate_ab"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "peer", "peer_arrow"))
    parser.add_argument("--file", type=Path)
    args = parser.parse_args()
    if args.side:
        import resource

        numbers = ours(args.file) if args.side == "ours" else peer(args.file, args.side == "peer_arrow")
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({"numbers": numbers, "processor_seconds": used.ru_utime + used.ru_stime,
                          "peak_resident_gib": used.ru_maxrss / 2**20}))
        return
    from common import save

    file = args.work / f"log{args.rows}.parquet"
    if not file.is_file():
        write_log(file, args.rows)
    runs: dict[str, list[dict[str, Any]]] = {"recsys": [], "tea_tasting": []}
    for _ in range(args.repeat):  # in turns, so that a busy machine slows both
        for name, side in (("recsys", "ours"), ("tea_tasting", "peer")):
            runs[name].append(timed(side, file))
            print(name, {k: round(v, 2) for k, v in runs[name][-1].items() if k != "numbers"}, flush=True)
    numbers = {name: found[0]["numbers"] for name, found in runs.items()}
    arrow = timed("peer_arrow", file)["numbers"]
    off, arrow_off = (max(abs(other[m][k] - v) / max(abs(v), 1e-300) for m, line in numbers["tea_tasting"].items()
                          for k, v in line.items() if k != "p_value") for other in (numbers["recsys"], arrow))
    middle = {name: {k: median(r[k] for r in found) for k in ("seconds", "processor_seconds", "peak_resident_gib")}
              for name, found in runs.items()}
    ratio = {k: middle["tea_tasting"][k] / middle["recsys"][k] for k in middle["recsys"]}
    print(save("evaluate_ab", {"rows": args.rows, "file_mib": file.stat().st_size / 2**20, "median": middle,
                               "tea_tasting_over_recsys": ratio, "largest_relative_difference": off,
                               "tea_tasting_on_arrow_table_off_by": arrow_off,
                               "numbers": numbers["recsys"]}))


if __name__ == "__main__":
    main()
