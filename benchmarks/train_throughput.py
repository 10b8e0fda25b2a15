"""One epoch of a DLRM from Parquet on disk to test metrics, beside peers on the same rows and the same cores.

    python benchmarks/train_throughput.py [--json FILE] [--work work/throughput] [--repeat 3]

Data: benchmarks/criteo_shaped.py, a million rows (or --data DIR with train.parquet, test.parquet, dataset.json of the
same columns). DLRM dot, dim 16, bottom 512-256-16, top 512-256-1, batch 4096, bfloat16. Every contender runs in a
process of its own and is timed from its first look at the files to its test AUC, imports left out; ours is repeated
with both ways of waiting and the better median reported, peers run once between our runs. Peers come from PyPI into
work/throughput/peers.

    --memory     also 1 M and 10 M rows: peak memory of the process
    --epochs3    also every shipped ranker for three epochs: the best AUC any reaches

``samples_per_second`` is end to end: training rows over the whole time, with reading the data twice (statistics of the
counts, then training), the test part, and writing the model folder. ``share_of_matmul_ceiling`` is the arithmetic of
linear layers and dot products, forward and backward, over the loop's time and over what a large bfloat16 matrix product
reaches in the same process. Settings were chosen on valid.parquet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
PEERS = ("torchrec_plain", "torchrec_fused", "deepctr_torch_dcn")
MODEL = {"embedding_dim": 16, "bottom": [512, 256], "top": [512, 256], "top_input": "dense"}
TRAINING = {"epochs": 1, "batch_size": 4096, "precision": "bfloat16", "validation_share": 0.0,
            "shuffle_window": 1 << 16, "checkpoint_seconds": 3600.0, "sparse_lr": 0.03, "dense_lr": 0.0007,
            "embedding_init": 0.001,
            "dense_schedule": {"decay": "linear", "final": 0.1}}
# How OpenMP's threads wait between two loops: asleep, the project's default, which other work on the same cores does
# not slow down tenfold, or spinning, which on cores of one's own saves waking them hundreds of times a step.
WAITING = ("ACTIVE", "PASSIVE")
RANKERS: dict[str, dict[str, Any]] = {
    "dlrm": {},
    "dcnv2": {"kind": "dcnv2", "bottom": [64], "cross_layers": 3, "cross_rank": 64},
    "finalmlp": {"kind": "finalmlp", "bottom": [64], "streams": [[256, 128], [256, 128]], "gates": [64]},
}
LONGER = {"epochs": 3, "validation_share": 0.05}


def ours(data: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train in this process; called in one of its own."""
    import resource
    import shutil
    import time

    import torch.distributed.checkpoint  # noqa: F401  (imports are not timed, nor are the peers')

    from recsys.config import ModelConfig, TrainingConfig
    from recsys.training.trainer import train_model

    model, training = ModelConfig(**settings["model"]), TrainingConfig(**settings["training"])
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    metrics = train_model(data, model, training, out, seed=settings.get("seed", 0), device="cpu")
    seconds = time.perf_counter() - began
    samples = metrics["usage"]["samples"]
    return {"samples_per_second": samples / seconds, "loop_samples_per_second": metrics["samples_per_second"],
            "seconds": seconds, "auc": metrics["test"]["auc"], "log_loss": metrics["test"]["log_loss"],
            "share_of_matmul_ceiling": metrics["share_of_matmul_ceiling"],
            "input_stall_share": metrics["input_stall_share"], "test": metrics["test"],
            "best_epoch": metrics["best_epoch"][0],
            "validation_auc": [e["validation"]["auc"] for e in metrics["epochs"][0] if "validation" in e],
            "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def in_own_process(data: Path, work: Path, threads: int, settings: dict[str, Any], waiting: str) -> dict[str, Any]:
    """Run :func:`ours` in a fresh process."""
    command = [sys.executable, __file__, "--run", json.dumps(settings), "--data", str(data), "--work", str(work)]
    return {"waiting": waiting, **_last_line(command, threads, OMP_WAIT_POLICY=waiting)}


def peer(name: str, data: Path, work: Path, threads: int) -> dict[str, Any]:
    """Run one peer in a process, and where it comes from PyPI an environment, of its own."""
    from environment import peers_python

    script, python, more = name, sys.executable, []
    if name.startswith("torchrec"):
        script, more = "torchrec_plain", [name.removeprefix("torchrec_")]
    else:
        python = str(peers_python(work / "peers"))
    return _last_line([python, str(HERE / "peers" / f"{script}.py"), str(data), str(threads), *more], threads)


def _last_line(command: list[str], threads: int, **more: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, help="a split data set instead of a generated one")
    parser.add_argument("--work", type=Path, default=Path("work/throughput"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="where the result goes besides benchmarks/results/")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--epochs3", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="training.key=value", help="try other settings; "
                        "the result is printed and not kept")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(ours(args.data, args.work, json.loads(args.run))))
        return
    from common import save
    from criteo_shaped import generate

    data, truth = args.data, None
    if data is not None and not (data / "dataset.json").is_file():
        data = adopted(data, args.work / "adopted")
    if data is None:
        data = args.work / f"criteo_shaped_{args.rows}"
        truth = generate(args.rows, data)["auc"]
    settings = changed({"model": MODEL, "training": TRAINING}, args.set)
    peers = [] if args.no_peers or args.set else list(PEERS)
    runs, found = [], {}
    for turn in range(max(args.repeat, len(peers))):  # in turns, so that a busy minute does not fall on one alone
        for waiting in WAITING if turn < args.repeat else ():
            runs.append(in_own_process(data, args.work / "ours", args.threads, settings, waiting))
            print(line(f"recsys, {waiting.lower()}", runs[-1]), flush=True)
        if turn < len(peers):
            found[peers[turn]] = peer(peers[turn], data, args.work, args.threads)
            print(line(peers[turn], found[peers[turn]]), flush=True)
    by_waiting = {w: {k: median(r[k] for r in runs if r["waiting"] == w) for k in (
        "samples_per_second", "loop_samples_per_second", "share_of_matmul_ceiling", "input_stall_share", "auc",
        "log_loss", "seconds", "peak_memory_gib")} for w in WAITING}
    waiting = max(WAITING, key=lambda w: by_waiting[w]["samples_per_second"])
    result: dict[str, Any] = {**by_waiting[waiting], "waiting": waiting, "by_waiting": by_waiting}
    result |= {"oracle_auc": truth, "threads": args.threads, "settings": settings, "runs": runs, "peers": found,
               "times_as_fast_as": {n: result["samples_per_second"] / p["samples_per_second"]
                                    for n, p in found.items()}}
    if args.memory:
        result["memory"] = memory(args, settings, waiting)
    if args.epochs3:
        result["three_epochs"] = three_epochs(data, args, settings, waiting)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if not isinstance(v, list | dict)}, indent=2))
    if not args.set and args.data is None:
        print(save("train_throughput", result))


