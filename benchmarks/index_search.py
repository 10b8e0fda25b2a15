"""Filtered and unfiltered vector search against flat search, hnswlib and usearch at equal recall.

    python benchmarks/index_search.py                                   # 1 M x 128
    python benchmarks/index_search.py --n 100000                        # a quick look
    python benchmarks/index_search.py --work DIR --part build           # on a shared machine: build when it is busy,
    python benchmarks/index_search.py --work DIR --part measure         # and search when it is not

The vectors are simulated, not any model's: a mixture of Gaussian clusters of unequal size around centres that
themselves lie around fewer centres, as topics in topics, scaled to length 1; queries are drawn from the same mixture
and are not in the corpus. Each peer's search width is the smallest of a ladder whose recall on the first half of the
queries reaches the target; all figures are of the second half, 100 of them under the filter. Every index is saved, and
measured as it was loaded into a process of its own. Seconds of building are those of all cores together, which other
work on the machine does not change much. Peers that cannot be imported are left out; put them into an environment of
their own and name its site-packages in PYTHONPATH:

    python -m venv peers && peers/bin/pip install --no-deps hnswlib==0.8.0 usearch==2.26.6 numkong==7.8.6
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import common
import faiss
import numpy as np
import pyarrow as pa

from recsys.config import IndexConfig
from recsys.content.vectors import ContentVectors, CorpusTransform
from recsys.retrieval import Index, build_index
from recsys.retrieval.engine import TIE, Allowed

K = 100
SEED_CORPUS, SEED_QUERIES, SEED_FILTER = 1, 2, 3
WIDTHS = (100, 120, 150, 200, 250, 300, 400, 600, 800)
FILTERED_WIDTHS = (200, 1000, 5000, 20_000)


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


class Task:
    """Corpus, queries, the filter, and the exact answers; made once and kept in ``work``."""

    def __init__(self, work: Path, n: int, dim: int, queries: int, target: float) -> None:
        self.work, self.target = work, target
        self.unit = self._kept("corpus", lambda: mixture(n, dim, SEED_CORPUS))
        asked = mixture(queries, dim, SEED_QUERIES)
        self.tune_on, self.measured = asked[: queries // 2], asked[queries // 2:]
        self.filtered_on = self.measured[:100]
        self.allowed = Allowed(np.random.default_rng(SEED_FILTER).random(n) < 0.01)
        self._least = {"tune": self._kept("tune", lambda: exact(self.tune_on, self.unit)),
                       "measured": self._kept("measured", lambda: exact(self.measured, self.unit)),
                       "filtered": self._kept("filtered",
                                              lambda: exact(self.filtered_on, self.unit[self.allowed.rows]))}

    def _kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        path = self.work / f"{name}.npy"
        if not path.is_file():
            np.save(path, make())
        return np.load(path, mmap_mode="r" if name == "corpus" else None)

    def recall(self, which: str, rows: np.ndarray) -> float:
        """Share of the exact K nearest that was found; one that ties with the last of them counts, too."""
        asked = {"tune": self.tune_on, "measured": self.measured, "filtered": self.filtered_on}[which]
        hits = []
        for query, found, least in zip(asked, rows, self._least[which], strict=False):
            kept = np.unique(found[found >= 0])
            kept = kept[self.allowed.mask[kept]] if which == "filtered" else kept
            hits.append(min(np.count_nonzero(self.unit[kept] @ query >= least - TIE), K) / K)
        return float(np.mean(hits))

    def fit_width(self, search: Callable[[np.ndarray, int], np.ndarray]) -> int:
        return next((w for w in WIDTHS if self.recall("tune", search(self.tune_on, w)) >= self.target), WIDTHS[-1])


def exact(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """The K-th highest inner product of each query."""
    return faiss.knn(queries, np.ascontiguousarray(corpus), K, metric=faiss.METRIC_INNER_PRODUCT)[0][:, -1]


def rate(search: Callable[[np.ndarray], Any], queries: np.ndarray, repeats: int = 3) -> tuple[np.ndarray, float]:
    """Rows found, and the median queries/s of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        rows = search(queries)
        seconds.append(time.perf_counter() - start)
    return np.asarray(rows, np.int64), len(queries) / float(np.median(seconds))


