"""A served experiment from end to end: does the evaluator find, in what the service logged, the lift that is true?

    python benchmarks/served_experiment.py                  # results/served_experiment.json
    python benchmarks/served_experiment.py --requests 4000 --repeats 1 --out small.json

Two rankers are trained on the log of a simulated marketplace: ``plain`` knows the ad's category, the surface and the
slot, ``full`` the ad and the user's segment and device as well. ``serve.py http --ranking`` serves both to new users'
requests, who click as the simulator says; `recsys join-feedback` joins what they did, `recsys ab` compares the
randomised arms, and `recsys ope` asks, on each arm's log alone, what the other arm's policy would have earned. The
truth is the simulator's exact sum.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from common import facts

from recsys.config import ModelConfig, ServedPolicyConfig, TrainingConfig
from recsys.contracts import read_parquet
from recsys.datasets.candidates import expand_candidates
from recsys.datasets.info import load_dataset_info, save_dataset_info
from recsys.datasets.simulate import simulate_dataset
from recsys.datasets.traffic import CONTEXT, Traffic
from recsys.evaluation.policy import ranker_policy
from recsys.serving import load_scorer
from recsys.stage import write_json
from recsys.training.trainer import train_model

ROOT = Path(__file__).parents[1]
POLICY = {"temperature": 0.15, "epsilon": 0.2, "bid_exponent": 0.0, "depth": 20}
ARMS, BASELINE = ("full", "plain"), "plain"
EXPERIMENT = {"id": "served", "baseline": BASELINE, "decision": {"minimum_effect": 0.02},
              "arms": {name: {"share": 0.5, "model": name} for name in ARMS}}


def prepare(work: Path, requests: int) -> None:
    """A simulated dataset and the two rankers."""
    (work / "data").mkdir(parents=True)
    simulate_dataset({"users": 3000, "ads": 150, "requests": requests}, 0, work / "data")
    log = pq.read_table(work / "data" / "impressions.parquet")
    info, cut = load_dataset_info(work / "data"), int(0.9 * log.num_rows)
    for name in ARMS:
        split = work / f"split-{name}"
        split.mkdir()
        pq.write_table(log.slice(0, cut), split / "train.parquet")
        pq.write_table(log.slice(cut), split / "test.parquet")
        less = {"text": (), "label": {"click": info.label["click"]}}
        less |= {"sparse": ("ad_id", "category", "surface", "slot", "user_segment", "device"), "sequence": (),
                 "ad_features": ("category",)} if name == "full" else {
                     "sparse": ("category", "surface", "slot"), "sequence": (), "dense": (),
                     "ad_features": ("category",)}
        save_dataset_info(info.model_copy(update=less), split)
        train_model(split, ModelConfig(embedding_dim=8, bottom=(16, 8), top=(32,)),
                    TrainingConfig(epochs=2, batch_size=512), work / "models" / name, name=name)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve_and_ask(work: Path, traffic: Traffic, number: int, threads: int) -> dict[str, Any]:
    """Serve the experiment to all requests; returns how it went."""
    pq.write_table(traffic.users, work / "users.parquet")
    file, port = work / f"ranking-{number}.yaml", free_port()
    file.write_text(yaml.safe_dump({
        "ads": str(work / "data" / "ads.parquet"), "users": {"parquet": str(work / "users.parquet")},
        "context": CONTEXT, "policy": POLICY, "experiment": {**EXPERIMENT, "id": f"served-{number}"},
        "log": {"folder": str(work / f"log-{number}"), "rotate_bytes": 2_000_000}}))
    models = [f"--model={name}={work / 'models' / name}" for name in ARMS]
    server = subprocess.Popen([sys.executable, str(ROOT / "serve.py"), "http", *models, f"--ranking={file}",
                               f"--port={port}", "--timeout=600", "--no-access-log"], stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600.0) as client:
            while True:
                try:
                    if client.get("/v2/health/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    assert server.poll() is None, server.communicate()[1]
                    time.sleep(0.2)

            def ask(route: str, body: dict[str, Any]) -> httpx.Response:
                """As a client should: what the service is too busy for was not done, and is asked for again."""
                while (answer := client.post(route, json=body)).status_code == 503:
                    time.sleep(float(answer.headers["Retry-After"]) / 10)
                assert answer.status_code == 200, answer.text
                return answer

            def one(i: int) -> int:
                answer = ask("/v1/rank", traffic.request(i))
                ads = answer.json()["ads"]
                ids = {ad["slot"]: ad["impression_id"] for ad in ads}
                events = [{"impression_id": ids[e.pop("slot")], **e}
                          for e in traffic.events(i, [(ad["slot"], ad["ad_id"]) for ad in ads])]
                if events:
                    ask("/v1/feedback", {"events": events})
                return len(ads)

            started = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                shown = sum(pool.map(one, range(len(traffic))))
            seconds = time.perf_counter() - started
    finally:
        server.send_signal(signal.SIGTERM)
        ended = server.wait(60)
    return {"requests": len(traffic), "impressions": shown, "seconds": seconds, "exit_code": ended}


def recsys(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "recsys.cli", *arguments, "--json"], capture_output=True, text=True,
                          cwd=ROOT, check=False)
    assert done.returncode in (0, 3), done.stderr + done.stdout  # 3: a refusal, which is an answer
    return dict(json.loads(done.stdout))


def target_policy(work: Path, log: pa.Table, arm: str) -> pa.Table:
    """What an arm does on the requests of a log: from its ranker, the log's candidates and its configuration."""
    served = ServedPolicyConfig.model_validate(POLICY)
    rows = expand_candidates(log, pq.read_table(work / "data" / "ads.parquet"), load_dataset_info(work / "data"))
    first = rows.set_column(rows.column_names.index("slot"), "slot", pa.array(np.zeros(len(rows), np.int32)))
    p_click = load_scorer(work / "models" / arm, "cpu").score(first)["click"]  # the service ranks by the first slot
    ranked = ranker_policy(rows, p_click, served)
    size = pc.list_value_length(log["candidates"]).to_numpy()
    probability = (1 - served.epsilon) * ranked["probability"].to_numpy() + served.epsilon / np.repeat(size, size)
    return pa.table({"request_id": ranked["request_id"], "slot": ranked["slot"], "ad_id": ranked["ad_id"],
                     "probability": probability, "expected_click": ranked["expected_click"]})


