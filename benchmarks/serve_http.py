"""The scoring service under load: 500 candidates x 39 features as binary tensors, one core serves, another sends.

    python benchmarks/serve_http.py [--work work/serve_http] [--part latency|rank|reloads|overload|soak|peer]

The model is the DLRM of benchmarks/train_throughput.py, trained on 200,000 rows of benchmarks/criteo_shaped.py and
published as a bundle (int8 tables, bfloat16 products); requests are 64 different sets of 500 rows of its test part.
Server and load generator are pinned to a core each; the generator is an open loop (benchmarks/open_loop.py): a latency
counts from the moment at which a request was due.

    latency    capacity (a closed loop of 8 clients), then 60 % of it, evenly spaced and as a Poisson process, in turns;
               medians over --repeat runs
    rank       the same of /v1/rank with 500 candidates out of 12,000 ads (benchmarks/rank_setup.py), evenly spaced
    reloads    60 % of the capacity, evenly spaced, while versions are loaded, one every 1.5 s
    overload   three times the capacity: answers a second beside the capacity (median of three runs before and three
               after), what the rest gets and when
    soak       the same for --seconds: memory of the server
    peer       capacity of a plain FastAPI + pydantic + torch service (benchmarks/peers/fastapi_plain.py) of the same
               trained model in float32, in turns with ours

Parts are kept in benchmarks/results/serve_http.json as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROWS, REQUESTS, SHARE, TIMES, LOAD_EVERY = 500, 64, 0.6, 3.0, 1.5
SERVER_CORE, LOAD_CORE = 0, 1
INFER = "/v2/models/ranker/infer"


def prepared(work: Path) -> Path:
    """Data, model, and the bundle that is served, once."""
    from criteo_shaped import generate
    from train_throughput import MODEL, TRAINING

    from recsys.config import ModelConfig, TrainingConfig
    from recsys.serving.export import export_bundle
    from recsys.training.trainer import train_model

    model = work / "model"
    if not (model / "model.json").is_file():
        generate(250_000, work / "data")
        train_model(work / "data", ModelConfig(**MODEL), TrainingConfig(**TRAINING), model, device="cpu")
    bundle = work / "bundle"
    if not (bundle / "manifest.json").is_file():
        export_bundle(model, bundle, data=work / "data", rows=20_000, program=False)
    return bundle


def tables(work: Path) -> list[Any]:
    """The requests' rows."""
    import pyarrow.parquet as pq

    names = [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]
    table = pq.read_table(work / "data" / "test.parquet", columns=names)
    rng = np.random.default_rng(0)
    return [table.take(rng.integers(0, len(table), ROWS)) for _ in range(REQUESTS)]


def binary_request(table: Any) -> bytes:
    """A whole HTTP request with binary tensors."""
    heads, tail = [], []
    for name in table.column_names:
        values = table[name].to_numpy().astype("<f4" if name[0] == "I" else "<i4")
        tail.append(values.tobytes())
        heads.append({"name": name, "datatype": "FP32" if name[0] == "I" else "INT32", "shape": [len(table)],
                      "parameters": {"binary_data_size": len(tail[-1])}})
    text = json.dumps({"inputs": heads, "parameters": {"binary_data_output": True}}).encode()
    return _http(INFER, b"".join([text, *tail]), f"Inference-Header-Content-Length: {len(text)}\r\n")


def json_request(table: Any) -> bytes:
    """The same rows for the plain service."""
    return _http("/score", json.dumps({"rows": table.to_pylist()}).encode(), "Content-Type: application/json\r\n")