class Recsys:
    """This project's index."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        n, dim = task.unit.shape
        identity = CorpusTransform(np.zeros(dim, np.float32), np.zeros((dim, 0), np.float32), np.ones(dim, np.float32),
                                   "l2")
        names = [f"{i:07d}" for i in range(n)]
        ads = pa.table({"ad_id": names, "content_hash": names, "rare": task.allowed.mask})
        began = time.process_time()
        facts = build_index(ContentVectors(names, np.asarray(task.unit), {}), folder, ads, identity,
                            IndexConfig(recall=task.target, flat_up_to=min(50_000, n - 1)))["facts"]
        # Tuning and writing are in it, too; the share of the building itself is what the clock says.
        return {"build_cpu_s": (time.process_time() - began) * facts["build_seconds"] / facts["seconds"],
                "build_tune_write_cpu_s": time.process_time() - began, "parameters":
                f"{facts['factory']}, nprobe {facts['nprobe']}", "recall_in_manifest": facts["recall"]["recall"]}

    def open(self, folder: Path, facts: dict[str, Any]) -> None:
        self.index = Index.open(folder)
        self.bytes = sum((self.index.folder / name).stat().st_size for name in ("index.faiss", "ads.parquet"))

    def search(self, queries: np.ndarray) -> np.ndarray:
        return self.index.search(queries, K)[0].astype(np.int64)

    def filtered(self, task: Task) -> dict[str, Any]:
        def search(queries: np.ndarray) -> np.ndarray:
            return self.index.search(queries, K, "rare=true")[0].astype(np.int64)

        first = rate(search, task.filtered_on[:1], 1)[1]
        rows, speed = rate(search, task.filtered_on)
        single = rate(lambda q: [search(q[i:i + 1])[0] for i in range(len(q))], task.filtered_on, 1)[1]
        return {"filtered_recall": task.recall("filtered", rows), "filtered_queries_per_s": speed,
                "filtered_queries_per_s_one_by_one": single, "first_filtered_query_s": 1 / first}


class Hnswlib:
    """M 16, ef_construction 100, float32."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        import hnswlib

        began = time.process_time()
        self.index = hnswlib.Index(space="ip", dim=task.unit.shape[1])
        self.index.init_index(max_elements=len(task.unit), ef_construction=100, M=16)
        self.index.add_items(task.unit)
        spent = time.process_time() - began
        width = task.fit_width(self._at)
        self.index.save_index(str(folder / "index"))
        return {"build_cpu_s": spent, "width": width, "dim": task.unit.shape[1],
                "parameters": f"M 16, ef_construction 100, ef {width}"}

    def open(self, folder: Path, facts: dict[str, Any]) -> None:
        import hnswlib

        self.index, self.width = hnswlib.Index(space="ip", dim=facts["dim"]), facts["width"]
        self.index.load_index(str(folder / "index"))
        self.bytes = (folder / "index").stat().st_size

    def _at(self, queries: np.ndarray, width: int, **more: Any) -> np.ndarray:
        self.index.set_ef(width)
        return self.index.knn_query(queries, K, **more)[0].astype(np.int64)

    def search(self, queries: np.ndarray) -> np.ndarray:
        return self._at(queries, self.width)

    def filtered(self, task: Task) -> dict[str, Any]:
        few, mask, tried = task.filtered_on[:20], task.allowed.mask, []  # the filter is a Python callback, one thread
        for width in (self.width, *(w for w in FILTERED_WIDTHS if w > self.width)):
            try:
                rows, speed = rate(lambda q, w=width: self._at(q, w, num_threads=1, filter=lambda i: bool(mask[i])),
                                   few, 1)
            except RuntimeError:
                tried.append({"ef": width, "filtered": "refused: fewer than k found"})
                continue
            tried.append({"ef": width, "filtered_recall": task.recall("filtered", rows),
                          "filtered_queries_per_s": speed})
            if tried[-1]["filtered_recall"] >= task.target:
                break
        return {"filtered_tried": tried, **{k: v for k, v in tried[-1].items() if k != "ef"}}


class Usearch:
    """8-bit, connectivity 16, expansion_add 100."""

    def build(self, task: Task, folder: Path) -> dict[str, Any]:
        from usearch.index import Index as Graph

        began = time.process_time()
        self.index = Graph(ndim=task.unit.shape[1], metric="ip", dtype="i8", connectivity=16, expansion_add=100)
        self.index.add(np.arange(len(task.unit)), np.asarray(task.unit))
        spent = time.process_time() - began
        width = task.fit_width(self._at)
        self.index.save(str(folder / "index"))
        return {"build_cpu_s": spent, "width": width,
                "parameters": f"i8, connectivity 16, expansion_add 100, expansion_search {width}"}

    def open(self, folder: Path, facts: dict[str, Any]) -> None:
        from usearch.index import Index as Graph

        self.index, self.width = Graph.restore(str(folder / "index")), facts["width"]
        self.bytes = (folder / "index").stat().st_size

    def _at(self, queries: np.ndarray, width: int) -> np.ndarray:
        self.index.expansion_search = width
        return np.asarray(self.index.search(queries, K).keys, np.int64)

    def search(self, queries: np.ndarray) -> np.ndarray:
        return self._at(queries, self.width)

    def filtered(self, task: Task) -> dict[str, Any]:
        return {"filtered": "its Python package takes no filter"}


