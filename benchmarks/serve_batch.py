"""Batch scoring beside an eager float32 model that reads the same Parquet: rows a second, AUC, memory.

    python benchmarks/serve_batch.py [--rows 5000000] [--repeat 2] [--work work/serve_batch] [--json FILE]
    python benchmarks/serve_batch.py --memory 1000000 4000000      # peak memory by size of the input

The model is the DLRM of ``train_throughput.py`` (13 counts, 26 tables of dim 16, bottom 512-256-16, top 512-256-1),
trained on a million rows of ``criteo_shaped.py`` and published by ``recsys export`` (int8 tables, bfloat16 products);
the input is another stream of the same law, with an ``ad_id`` (text) beside the features.

    eager     the trainer's float32 model, PyTorch's threads on all cores, the project's own encoder, scores written
              as Parquet: what one would write by hand
    bundle    ``score_batch`` with a process a core: validation, shards, checksums, SCORES

``rows_per_second`` is over the whole call, from a loaded interpreter to the manifest: processes are started, the model
is loaded and the input is hashed within it. ``worker_rows_per_second`` is what the workers reach together while they
score. Contenders take turns, each run in a process of its own; the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP = 1 << 16


def prepare(work: Path) -> tuple[Path, Path]:
    """Model folder and bundle, made once."""
    from criteo_shaped import generate
    from train_throughput import MODEL, TRAINING

    from recsys.config import ModelConfig, TrainingConfig
    from recsys.serving.export import export_bundle
    from recsys.training.trainer import train_model

    data = work / "data"
    generate(1_000_000, data)
    train_model(data, ModelConfig(**MODEL), TrainingConfig(**TRAINING), work / "model", device="cpu", name="dlrm")
    export_bundle(work / "model", work / "bundle", data=data)
    return work / "model", work / "bundle"


def make_input(rows: int, path: Path) -> Path:
    """Rows of a stream that neither training nor validation has seen."""
    from criteo_shaped import CHUNK, World

    if path.is_file() and pq.read_metadata(path).num_rows == rows:
        return path
    world, writer = World(0), None
    for chunk in range(-(-rows // CHUNK)):
        table, _ = world.rows(7, chunk, min(CHUNK, rows - chunk * CHUNK))
        ads = pa.array(np.char.add("a", table["C3"].to_numpy().astype(str)))
        table = table.append_column("ad_id", ads)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=GROUP)
    assert writer is not None
    writer.close()
    return path


def eager(model: Path, source: Path, out: Path) -> dict[str, Any]:
    """The plain loop."""
    import torch

    from recsys.features.batches import to_batch
    from recsys.models.bundle import load_bundle

    began = time.perf_counter()
    bundle = load_bundle(model, "cpu")
    ranker, keys, writer = bundle.models[0], bundle.encoder.keys, None
    with torch.no_grad():
        file = pq.ParquetFile(source)
        needed = [n for n in file.schema_arrow.names if n in {*bundle.encoder.columns, "request_id", "ad_id", "click"}]
        for batch in file.iter_batches(16_384, columns=needed):
            table = pa.Table.from_batches([batch])
            p = torch.sigmoid(ranker(to_batch(bundle.encoder.encode(table), keys)))[:, 0].double().numpy()
            scores = table.select(["request_id", "ad_id", "click"]).append_column("p_click", pa.array(p))
            writer = writer or pq.ParquetWriter(out, scores.schema, compression="zstd")
            writer.write_table(scores)
    assert writer is not None
    writer.close()
    return {"seconds": time.perf_counter() - began, "auc": auc(pq.read_table(out, columns=["click", "p_click"]))}


def bundle(model: Path, source: Path, out: Path) -> dict[str, Any]:
    """score_batch, with the click carried along."""
    from recsys.serving.batch import read_scores, score_batch

    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    manifest = score_batch(model, source, out, keep=["click"], device="cpu")
    seconds = time.perf_counter() - began
    workers = os.cpu_count() or 1
    found = {"seconds": seconds, "rejected": manifest["rows"]["rejected"], "workers": workers,
             "worker_rows_per_second": manifest["rows"]["scored"] / manifest["facts"]["seconds"] * workers}
    return found | memory() | {"auc": auc(read_scores(out, ["click", "p_click"]))}


def memory() -> dict[str, float]:
    """Largest resident memory of this process and of any one of its workers, GiB."""
    import resource

    return {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "peak_memory_worker_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20}


def auc(scores: pa.Table) -> float:
    """Exact AUC, ties half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(scores["click"].to_numpy(), scores["p_click"].to_numpy()))


CONTENDERS = {"eager": eager, "bundle": bundle}


def in_own_process(name: str, model: Path, source: Path, out: Path, rows: int) -> dict[str, Any]:
    """Run one contender in a fresh process."""
    threads = str(os.cpu_count() or 1)
    command = [sys.executable, __file__, "--run", name, str(model), str(source), str(out)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"},
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    found["rows_per_second"] = rows / found["seconds"]
    print(name, f"{rows:,} rows", {k: round(v, 5) for k, v in found.items()}, flush=True)
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--repeat", type=int, default=2, help="runs of each; the median counts")
    parser.add_argument("--work", type=Path, default=Path("work/serve_batch"))
    parser.add_argument("--json", type=Path, help="where the result goes besides benchmarks/results/")
    parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS", help="only peak memory, by rows")
    parser.add_argument("--prepare", action="store_true", help="only make model, bundle and input")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        name, *paths = args.run
        print(json.dumps(CONTENDERS[name](*map(Path, paths))))
        return
    from common import save

    from recsys.stage import write_json

    args.work.mkdir(parents=True, exist_ok=True)
    model, published = prepare(args.work)
    sizes = args.memory or [args.rows]
    for rows in sizes:
        make_input(rows, args.work / f"in_{rows}.parquet")
    if args.prepare:
        return
    result: dict[str, Any] = {"rows": sizes}
    if args.memory:
        result["memory"] = {str(n): in_own_process("bundle", published, args.work / f"in_{n}.parquet",
                                                   args.work / "out", n) for n in sizes}
        save("serve_batch_memory", result)
    else:
        source = args.work / f"in_{args.rows}.parquet"
        runs: list[dict[str, Any]] = []
        for _ in range(args.repeat):  # in turns, so that a busy minute does not fall on one alone
            runs.append({"eager": in_own_process("eager", model, source, args.work / "eager.parquet", args.rows),
                         "bundle": in_own_process("bundle", published, source, args.work / "out", args.rows)})
        for name in CONTENDERS:
            result[name] = {k: median(r[name][k] for r in runs) for k in runs[0][name]}
        result["runs"] = runs
        result["times_eager"] = median(r["bundle"]["rows_per_second"] / r["eager"]["rows_per_second"] for r in runs)
        result["auc_change"] = result["bundle"]["auc"] - result["eager"]["auc"]
        manifest = json.loads((published / "manifest.json").read_text())
        result["differences"] = manifest["facts"]["differences"]
        save("serve_batch", result)
    if args.json is not None:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
