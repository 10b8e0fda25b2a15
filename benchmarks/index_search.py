"""Filtered and unfiltered vector search against flat search, hnswlib and usearch at equal recall.

    python benchmarks/index_search.py                  # 1 M x 128
    python benchmarks/index_search.py --n 100000       # a quick look

The vectors are simulated, not any model's: a mixture of Gaussian clusters of unequal size around centres that
themselves lie around fewer centres, as topics in topics, scaled to length 1; queries are drawn from the same mixture
and are not in the corpus. Each peer's search width is the smallest of a ladder whose recall on the first half of the
queries reaches the target; all figures are of the second half. hnswlib and usearch take part where they can be
imported (PYTHONPATH).
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from pathlib import Path

import common
import faiss
import numpy as np
import pyarrow as pa

from recsys.config import IndexConfig
from recsys.content.vectors import ContentVectors, CorpusTransform
from recsys.retrieval import Index, build_index
from recsys.retrieval.engine import Allowed, recall

K = 100


def mixture(n: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    world = np.random.default_rng(0)
    topics = world.normal(size=(100, dim))
    centres = topics[world.integers(0, 100, 4000)] + 0.8 * world.normal(size=(4000, dim))
    share = world.pareto(1.5, 4000) + 0.1
    x = np.empty((n, dim), np.float32)
    for at in range(0, n, 100_000):
        size = min(100_000, n - at)
        x[at:at + size] = centres[rng.choice(4000, size, p=share / share.sum())] + 0.6 * rng.normal(size=(size, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rate(search, queries: np.ndarray, repeats: int = 3) -> tuple[np.ndarray, float]:
    """Rows found, and the median queries/s of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        rows = search(queries)
        seconds.append(time.perf_counter() - start)
    return np.asarray(rows, np.int64), len(queries) / float(np.median(seconds))


