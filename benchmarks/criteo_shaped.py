"""A Criteo-shaped click log whose truth is known: 13 counts, 26 categories, labels from a hidden factorisation machine.

    python benchmarks/criteo_shaped.py 1000000 work/criteo_shaped

Categories follow a Zipf law with exponent 1 over tables of 3 to 100,000 values; a click's log odds are a linear term of
the (standardised log) counts, a bias of each category and products of all pairs of category vectors. Writes a split
data set: train.parquet (80 %), valid.parquet (10 %), test.parquet (10 %), dataset.json, and truth.json with the AUC of
the true log odds on the test part. Rows are made in chunks, so that any number of them takes the same memory; the same
seed and number of rows give the same files. ``train_throughput.py`` makes what it needs itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.stage import write_json
from recsys.training.metrics import StreamingMetrics

CARDINALITIES = (1460, 583, 100_000, 100_000, 305, 24, 12_517, 633, 3, 93_145, 5_683, 100_000, 3_194, 27, 14_992,
                 100_000, 10, 5_652, 2_173, 4, 100_000, 18, 15, 100_000, 105, 100_000)
COUNTS, FACTORS, CHUNK, ROW_GROUP = 13, 6, 1 << 18, 1 << 16
PARTS = (("train", 0.8), ("valid", 0.1), ("test", 0.1))


class World:
    """The hidden truth: factors and biases of every category value, weights of the counts."""

    def __init__(self, seed: int) -> None:
        rng = np.random.RandomState(seed)  # the legacy stream, which never changes between numpy versions
        self.factors = [0.35 * rng.randn(c, FACTORS).astype(np.float32) for c in CARDINALITIES]
        self.bias = [0.25 * rng.randn(c).astype(np.float32) for c in CARDINALITIES]
        self.weights = 0.15 * rng.randn(COUNTS).astype(np.float32)
        self._seed = seed

    def rows(self, part: int, chunk: int, n: int) -> tuple[pa.Table, np.ndarray]:
        """n rows (I1..I13 float32, C1..C26 and request_id int64, click int8) and their true log odds float32 [n]."""
        rng = np.random.default_rng([self._seed, 1 + part, chunk])
        total, squares = np.zeros((n, FACTORS), np.float32), np.zeros((n, FACTORS), np.float32)
        odds, columns = np.full(n, -1.6, np.float32), {}
        # log1p of a log-normal; its mean and deviation are constants of the law, not of the sample
        counts = np.log1p(rng.lognormal(1.0, 1.2, (n, COUNTS))).astype(np.float32)
        odds += ((counts - 1.4457) / 0.8421) @ self.weights
        for i in range(COUNTS):
            columns[f"I{i + 1}"] = pa.array(counts[:, i])
        for j, size in enumerate(CARDINALITIES):
            ids = np.minimum((size ** rng.random(n) - 1).astype(np.int64), size - 1)  # log-uniform: Zipf's law
            vector = self.factors[j][ids]
            total += vector
            squares += vector * vector
            odds += self.bias[j][ids]
            columns[f"C{j + 1}"] = pa.array(ids)
        odds += 0.06 * (total * total - squares).sum(axis=1)
        columns["request_id"] = pa.array(np.arange(n) + chunk * CHUNK)
        columns["click"] = pa.array((rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.int8))
        return pa.table(columns), odds


def generate(rows: int, out: Path, seed: int = 0) -> dict[str, float]:
    """Write the data set and return the contents of truth.json (or read it, where it is there already)."""
    import json

    if (out / "truth.json").is_file():
        truth = json.loads((out / "truth.json").read_text())
        if (truth["rows"], truth["seed"]) == (rows, seed):
            return truth
    out.mkdir(parents=True, exist_ok=True)
    world, metrics = World(seed), StreamingMetrics()
    for part, (name, share) in enumerate(PARTS):
        left, chunk, writer = round(rows * share), 0, None
        while left:
            table, odds = world.rows(part, chunk, min(left, CHUNK))
            writer = writer or pq.ParquetWriter(out / f"{name}.parquet", table.schema, compression="zstd")
            writer.write_table(table, row_group_size=ROW_GROUP)
            if name == "test":
                clicks = table["click"].to_numpy().astype(np.float64)
                metrics.update(odds, np.ones_like(clicks), clicks)
            left, chunk = left - table.num_rows, chunk + 1
        if writer is not None:
            writer.close()
    about(out, {f"C{j + 1}": size for j, size in enumerate(CARDINALITIES)})
    found = metrics.result()
    truth = {"rows": rows, "seed": seed, "auc": found["auc"], "click_rate": found["base_rate"]}
    write_json(out / "truth.json", truth)
    return truth


def about(out: Path, rows: dict[str, int]) -> None:
    """Write dataset.json; ``rows``: table rows of each categorical feature."""
    write_json(out / "dataset.json", {
        "name": "criteo_shaped", "dense": [f"I{i + 1}" for i in range(COUNTS)], "sparse": list(rows), "id_rows": rows,
        "label": {"click": {"kind": "binary", "column": "click"}},
    })


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(generate(args.rows, args.out, args.seed))
