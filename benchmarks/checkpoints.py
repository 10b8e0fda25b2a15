"""What a checkpoint costs a training run: the copy that it waits for, the write beside it, the check at a resume.

    python benchmarks/checkpoints.py [--rows 10000000]

26 tables of dim 16 with row-wise Adagrad and a DLRM's dense part with AdamW, on a CPU. A checkpoint is taken in the
middle of steps that go on while it is written.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import save

from recsys.config import ModelConfig, TrainingConfig
from recsys.features.batches import Batch, gather
from recsys.features.encoded import Encoded, Jagged
from recsys.memory import keep_freed_memory
from recsys.models.build import KINDS
from recsys.models.embeddings import SparseOptions, Table, make_embeddings
from recsys.models.ranker import Inputs, Ranker
from recsys.training.checkpoint import Checkpoints, TrainState
from recsys.training.checkpoint_storage import verify
from recsys.training.optimizers import make_optimizer
from recsys.training.step import PlainStepper
from recsys.training.world import World

FEATURES, DENSE, BATCH, STEPS = [f"C{i}" for i in range(26)], 13, 4096, 20
TRAINING = TrainingConfig(precision="bfloat16")


def make_ranker(rows: int) -> Ranker:
    """A DLRM whose tables have so many rows together."""
    config = ModelConfig(bottom=(512, 256), top=(512, 256), top_input="dense")
    tables = [Table(name, rows // len(FEATURES), (name,)) for name in FEATURES]
    embeddings = make_embeddings("fused", tables, config.embedding_dim, SparseOptions(), torch.device("cpu"))
    return KINDS["dlrm"](Inputs(embeddings, tuple(FEATURES), DENSE), config)


def make_batch(rows: int) -> Batch:
    """Random ids and labels."""
    r = np.random.default_rng(0)
    data = Encoded(r.normal(size=(BATCH, DENSE)).astype(np.float32),
                   r.integers(0, rows // len(FEATURES), (BATCH, len(FEATURES))).astype(np.int32),
                   np.zeros(BATCH, np.int32), (), Jagged.empty(BATCH), np.ones((BATCH, 1), np.float32),
                   r.integers(0, 2, (BATCH, 1)).astype(np.float32))
    return gather(data, np.arange(BATCH), FEATURES)


def main() -> None:
    """Measure and write benchmarks/results/checkpoints.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    keep_freed_memory()
    model, world = make_ranker(rows), World.single()
    optimizer = make_optimizer(model, TRAINING)
    batch, sums = make_batch(rows), torch.zeros(2, dtype=torch.float64)
    steps = PlainStepper(model, optimizer, TRAINING).run(iter([batch] * 10_000))

    def timed(count: int, until: object = None) -> list[float]:
        found = []
        while len(found) < count or (until is not None and not until.done()):  # type: ignore[attr-defined]
            began = time.perf_counter()
            next(steps)
            found.append(time.perf_counter() - began)
        return found

    timed(STEPS)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), world, keep=1)
        copies, writes, alone, beside = [], [], [], []
        for number in range(4):
            alone += timed(STEPS)
            began = time.perf_counter()
            checkpoints.save(model, optimizer, TrainState(batch=number), sums)
            copied = time.perf_counter()
            beside += timed(0, checkpoints._pending)
            checkpoints.wait()
            if number:  # the first one faults the copy's memory in
                copies.append(copied - began)
                writes.append(time.perf_counter() - copied)
        found = next(Path(folder).iterdir())
        size = sum(p.stat().st_size for p in found.iterdir())
        began = time.perf_counter()
        verify(found)
        verified = time.perf_counter()
        latest = Checkpoints(Path(folder), world, keep=1).latest()
        assert latest is not None
        began_restore = time.perf_counter()
        checkpoints.restore(latest, model, optimizer)
        restored = time.perf_counter() - began_restore
        checkpoints.close()
    results = {"rows": rows, "bytes": size, "copy_seconds": statistics.median(copies),
               "write_seconds": statistics.median(writes), "verify_seconds": verified - began,
               "restore_seconds": restored, "step_ms": 1e3 * statistics.median(alone),
               "step_ms_while_writing": 1e3 * statistics.median(beside), "steps_while_writing": len(beside)}
    for name, value in results.items():
        print(f"{name:>22} {value:,.3f}")
    print(save("checkpoints", results))


if __name__ == "__main__":
    main()