METHODS: dict[str, tuple[type[Any], str | None]] = {
    "recsys": (Recsys, None), "hnswlib": (Hnswlib, "hnswlib"), "usearch": (Usearch, "usearch")}


def build(name: str, task: Task) -> None:
    """Build and save an index, with what building it took in ``facts.json``."""
    folder = task.work / name
    folder.mkdir(exist_ok=True)
    facts = METHODS[name][0]().build(task, folder / "index" if name == "recsys" else folder)
    (folder / "facts.json").write_text(json.dumps(facts))
    print(name, facts, flush=True)


def measure(name: str, task: Task) -> None:
    """Load an index and time its searches; adds to ``measured.json``."""
    folder = task.work / name
    if name == "flat":
        flat = faiss.IndexFlatIP(task.unit.shape[1])
        flat.add(np.asarray(task.unit))
        speed = rate(lambda q: flat.search(q, K)[1], task.measured[:200], 1)[1]
        found: dict[str, Any] = {"recall": 1.0, "queries_per_s": speed,
                                 "bytes_per_vector_resident": 4 * task.unit.shape[1]}
    else:
        facts, method, n = json.loads((folder / "facts.json").read_text()), METHODS[name][0](), len(task.unit)
        before = resident()
        method.open(folder / "index" if name == "recsys" else folder, facts)
        held = resident() - before
        rows, speed = rate(method.search, task.measured)
        found = {**facts, "recall": task.recall("measured", rows), "queries_per_s": speed,
                 "queries_per_s_one_by_one": rate(lambda q: [method.search(q[i:i + 1])[0] for i in range(len(q))],
                                                  task.measured[:200], 1)[1],
                 "bytes_per_vector_resident": held / n, "bytes_per_vector_files": method.bytes / n,
                 **method.filtered(task)}
        if package := METHODS[name][1]:
            found["version"] = version(package)
    (task.work / f"{name}.json").write_text(json.dumps(found))
    print(name, found, flush=True)


def in_its_own_process(what: Callable[[str, Task], None], name: str, arguments: argparse.Namespace) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_run, args=(what, name, arguments))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{what.__name__} {name}: exit code {child.exitcode}")


def _run(what: Callable[[str, Task], None], name: str, arguments: argparse.Namespace) -> None:
    what(name, Task(arguments.work, arguments.n, arguments.dim, arguments.queries, arguments.recall))


def there(name: str) -> bool:
    package = METHODS[name][1]
    try:
        return package is None or bool(version(package))
    except PackageNotFoundError:
        print(f"{name}: not measured, it cannot be imported", flush=True)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--methods", default="recsys,hnswlib,usearch")
    parser.add_argument("--work", type=Path, help="keep vectors and indexes here; default: a temporary folder")
    parser.add_argument("--result", default="index_search", help="name of the file in benchmarks/results")
    parser.add_argument("--part", choices=("build", "measure", "both"), default="both")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        arguments.work = arguments.work or Path(temporary)
        arguments.work.mkdir(exist_ok=True, parents=True)
        methods = [m for m in arguments.methods.split(",") if there(m)]
        if arguments.part != "measure":
            for name in methods:
                if not (arguments.work / name / "facts.json").is_file():
                    in_its_own_process(build, name, arguments)
        if arguments.part == "build":
            return
        for name in ("flat", *methods):
            in_its_own_process(measure, name, arguments)
        results = {m: json.loads((arguments.work / f"{m}.json").read_text()) for m in ("flat", *methods)}
    for found in results.values():
        found["times_flat"] = found["queries_per_s"] / results["flat"]["queries_per_s"]
    common.save(arguments.result, {"n": arguments.n, "dim": arguments.dim, "k": K, "target": arguments.recall,
                                 "filter": "1 % of the vectors, at random",
                                 "vectors": "simulated: topics in topics, 4000 Gaussian clusters of unequal size",
                                 "load_average": os.getloadavg(), "results": results})


if __name__ == "__main__":
    main()
