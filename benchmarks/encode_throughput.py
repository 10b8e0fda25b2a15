"""What encoding costs: CPU microseconds a row of every kind of column, beside encoding by way of strings.

    python benchmarks/encode_throughput.py [--rows 1048576] [--json FILE]

Columns are those of a Criteo-shaped log: counts, and categories that follow a Zipf law over 100,000 values. "by
strings" is what the encoder did before integers had a path of their own: distinct values to text, texts to rows by a
hash table of the whole vocabulary, float64 for numbers. ``row`` is a whole row of 13 numbers and 26 ids that are rows
of their tables: read from Parquet (zstd), encoded, put into shuffled batches. Each number is the best of five runs, in
the CPU time of all threads.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from common import RESULTS, save
from criteo_shaped import World, generate

from recsys.config import ModelConfig, TrainingConfig
from recsys.features.dense import DenseColumn, read_numbers
from recsys.features.encoded import Encoded
from recsys.features.stream import StreamLoader
from recsys.features.vocabulary import Vocabulary, as_strings, flatten
from recsys.stage import write_json
from recsys.training.data import load_training_data

VALUES, GROUP = 100_000, 1 << 16


def cost(work: Callable[[], object], rows: int, repeats: int = 5) -> float:
    """Least CPU microseconds a row."""
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found) / rows * 1e6


def by_strings(vocabulary: Vocabulary, column: pa.Array) -> np.ndarray:
    """Rows of a column by the texts of its distinct values."""
    coded = flatten(column).dictionary_encode(null_encoding="encode")
    if vocabulary.kind == "identity":
        rows = np.array([int(t) for t in as_strings(coded.dictionary, "x").to_pylist()], np.int32)
    elif vocabulary.kind == "hash":
        rows = vocabulary._unique_rows(as_strings(coded.dictionary, "x"))
    else:
        at = pc.index_in(as_strings(coded.dictionary, "x"), value_set=vocabulary.values)
        rows = pc.fill_null(at, -1).to_numpy(zero_copy_only=False).astype(np.int32) + 1
    return rows[coded.indices.to_numpy(zero_copy_only=False)]


def numbers_before(values: pa.Array, column: DenseColumn) -> np.ndarray:
    """A numeric column in float64 with a mask a step."""
    x = np.asarray(flatten(values).cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    assert not np.isinf(x).any()
    missing = np.isnan(x)
    scaled = np.clip((np.sign(x) * np.log1p(np.abs(x)) - column.mean) / column.scale, -10, 10)
    scaled[missing] = 0.0
    return np.stack([scaled], axis=1).astype(np.float32)


def columns() -> dict[str, dict[str, float]]:
    """Microseconds a row, one row group of each kind of column at a time."""
    table, _ = World(0).rows(0, 0, GROUP)
    ids, counts = table["C3"].combine_chunks(), table["I1"].combine_chunks()
    texts = ids.cast(pa.string())
    coded = texts.dictionary_encode()
    listed = pa.array(np.random.default_rng(0).permutation(VALUES)).cast(pa.string())
    kinds = {"vocabulary": Vocabulary("x", "vocabulary", VALUES + 1, listed), "hash": Vocabulary("x", "hash", 50_001),
             "identity": Vocabulary("x", "identity", VALUES)}
    found: dict[str, dict[str, float]] = {}

    def put(name: str, ours: Callable[[], np.ndarray], before: Callable[[], np.ndarray]) -> None:
        assert np.allclose(ours(), before(), atol=1e-5), name  # the same numbers, or the times say nothing
        found[name] = {"ours": cost(ours, GROUP), "by_strings": cost(before, GROUP)}
        print(f"{name:24s} {found[name]['ours']:.4f} us a row, by strings {found[name]['by_strings']:.4f}")

    for kind, vocabulary in kinds.items():
        put(f"int64 {kind}", lambda v=vocabulary: v.encode(ids, "x"), lambda v=vocabulary: by_strings(v, ids))
    for kind in ("vocabulary", "hash"):
        put(f"string {kind}", lambda v=kinds[kind]: v.encode(texts, "x"), lambda v=kinds[kind]: by_strings(v, texts))
        # as training reads them: by the Parquet file's own dictionary
        put(f"string {kind}, coded", lambda v=kinds[kind]: v.encode(coded, "x"),
            lambda v=kinds[kind]: by_strings(v, texts))
    dense, out = DenseColumn("x", 0.9, 0.3, False), np.empty((1, GROUP), np.float32)
    for name, numbers in (("float32", counts), ("float64", counts.cast(pa.float64()))):
        part = pa.table({"x": numbers})

        def ours(part: pa.Table = part) -> np.ndarray:
            dense.encode_into(read_numbers(part, "x", None, 0), out)
            return out.T

        put(f"{name} number", ours, lambda c=numbers: numbers_before(c, dense))
    return found


def row(rows: int, folder: Path) -> dict[str, float]:
    """Microseconds a row of 13 numbers and 26 ids, by what is done with it."""
    generate(rows, folder)
    started = time.process_time()
    data = load_training_data(folder, ModelConfig(), TrainingConfig(validation_share=0))
    fit = (time.process_time() - started) / data.train.rows * 1e6
    reader = data.train._open
    groups = range(min(len(data.train.groups), 4))
    tables = [reader.read(g)[0] for g in groups]
    n = sum(t.num_rows for t in tables)
    loader = StreamLoader(data.train, data.keys, 4096, 1 << 18)

    def epoch() -> None:
        with loader.epoch() as batches:
            for _ in batches:
                pass

    encoded: list[Encoded] = []
    return {"fit_pass": fit, "read": cost(lambda: [reader.read(g) for g in groups], n),
            "encode": cost(lambda: encoded.__setitem__(slice(None), [data.encoder.encode(t) for t in tables]), n),
            "epoch": cost(epoch, data.train.rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1 << 20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {"rows": args.rows, "microseconds_a_row": {"column": columns()}}
    with tempfile.TemporaryDirectory() as folder:
        results["microseconds_a_row"]["row"] = row(args.rows, Path(folder))
    print(results["microseconds_a_row"]["row"])
    path = save("encode_throughput", results)
    if args.json is not None:
        write_json(args.json, results)
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
