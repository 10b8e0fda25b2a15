"""Where a step's time goes on a CPU, by PyTorch's operators: which of them a kernel of our own could serve.

    python benchmarks/kernels_profile.py [--steps 30] [--threads 2]     # writes benchmarks/results/kernels_profile.json

Steps of 4,096 rows of criteo_shaped.py, settings of train_throughput.py (bfloat16 products):

    dlrm, dcnv2     training
    history         the DLRM with attention over 20 items of a list feature, a quarter of the rows with none
    served          scoring by a bundle of `recsys export` (int8 tables): encoding, arithmetic, calibration

``milliseconds`` are medians of steps that nothing watches; ``share`` is an operator's own time (``self`` in
torch.profiler, children left out) of the steps that are watched, and what no operator claims is Python and autograd.
Operators below half a percent are left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import save
from criteo_shaped import CARDINALITIES, COUNTS, World, generate
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from train_throughput import MODEL, RANKERS, TRAINING

from recsys.config import ModelConfig, TrainingConfig
from recsys.features.batches import Batch
from recsys.memory import keep_freed_memory
from recsys.models.build import KINDS
from recsys.models.embeddings import SparseOptions, Table, make_embeddings
from recsys.models.ranker import Inputs
from recsys.serving.export import export_bundle
from recsys.serving.scorer import Scorer
from recsys.training.optimizers import make_optimizer
from recsys.training.step import PlainStepper
from recsys.training.trainer import train_model

BATCH, LENGTH, BATCHES = 4096, 20, 8
FEATURES = [f"C{i + 1}" for i in range(len(CARDINALITIES))]


def batches(history: bool) -> list[Batch]:
    """Of the law's rows; with ``history``, lists of up to LENGTH more ids of C3."""
    table, _ = World(0).rows(0, 0, BATCH * BATCHES)
    rng, found = np.random.default_rng(0), []
    for i in range(BATCHES):
        rows = table.slice(i * BATCH, BATCH)
        ids = np.stack([rows[c].to_numpy() for c in FEATURES]).astype(np.int32)
        lengths, keys = np.ones_like(ids), list(FEATURES)
        if history:
            keys += [f"history@{k}" for k in range(LENGTH)]
            ids = np.concatenate([ids, ids[2][rng.integers(0, BATCH, (LENGTH, BATCH))]])
            long = np.maximum(rng.integers(-LENGTH // 3, LENGTH + 1, BATCH), 0)
            lengths = np.concatenate([lengths, (long > np.arange(LENGTH)[:, None]).astype(np.int32)])
        click = rows["click"].to_numpy().astype(np.float32)[:, None]
        found.append(Batch(
            dense=torch.from_numpy(np.stack([rows[f"I{k + 1}"].to_numpy() for k in range(COUNTS)], 1)),
            sparse=KeyedJaggedTensor(keys=keys, values=torch.from_numpy(ids[lengths > 0]),
                                     lengths=torch.from_numpy(lengths.reshape(-1)), stride=BATCH),
            content_row=torch.zeros(BATCH, dtype=torch.int64),
            history_content=(torch.zeros(0, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.int64)),
            trials=torch.ones(BATCH, 1), successes=torch.from_numpy(click), weight=torch.ones(BATCH)))
    return found


def training(history: bool = False, **settings: Any) -> Callable[[], Any]:
    """One optimizer step."""
    names = [f"history@{k}" for k in range(LENGTH)] if history else []
    more = {"history": "attention", "history_length": LENGTH} if history else {}
    config, options = ModelConfig(**MODEL | settings | more), TrainingConfig(**TRAINING)
    # The list's items are of C3's table; C3 is the ad that they are compared with.
    tables = [Table(c, n, (c, *names) if c == "C3" else (c,)) for c, n in zip(FEATURES, CARDINALITIES, strict=True)]
    keys = [*FEATURES, *names]
    embeddings = make_embeddings("fused", tables, config.embedding_dim, SparseOptions.of(options), torch.device("cpu"))
    order = {f: "ad_id" if f == "C3" and history else f for f in keys}
    model = KINDS[config.kind](Inputs(embeddings, tuple(order[f] for t in tables for f in t.features), COUNTS, None,
                                      False), config)
    steps = PlainStepper(model, make_optimizer(model, options), options).run(cycle(batches(history)))
    return lambda: next(steps)


def scoring(work: Path) -> Callable[[], Any]:
    """Probabilities of one table of rows."""
    data = work / "data"
    generate(60_000, data)
    train_model(data, ModelConfig(**MODEL), TrainingConfig(**TRAINING), work / "model", device="cpu", name="dlrm")
    export_bundle(work / "model", work / "bundle", data=data, program=False)
    scorer = Scorer.load(work / "bundle", "cpu")
    table, _ = World(0).rows(7, 0, BATCH * BATCHES)
    parts: Iterator[Any] = cycle([table.slice(i * BATCH, BATCH) for i in range(BATCHES)])
    return lambda: scorer.score(next(parts))


def profiled(run: Callable[[], Any], steps: int) -> dict[str, Any]:
    """Milliseconds a step, and shares by operator."""
    taken = []
    for i in range(steps + 5):
        began = time.perf_counter()
        run()
        if i >= 5:
            taken.append(time.perf_counter() - began)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        began = time.perf_counter()
        for _ in range(steps):
            run()
        watched = time.perf_counter() - began
    events = [e for e in profile.key_averages() if e.self_cpu_time_total > 0]
    shares = {e.key: e.self_cpu_time_total / 1e6 / watched for e in events}
    kept = sorted((k for k, s in shares.items() if s >= 0.005), key=lambda k: -shares[k])
    calls = {e.key: e.count / steps for e in events}
    return {"milliseconds": 1e3 * median(taken), "watched_milliseconds": 1e3 * watched / steps,
            "operators": [{"operator": k, "share": shares[k], "calls_a_step": calls[k]} for k in kept],
            "in_operators": sum(shares.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as train_model does
    results = {}
    with tempfile.TemporaryDirectory() as work:
        made: dict[str, Callable[[], Callable[[], Any]]] = {
            "dlrm": training, "dcnv2": lambda: training(**RANKERS["dcnv2"]), "history": lambda: training(history=True),
            "served": lambda: scoring(Path(work))}
        for name, make in made.items():
            torch.manual_seed(0)
            results[name] = profiled(make(), args.steps)
            print(f"{name}: {results[name]['milliseconds']:.1f} ms", flush=True)
            for row in results[name]["operators"]:
                print(f"    {row['share']:6.1%}  {row['calls_a_step']:6.1f} x  {row['operator']}", flush=True)
    save("kernels_profile", {"threads": args.threads, "steps": args.steps, "batch": BATCH, "workloads": results})


if __name__ == "__main__":
    main()