def adopted(data: Path, out: Path) -> Path:
    """A folder of train.parquet and test.parquet (I1..., C1... from 0 up, label or click) as a split data set.

    Row groups become those that this project writes: one of all rows, as some writers make it, is no stream.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from criteo_shaped import ROW_GROUP, about

    out.mkdir(parents=True, exist_ok=True)
    largest: dict[str, int] = {}
    for part in ("train", "test"):
        file, writer = pq.ParquetFile(data / f"{part}.parquet"), None
        for batch in file.iter_batches(ROW_GROUP):
            names = ["click" if n == "label" else n for n in batch.schema.names]
            batch = batch.rename_columns(names)
            for name in (n for n in names if n[0] == "C"):
                largest[name] = max(largest.get(name, 0), pc.max(batch[name]).as_py())
            writer = writer or pq.ParquetWriter(out / f"{part}.parquet", batch.schema, compression="zstd")
            writer.write_batch(batch, row_group_size=ROW_GROUP)
        if writer is not None:
            writer.close()
    about(out, {n: m + 1 for n, m in largest.items()})
    return out


def memory(args: argparse.Namespace, settings: dict[str, Any], waiting: str) -> dict[str, Any]:
    """Peak memory of one epoch over a million and over ten million rows."""
    from criteo_shaped import generate

    peaks = {}
    for rows in (1_000_000, 10_000_000):
        folder = args.work / f"criteo_shaped_{rows}"
        generate(rows, folder)
        run = in_own_process(folder, args.work / "ours", args.threads, settings, waiting)
        peaks[str(rows)] = {k: run[k] for k in ("peak_memory_gib", "samples_per_second", "auc", "input_stall_share")}
        print(line(f"{rows:,} rows", run), f"{run['peak_memory_gib']:.2f} GiB", flush=True)
    return peaks


def three_epochs(data: Path, args: argparse.Namespace, settings: dict[str, Any], waiting: str) -> dict[str, Any]:
    """Test AUC of every shipped ranker from three epochs: of the epoch that is best on a twentieth held out."""
    found = {}
    for name, own in RANKERS.items():
        longer = merged(settings, {"model": own, "training": LONGER})
        run = in_own_process(data, args.work / "ours", args.threads, longer, waiting)
        found[name] = {k: run[k] for k in ("auc", "log_loss", "samples_per_second", "best_epoch", "validation_auc")}
        found[name]["model"] = own
        print(line(f"{name}, 3 epochs", run), flush=True)
    return found


def changed(settings: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Settings with ``a.b=c`` overrides."""
    from recsys.config import apply_overrides

    return apply_overrides(merged(settings, {}), overrides)


def merged(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Two levels of settings, the second over the first."""
    sections = {**settings, **more}
    return {k: {**settings.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}


def line(name: str, run: dict[str, Any]) -> str:
    text = f"{name:<20} {run['samples_per_second']:>9,.0f} samples/s   AUC {run['auc']:.4f}"
    if "loop_samples_per_second" in run:
        text += (f"   loop {run['loop_samples_per_second']:,.0f}/s, {run['share_of_matmul_ceiling']:.0%} of "
                 f"the ceiling, stalled {run['input_stall_share']:.1%}")
    return text


if __name__ == "__main__":
    main()