def evaluate(work: Path, traffic: Traffic, number: int) -> dict[str, Any]:
    """The log through the project's own commands, beside the truth."""
    joined = work / f"joined-{number}.parquet"
    counts = recsys("join-feedback", str(work / f"log-{number}"), "--out", str(joined), "--experiment",
                    f"served-{number}")
    log = read_parquet(joined)
    policies = {arm: target_policy(work, log, arm) for arm in ARMS}
    at = {arm: log.filter(pc.equal(log["arm_id"], arm)) for arm in ARMS}
    tested = recsys("ab", *counts.pop("ab"))  # by the rule that the service registered
    line = tested["metrics"]["click/rows"]["variants"]["full"]
    found: dict[str, Any] = {"joined": counts, "ab": {
        "true_lift": traffic.true_lift(log, policies[BASELINE], policies["full"]), "lift": line["raw"]["relative"],
        "p_value": line["p_value"], "units": tested["arms"]}, "ope": {}}
    for logged, target in ((BASELINE, "full"), ("full", BASELINE), ("full", "full")):
        pq.write_table(at[logged], work / "log.parquet")
        pq.write_table(policies[target], work / "policy.parquet")
        answer = recsys("ope", str(work / "log.parquet"), "--target", str(work / "policy.parquet"),
                        "--estimators", "ips,snips,dr")
        # The policy's own propensities, made again from log, ads and model: what was logged is what was done.
        own = policies[logged].filter(pc.is_in(policies[logged]["request_id"],
                                               value_set=at[logged]["request_id"].combine_chunks()))
        found["ope"][f"{target} on the log of {logged}"] = {
            "true_click_rate": traffic.true_click_rate(at[logged], policies[target].filter(pc.is_in(
                policies[target]["request_id"], value_set=at[logged]["request_id"].combine_chunks()))),
            "largest_propensity_error": propensity_error(at[logged], own),
            **({"refused": answer["refused"]} if "refused" in answer else {
                "mean_weight": answer["diagnostics"]["mean_weight"], "ess_share": answer["diagnostics"]["ess_share"],
                "estimators": {n: {k: e[k] for k in ("estimate", "low", "high")}
                               for n, e in answer["estimators"].items()}})}
    return found


def propensity_error(log: pa.Table, policy: pa.Table) -> float:
    """Largest relative difference between logged propensities and the policy's."""
    keys = ["request_id", "slot", "ad_id"]
    both = log.select([*keys, "propensity"]).join(policy.select([*keys, "probability"]), keys)
    assert both.num_rows == log.num_rows
    assert not both["probability"].null_count
    return float(np.abs(both["probability"].to_numpy() / both["propensity"].to_numpy() - 1).max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20_000, help="served in each repeat")
    parser.add_argument("--trained-on", type=int, default=40_000, help="requests of the training log")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "served_experiment.json")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="served-experiment-"))
    if not (work / "models" / ARMS[-1]).is_dir():
        prepare(work, options.trained_on)
    runs = []
    for number in range(options.repeats):
        shutil.rmtree(work / f"log-{number}", ignore_errors=True)
        traffic = Traffic(work / "data", options.requests, 1000 + number)
        runs.append({"seed": 1000 + number, "served": serve_and_ask(work, traffic, number, options.threads),
                     **evaluate(work, traffic, number)})
        write_json(options.out, {**facts(), "policy": POLICY, "trained_on_requests": options.trained_on, "runs": runs})
        print(json.dumps(runs[-1]["ab"]), json.dumps(runs[-1]["served"]), flush=True)
    if options.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