def _http(path: str, body: bytes, headers: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@contextmanager
def server(*command: str) -> Iterator[tuple[int, int]]:
    """Process and port of a server on its core, ready."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(["taskset", "-c", str(SERVER_CORE), sys.executable,
                                *(a.replace("PORT", str(port)) for a in command)], env=environment,
                               stdout=subprocess.DEVNULL)
    try:
        while not _ready(port):
            if process.poll() is not None:
                raise SystemExit("the server has ended")
            time.sleep(0.2)
        yield process.pid, port
    finally:
        process.terminate()
        if process.wait(60) not in (0, -signal.SIGTERM):
            print(f"the server ended with {process.returncode}", file=sys.stderr)


def ours(model: Path, *options: str) -> Any:
    return server(str(HERE.parent / "serve.py"), "http", "--model", str(model), "--port", "PORT", *options)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def capacity(port: int, requests: list[bytes], seconds: float, clients: int = 8) -> dict[str, Any]:
    from open_loop import closed

    closed("127.0.0.1", port, requests, clients, 2.0)
    return closed("127.0.0.1", port, requests, clients, seconds).summary()


def memory(pid: int) -> float:
    """Resident MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmRSS:")).split()[1]) / 1024


def model_alone(model: Path, work: Path) -> dict[str, float]:
    """Milliseconds of the scorer on one request's rows as the service hands them over, alone on the server's core."""
    code = f"""
import json, statistics, sys, time
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from serve_http import tables
from recsys.serving import load_scorer
scorer, times = load_scorer(Path({str(model)!r})), []
blocks = [[t.select(names).to_pandas().to_numpy() for names in (scorer.dense_columns, scorer.id_columns)]
          for t in tables(Path({str(work)!r}))]
for dense, ids in blocks * 8:
    began = time.perf_counter()
    scorer.score_block(dense, ids)
    times.append(1000 * (time.perf_counter() - began))
print(json.dumps({{"ms_p50": statistics.median(times[20:]), "ms_p99": statistics.quantiles(times[20:], n=100)[98]}}))
"""
    done = subprocess.run(["taskset", "-c", str(SERVER_CORE), sys.executable, "-c", code], check=True,
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def latency(model: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    requests, alone = [binary_request(t) for t in tables(work)], model_alone(model, work)
    with ours(model) as (_, port):
        return {"model_alone": alone, **latencies(port, requests, args, "even", "poisson")}


def rank(model: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    from rank_setup import bodies, write_ranking

    requests = [_http("/v1/rank", body, "Content-Type: application/json\r\n") for body in bodies(work, REQUESTS)]
    with ours(model, "--ranking", str(write_ranking(work, ROWS))) as (_, port):
        return latencies(port, requests, args, "even")


def latencies(port: int, requests: list[bytes], args: argparse.Namespace, *kinds: str) -> dict[str, Any]:
    """The capacity, and latencies at its share SHARE, of each kind of arrivals."""
    from open_loop import run

    found: dict[str, Any] = {"capacity": capacity(port, requests, args.seconds or 5)}
    rate = SHARE * found["capacity"]["answered_per_second"]
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for turn in range(args.repeat):  # in turns, so that a busy moment does not fall on one alone
        for name, several in runs.items():
            load = run("127.0.0.1", port, requests, rate, args.seconds or 6, name == "poisson", seed=turn)
            several.append(load.summary())
    for name, several in runs.items():
        found[name] = {"rate": rate, "runs": several, "not_answered": sum(
            r["requests"] - r["statuses"].get("200", 0) for r in several),
            "median_ms": {p: statistics.median(r["ms_200"][p] for r in several) for p in ("p50", "p90", "p99")}}
    return found


def reloads(model: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """60 % of the capacity, and every LOAD_EVERY seconds the other one of two versions is loaded."""
    from open_loop import run

    requests, versions = [binary_request(t) for t in tables(work)], work / "versions"
    for version in ("1", "2"):
        if not (versions / version).is_dir():
            shutil.copytree(model, versions / version)
    count, ending = 0, threading.Event()
    with ours(versions) as (_, port):
        rate = SHARE * capacity(port, requests, 5)["answered_per_second"]
        load: list[Any] = []
        worker = threading.Thread(target=lambda: (load.append(run("127.0.0.1", port, requests, rate,
                                                                  args.seconds or 40)), ending.set()))
        worker.start()
        while not ending.wait(LOAD_EVERY):
            body = json.dumps({"parameters": {"version": str(1 + count % 2)}}).encode()
            url = f"http://127.0.0.1:{port}/v2/repository/models/ranker/load"
            with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60):
                count += 1
        worker.join()
    return {"loads": count, "rate": rate, **load[0].summary()}


def overload(model: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    from open_loop import run

    requests = [binary_request(t) for t in tables(work)]
    with ours(model) as (pid, port):
        before = [capacity(port, requests, 5)["answered_per_second"] for _ in range(3)]
        rate = TIMES * statistics.median(before)
        sizes, ending = [memory(pid)], threading.Event()

        def watch() -> None:
            while not ending.wait(1.0):
                sizes.append(memory(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        load = run("127.0.0.1", port, requests, rate, args.seconds or 20)
        ending.set()
        watcher.join()
        # Five seconds can fall on a slow or a quick moment of a shared machine.
        after = [capacity(port, requests, 5)["answered_per_second"] for _ in range(3)]
    most = statistics.median([*before, *after])
    summary = load.summary()
    return {"capacity": most, "capacities": {"before": before, "after": after}, "rate": rate,
            "seconds": load.elapsed, **summary,
            "goodput_share": summary["answered_per_second"] / most,
            "memory_mib": {"start": sizes[0], "after_a_tenth": sizes[len(sizes) // 10], "end": sizes[-1],
                           "most": max(sizes), "tenths": [round(statistics.median(part), 1) for part in
                                                          np.array_split(sizes, min(10, len(sizes)))]}}


def peer(model: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Capacity of both in turns."""
    rows = tables(work)
    binary, plain = [binary_request(t) for t in rows], [json_request(t) for t in rows]
    turns: list[tuple[float, float]] = []
    script = str(HERE / "peers" / "fastapi_plain.py")
    for _ in range(args.repeat):
        with ours(model) as (_, port):
            own = capacity(port, binary, args.seconds or 5)["answered_per_second"]
        with server(script, str(work / "model"), "PORT") as (_, port):
            other = capacity(port, plain, args.seconds or 5)["answered_per_second"]
        turns.append((own, other))
        print(turns[-1], flush=True)
    ratios = [a / b for a, b in turns]
    return {"recsys_per_second": statistics.median(a for a, _ in turns),
            "fastapi_per_second": statistics.median(b for _, b in turns), "turns": turns,
            "times_as_many": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


PARTS: dict[str, Callable[[Path, Path, argparse.Namespace], dict[str, Any]]] = {
    "latency": latency, "rank": rank, "reloads": reloads, "overload": overload, "soak": overload, "peer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/serve_http"))
    parser.add_argument("--part", choices=PARTS, help="one of them; all if absent")
    parser.add_argument("--seconds", type=float, help="length of a run")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    model = prepared(args.work)
    os.sched_setaffinity(0, {LOAD_CORE})
    from common import RESULTS, facts
    from common import save as keep

    for part in [args.part] if args.part else PARTS:
        if part == "soak" and not args.seconds:
            args.seconds = 300.0
        found = PARTS[part](model, args.work, args)
        print(json.dumps({part: found}, indent=2), flush=True)
        if not args.no_save:
            file = RESULTS / "serve_http.json"
            before = json.loads(file.read_text()) if file.is_file() else {}
            keep("serve_http", {**{k: before[k] for k in PARTS if k in before}, part: {**found, **facts()}})


if __name__ == "__main__":
    main()