def fit_width(search, unit, tune_on, target: float, widths) -> int:
    for width in widths:
        if recall(unit, tune_on, np.asarray(search(tune_on, width), np.int64), K).mean() >= target:
            return int(width)
    return int(widths[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--peers", default="hnswlib,usearch")
    arguments = parser.parse_args()
    unit, queries = mixture(arguments.n, arguments.dim, 1), mixture(arguments.queries, arguments.dim, 2)
    tune_on, measured = queries[: len(queries) // 2], queries[len(queries) // 2:]
    filtered_on = measured[:100]
    one_percent = Allowed(np.random.default_rng(3).random(len(unit)) < 0.01)
    results: dict = {}

    flat = faiss.IndexFlatIP(arguments.dim)
    flat.add(unit)
    start = time.perf_counter()
    flat.search(measured, K)
    flat_rate = len(measured) / (time.perf_counter() - start)
    results["flat"] = {"recall": 1.0, "queries_per_s": flat_rate, "bytes_per_vector": 4 * arguments.dim}
    del flat

    identity = CorpusTransform(np.zeros(arguments.dim, np.float32), np.zeros((arguments.dim, 0), np.float32),
                               np.ones(arguments.dim, np.float32), "l2")
    names = [f"{i:07d}" for i in range(len(unit))]
    ads = pa.table({"ad_id": names, "content_hash": names, "rare": one_percent.mask})
    with tempfile.TemporaryDirectory() as folder:
        facts = build_index(ContentVectors(names, unit, {}), Path(folder) / "index", ads, identity,
                            IndexConfig(recall=arguments.recall, flat_up_to=min(50_000, len(unit) - 1)))["facts"]
        before = resident()
        index = Index.open(Path(folder) / "index")
        held = resident() - before
        size = sum((index.folder / name).stat().st_size for name in ("index.faiss", "ads.parquet"))
        number = lambda ids: ids.astype(np.int64)  # noqa: E731
        rows, speed = rate(lambda q: number(index.search(q, K)[0]), measured)
        _, filtered_once = rate(lambda q: number(index.search(q, K, "rare=true")[0]), filtered_on[:1], 1)
        filtered, filtered_rate = rate(lambda q: number(index.search(q, K, "rare=true")[0]), filtered_on)
        _, single = rate(lambda q: [number(index.search(q[i:i + 1], K, "rare=true")[0]) for i in range(len(q))],
                         filtered_on, 1)
    results["recsys"] = {
        "factory": facts["factory"], "nprobe": facts["nprobe"], "build_s": facts["build_seconds"],
        "build_tune_write_s": facts["seconds"], "recall": float(recall(unit, measured, rows, K).mean()),
        "recall_in_manifest": facts["recall"]["recall"], "queries_per_s": speed, "times_flat": speed / flat_rate,
        "bytes_per_vector_resident": held / len(unit), "bytes_per_vector_files": size / len(unit),
        "filtered_recall": float(recall(unit, filtered_on, filtered, K, one_percent).mean()),
        "filtered_queries_per_s": filtered_rate, "filtered_queries_per_s_one_by_one": single,
        "first_filtered_query_s": 1 / filtered_once}
    print(results, flush=True)
    widths = (100, 120, 150, 200, 250, 300, 400, 600, 800)
    for peer in arguments.peers.split(","):
        try:
            results[peer] = PEERS[peer](unit, tune_on, measured, filtered_on, one_percent, widths, arguments.recall)
            results[peer]["times_flat"] = results[peer]["queries_per_s"] / flat_rate
            print(peer, results[peer], flush=True)
        except (ImportError, KeyError) as error:
            print(f"{peer}: not measured ({error})", flush=True)
    common.save("index_search", {"n": arguments.n, "dim": arguments.dim, "k": K, "target": arguments.recall,
                                 "vectors": "simulated: topics in topics, 4000 Gaussian clusters of unequal size",
                                 "load_average": os.getloadavg(), "results": results})


def _hnswlib(unit, tune_on, measured, filtered_on, allowed, widths, target):
    import hnswlib

    before, start = resident(), time.perf_counter()
    index = hnswlib.Index(space="ip", dim=unit.shape[1])
    index.init_index(max_elements=len(unit), ef_construction=100, M=16)
    index.add_items(unit)
    built, held = time.perf_counter() - start, resident() - before

    def search(q, width, **more):
        index.set_ef(width)
        return index.knn_query(q, K, **more)[0]

    width = fit_width(search, unit, tune_on, target, widths)
    rows, speed = rate(lambda q: search(q, width), measured)
    result = {"build_s": built, "parameters": f"M 16, ef_construction 100, ef {width}",
              "recall": float(recall(unit, measured, rows, K).mean()), "queries_per_s": speed,
              "bytes_per_vector_resident": held / len(unit)}
    few = filtered_on[:20]  # the filter is a Python callback, one thread
    try:
        rows, speed = rate(lambda q: search(q, width, num_threads=1, filter=lambda i: bool(allowed.mask[i])), few, 1)
        return {**result, "filtered_recall": float(recall(unit, few, rows, K, allowed).mean()),
                "filtered_queries_per_s": speed}
    except RuntimeError as error:
        return {**result, "filtered": f"refused: {error}"}


def _usearch(unit, tune_on, measured, filtered_on, allowed, widths, target):
    from usearch.index import Index as Graph

    before, start = resident(), time.perf_counter()
    index = Graph(ndim=unit.shape[1], metric="ip", dtype="i8", connectivity=16, expansion_add=100)
    index.add(np.arange(len(unit)), unit)
    built, held = time.perf_counter() - start, resident() - before

    def search(q, width):
        index.expansion_search = width
        return np.stack([np.pad(m.keys, (0, K - len(m.keys)), constant_values=0)[:K] for m in
                         (index.search(q, K) if len(q) > 1 else [index.search(q[0], K)])]).astype(np.int64)

    width = fit_width(search, unit, tune_on, target, widths)
    rows, speed = rate(lambda q: search(q, width), measured)
    return {"build_s": built, "parameters": f"i8, connectivity 16, expansion_add 100, expansion_search {width}",
            "recall": float(recall(unit, measured, rows, K).mean()), "queries_per_s": speed,
            "bytes_per_vector_resident": held / len(unit),
            "filtered": "not measured: its Python package takes no filter"}


PEERS = {"hnswlib": _hnswlib, "usearch": _usearch}

if __name__ == "__main__":
    main()
