"""100,000 upserts and deletes while 4 readers search, and a publisher killed 20 times.

    python benchmarks/index_updates.py                      # --part updates or --part kill: one of the two; the result
                                                            # of the other is kept

Writer: batches of upserts (new ads, and ads that move to a new vector) and deletes, with a compaction half way. Each
answer is checked: an id that was deleted before the search began, or that never was, is wrong; so is one whose score is
not that of its vector (checked for the 2,000 ads changed last). A search that raises is lost.
Kill: a process publishes version after version and is killed (SIGKILL) at a random moment; the index must open each
time and be the last version that was announced, or the one after it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import common
import faiss
import numpy as np

from recsys.config import IndexConfig
from recsys.content.vectors import ContentVectors, CorpusTransform
from recsys.retrieval import Index, LiveIndex, build_index

DIM, K, BATCH = 64, 20, 100
CHILD = """
import itertools, sys
import numpy as np
from recsys.content import ContentVectors
from recsys.retrieval import build_index
for seed in itertools.count(int(sys.argv[2])):
    matrix = np.random.default_rng(seed).normal(size=(5000, 32)).astype(np.float32)
    build_index(ContentVectors([f"v{seed}-{i}" for i in range(5000)], matrix, {}), sys.argv[1])
    print(seed, flush=True)
"""


def updates(folder: Path, n: int, changes: int) -> dict:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(n, DIM)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    identity = CorpusTransform(np.zeros(DIM, np.float32), np.zeros((DIM, 0), np.float32),
                               np.ones(DIM, np.float32), "l2")
    build_index(ContentVectors([f"a{i}" for i in range(n)], matrix, {}), folder, transform=identity,
                config=IndexConfig(factory="IVF1024,SQ8", k=K))
    live = LiveIndex(folder)
    vector = {f"a{i}": matrix[i] for i in range(n)}  # what the writer has finished; changed after the index was
    gone: set[str] = set()
    stop, seconds, wrong, lost, checked = threading.Event(), [[] for _ in range(4)], [], [], [0] * 4

    def read(which: int) -> None:
        faiss.omp_set_num_threads(1)
        draw = np.random.default_rng(100 + which)
        while not stop.is_set():
            q = matrix[draw.integers(n)] + 0.05 * draw.normal(size=DIM).astype(np.float32)
            q /= np.linalg.norm(q)
            deleted = gone.copy()
            before = expected[0]
            start = time.perf_counter()
            try:
                ids, scores = live.search(q[None], K)
            except Exception as error:
                lost.append(repr(error))
                continue
            seconds[which].append(time.perf_counter() - start)
            for key, score in zip(ids[0], scores[0], strict=True):
                checked[which] += 1
                if key in deleted or key not in known:
                    wrong.append((key, "deleted or unknown"))
                elif key in before and before[key] is vector.get(key) and abs(score - before[key] @ q) > 0.05:
                    wrong.append((key, "a version that was replaced"))
            if len(set(ids[0])) != K:
                wrong.append((ids[0], "an id twice, or too few"))

    expected: list[dict] = [{}]  # recently changed ads and their vectors, a new dict each batch
    known = set(vector)
    readers = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for reader in readers:
        reader.start()
    done, batch, begun, compact_s = 0, 0, time.perf_counter(), 0.0
    alive = list(vector)
    compaction: threading.Thread | None = None
    while done < changes:
        if batch % 4 == 3:
            at = {int(i) for i in rng.choice(len(alive), BATCH, replace=False)}
            ids, alive = [alive[i] for i in at], [key for i, key in enumerate(alive) if i not in at]
            live.delete(ids)
            for key in ids:
                vector.pop(key)
            gone.update(ids)
            expected[0] = {k: v for k, v in expected[0].items() if k not in gone}
        else:
            fresh = [f"n{batch}-{i}" for i in range(BATCH // 2)]
            ids = fresh + [alive[i] for i in rng.choice(len(alive), BATCH // 2, replace=False)]
            new = rng.normal(size=(BATCH, DIM)).astype(np.float32)
            new /= np.linalg.norm(new, axis=1, keepdims=True)
            known.update(fresh)
            expected[0] = {k: v for k, v in expected[0].items() if k not in set(ids)}
            vector.update(dict.fromkeys(ids))  # moving: a reader may see either version until it has moved
            live.upsert(ids, new)
            vector.update(zip(ids, new, strict=True))
            expected[0] = {**dict(list(expected[0].items())[-2000:]), **dict(zip(ids, new, strict=True))}
            alive += fresh
        done, batch = done + BATCH, batch + 1
        if done == changes // 2:
            compaction = threading.Thread(target=live.compact)
            compact_s = time.perf_counter()
            compaction.start()
    wall = time.perf_counter() - begun
    if compaction is not None:
        compaction.join()
    compact_s = time.perf_counter() - compact_s
    stop.set()
    for reader in readers:
        reader.join()
    everything = np.concatenate([np.array(s) for s in seconds]) * 1e3
    found = live.search(matrix[:1], 10**7)[0][0]
    return {"ads": n, "changes": done, "wall_s": wall, "changes_per_s": done / wall, "searches": len(everything),
            "answers_checked": sum(checked), "wrong": len(wrong), "lost": len(lost), "first_wrong": str(wrong[:3]),
            "p50_ms": float(np.percentile(everything, 50)), "p99_ms": float(np.percentile(everything, 99)),
            "max_ms": float(everything.max()), "compaction_s_at_most": compact_s,
            "ends_with_exactly_the_living": set(found) == set(vector) and len(found) == len(vector)}


def kills(folder: Path, times: int) -> dict:
    build_index(ContentVectors([f"v0-{i}" for i in range(5000)],
                               np.random.default_rng(0).normal(size=(5000, 32)).astype(np.float32), {}), folder)
    rng, done, opened = np.random.default_rng(1), 0, 0
    for _ in range(times):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(done + 1)], stdout=subprocess.PIPE,
                                 text=True)
        done = int(child.stdout.readline())
        time.sleep(rng.uniform(0, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        done = max([done, *map(int, child.stdout.read().split())])
        child.wait()
        index = Index.open(folder)
        now = int(index.ads["ad_id"][0].as_py().split("-")[0].removeprefix("v"))
        opened += now in (done, done + 1) and len(index.search(np.ones((1, 32)), 5)[0][0]) == 5
        done = now
    return {"kills": times, "opened_the_last_good_version": opened, "versions_published": done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--part", choices=("updates", "kill", "both"), default="both")
    arguments = parser.parse_args()
    before, results = common.RESULTS / "index_updates.json", {}
    if arguments.part != "both" and before.is_file():
        results = {k: v for k, v in json.loads(before.read_text()).items() if k in ("updates", "kill")}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.part != "updates":
            results["kill"] = kills(Path(folder) / "killed", arguments.kills)
            print(results["kill"], flush=True)
        if arguments.part != "kill":
            results["updates"] = updates(Path(folder) / "live", arguments.n, arguments.changes)
            print(results["updates"], flush=True)
    common.save("index_updates", {"load_average": os.getloadavg(), **results})


if __name__ == "__main__":
    main()
