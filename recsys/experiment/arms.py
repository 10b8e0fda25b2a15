"""One arm: its content vectors, its ranker, and the policy that it would have followed on the test part."""

from __future__ import annotations

import json
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.config import ArmConfig, ExperimentConfig
from recsys.contracts import IMPRESSIONS, POLICY, open_parquet, read_parquet, validate
from recsys.datasets import load_dataset_info
from recsys.errors import InputError
from recsys.experiment.content import content_of_arm, semantic_of_arm
from recsys.experiment.retrieval import folder_of, retriever_usages, shortlist_of
from recsys.log import log, progress
from recsys.stage import Stage, read_manifest, run_stage, write_json

if TYPE_CHECKING:
    from recsys.training.world import World

REQUESTS_AT_ONCE = 8192  # a block of requests is expanded to all its candidates in memory


def index_content(config: ExperimentConfig, name: str, out: Path) -> dict[str, Any]:
    """Index an encoder's content vectors into ``out/index/NAME``: what retrieval would search.

    Returns:
        {"factory", "n", "dim", "k", "queries", "recall", "target", "nprobe"}, recall measured against exact search on
        a held-out sample of the corpus's own vectors.
    """
    from recsys.retrieval import build_index

    store, index = out / "content" / name, out / "index" / name
    facts = build_index(store, index, read_parquet(out / "split" / "ads.parquet"), config=config.index)["facts"]
    return {**{k: facts[k] for k in ("factory", "n", "dim")}, **facts["recall"]}


def train_arm(config: ExperimentConfig, name: str, out: Path, model_out: Path | None = None,
              world: World | None = None) -> dict[str, Any]:
    """Train one arm's ranker on ``out/split`` into ``out/arms/NAME/model``.

    Args:
        config: the experiment.
        name: the arm.
        out: the experiment's folder, already split, the arm's content already embedded.
        model_out: another place for the model folder.
        world: the ranks that train together; None: this process.

    Returns:
        The model's metrics; empty for an arm whose policy is fixed.
    """
    arm = config.arms[name]
    if arm.policy != "ranker":
        return {}
    content = content_of_arm(arm, out)
    target = model_out or out / "arms" / name / "model"
    if config.model.kind == "ridge":
        from recsys.content import block_widths
        from recsys.training.ridge import train_ridge

        if content is None:
            raise InputError("a ridge ranker needs content", file="experiment", column=f"arms.{name}.content",
                             got="null", expected="the name of an encoder")
        ridge = partial(train_ridge, out / "split", config.model, target, content=content, seed=config.seed, name=name,
                        widths=block_widths([out / "content" / n for n in arm.encoders]))
        return ridge() if world is None else dict(world.from_main(ridge))
    from recsys.training import train_model

    return train_model(out / "split", config.model, config.training, target, seed=config.seed, content=content,
                       semantic=semantic_of_arm(arm, name, out), name=f"{config.name}/{name}", world=world)


def arm_policy(config: ExperimentConfig, name: str, out: Path) -> dict[str, Any]:
    """Write ``out/arms/NAME/policy/policy.parquet``: what the arm would have shown on the test part.

    Returns:
        The stage's manifest; ``facts.usage`` is the measured scoring work.
    """
    arm, folder = config.arms[name], out / "arms" / name
    inputs = {"test": out / "split" / "test.parquet"}
    if arm.policy == "ranker":
        inputs["model"] = folder / "model"
    if arm.retrieval is not None and config.retrievers[arm.retrieval.retriever].kind == "two_tower":
        inputs["retriever"] = folder_of(arm.retrieval.retriever, out) / "model"
    randomized = config.evaluation.method == "randomized"

    def build(stage: Stage) -> None:
        started = time.perf_counter()
        if randomized:
            table, scored = _choices(arm, folder, out, config)
        else:
            table, scored = _slates(arm, folder, out, config, name)
        pq.write_table(validate(table, POLICY), stage.path("policy.parquet"), compression="zstd")
        stage.rows["policy"] = table.num_rows
        requests = len(table["request_id"].unique())
        stage.facts["usage"] = {"stage": "serve", "seconds": scored, "device": "cpu", "requests": requests,
                                "impressions": _impressions(out), "rows": table.num_rows,
                                "model_id": f"{config.name}/{name}"}
        log.info("policy %s: %s rows in %.1f s", name, f"{table.num_rows:,}", time.perf_counter() - started)

    return run_stage("policy", folder / "policy", config=policy_settings(config, name), inputs=inputs, build=build)


def _impressions(out: Path) -> int:
    """Impressions of the test part: shown slots, or the viewers of aggregated rows."""
    file = open_parquet(out / "split" / "test.parquet")
    if "trials" not in file.schema_arrow.names:
        return int(file.metadata.num_rows)
    return int(pc.sum(file.read(columns=["trials"])["trials"]).as_py() or 0)


def latency_ms(folder: Path) -> float | None:
    """Milliseconds of scoring a request, as the arm's policy was made in batches; None where nothing was scored."""
    usage = (read_manifest(folder / "policy") or {}).get("facts", {}).get("usage", {})
    return 1000 * usage["seconds"] / usage["requests"] if usage.get("requests") and usage["seconds"] else None


def policy_settings(config: ExperimentConfig, name: str) -> dict[str, Any]:
    """What an arm's policy depends on besides its inputs; a report checks that its logs were made with the same."""
    found = {"arm": config.arms[name].model_dump(mode="json"), "method": config.evaluation.method,
             "policy": config.evaluation.policy.model_dump(mode="json")}
    if (retrieval := config.arms[name].retrieval) is not None:
        found["retriever"] = config.retrievers[retrieval.retriever].model_dump(mode="json")
    return found


def _choices(arm: ArmConfig, folder: Path, out: Path, config: ExperimentConfig) -> tuple[pa.Table, float]:
    """POLICY of a randomised test: one slot, all on the highest-scored candidate (shared among ties)."""
    from recsys.evaluation.randomized import picked, read_tests
    from recsys.training.ridge import RidgeModel

    test = read_parquet(out / "split" / "test.parquet", IMPRESSIONS)
    scores, seconds = None, 0.0
    if arm.policy == "ranker":
        model = RidgeModel.load(folder / "model")
        started = time.perf_counter()
        scores = model.score(test)
        seconds = time.perf_counter() - started
    tests = read_tests(test, config.evaluation.unit)
    probability = np.zeros(test.num_rows)
    probability[tests.rows] = picked(tests, scores, folder.name)
    columns = {"request_id": test["request_id"], "slot": pa.array(np.zeros(test.num_rows, np.int32)),
               "ad_id": test["ad_id"], "probability": probability}
    if scores is not None:
        columns["score"] = pa.array(scores)
    return pa.table(columns), seconds


def _slates(arm: ArmConfig, folder: Path, out: Path, config: ExperimentConfig, name: str) -> tuple[pa.Table, float]:
    """POLICY of an ad log: the ranker's softmax slate over every request's candidates, or those retrieval keeps."""
    from recsys.datasets.candidates import expand_candidates
    from recsys.evaluation.policy import ranker_policy, uniform_policy
    from recsys.serving.scorer import Scorer

    split = out / "split"
    info, ads = load_dataset_info(split), read_parquet(split / "ads.parquet")
    test = read_parquet(split / "test.parquet", IMPRESSIONS)
    test = test.sort_by([("request_id", "ascending"), ("slot", "ascending")])
    scorer = Scorer.load(folder / "model") if arm.policy == "ranker" else None
    shortlist = shortlist_of(config, name, out)
    settings, parts, seconds = config.evaluation.policy, [], 0.0
    with progress("requests") as bar:
        blocks = _blocks(test)
        task = bar.add_task(f"scoring {name}", total=test.num_rows)
        for block in blocks:
            rows = expand_candidates(block, ads, info)
            if shortlist is not None:
                started = time.perf_counter()
                rows = shortlist.keep(rows)
                seconds += time.perf_counter() - started
            if scorer is None:
                parts.append(uniform_policy(rows))
            else:
                started = time.perf_counter()
                p_click = scorer.score(rows)["click"]
                seconds += time.perf_counter() - started
                parts.append(ranker_policy(rows, p_click, settings, settings.reserve))
            bar.advance(task, block.num_rows)
    return pa.concat_tables(parts), seconds


def _blocks(test: pa.Table) -> list[pa.Table]:
    """Slices of a table sorted by request, of whole requests."""
    request = test["request_id"].combine_chunks().dictionary_encode()
    codes = request.indices.to_numpy() if isinstance(request, pa.DictionaryArray) else request.combine_chunks().indices
    starts = np.flatnonzero(np.append(True, np.diff(np.asarray(codes)) != 0))
    edges = [*starts[::REQUESTS_AT_ONCE].tolist(), test.num_rows]
    return [test.slice(a, b - a) for a, b in pairwise(edges)]


def arm_usages(config: ExperimentConfig, name: str, out: Path) -> list[dict[str, Any]]:
    """Measured work of one arm between two refreshes, each arm paying in full what it would need alone.

    Embedding, index and training as they were measured; serving: scoring the test part, scaled from its impressions to
    those between two refreshes; storage: the bytes of vectors, index and model, kept for as long.
    """
    from recsys.retrieval import served_manifest

    arm, folder, money = config.arms[name], out / "arms" / name, config.money
    usages: list[dict[str, Any]] = []
    kept = [("model", folder / "model", f"{config.name}/{name}")]
    for content in arm.encoders:
        kept += [(what, out / what / content, content) for what in ("content", "index")]
        embedding = json.loads((out / "content" / content / "usage.json").read_text())
        usages.append({**embedding, "price_row": config.encoders[content].price})
        if config.encoders[content].adapt is not None:
            kept.append(("adapters", out / "adapters" / content, content))
            usages.append(json.loads((out / "adapters" / content / "usage.json").read_text()))
        built = served_manifest(out / "index" / content)["facts"]
        usages.append({"stage": "index", "seconds": built["seconds"], "device": "cpu", "model_id": built["model_id"]})
    if arm.retrieval is not None:
        more, places = retriever_usages(config, arm.retrieval.retriever, out)
        usages, kept = usages + more, kept + [p for p in places if p not in kept]
    if arm.semantic_ids is not None:
        kept.append(("semantic_ids", out / "semantic_ids" / name, f"{config.name}/{name}"))
        made = (read_manifest(out / "semantic_ids" / name) or {})["facts"]
        usages.append({"stage": "index", "seconds": made["seconds"], "device": "cpu",
                       "model_id": f"semantic ids of {made['model_id']}"})
    metrics = folder / "model" / "metrics.json"
    if metrics.is_file():
        usages.append({**json.loads(metrics.read_text())["usage"], "model_id": f"{config.name}/{name}"})
    serve = json.loads((folder / "policy" / "manifest.json").read_text())["facts"]["usage"]
    if serve["seconds"] and serve["impressions"]:
        scale = money.impressions_per_refresh / serve["impressions"]
        usages.append({**serve, "seconds": serve["seconds"] * scale})
    for what, path, model_id in kept:
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        if size:
            usages.append({"stage": "store", "bytes": size, "months": money.months_per_refresh,
                           "model_id": model_id, "feature_set_id": what})
    return [{**usage, "arm_id": name} for usage in usages]


def write_truth(config: ExperimentConfig, out: Path) -> Path | None:
    """Ask the simulator for the true value of every arm's policy; ``out/truth.json``, or None for real data."""
    split = out / "split"
    if not load_dataset_info(split).simulated:
        return None
    from recsys.datasets.marketplace_truth import Marketplace

    market = Marketplace.load(split)
    test = read_parquet(split / "test.parquet", IMPRESSIONS)
    truth = {}
    for name in config.arms:
        found = market.true_outcomes(test, read_parquet(out / "arms" / name / "policy" / "policy.parquet", POLICY))
        truth[name] = {"ctr": found["click_rate"], "engagement": found["engagement_rate"], "hide": found["hide_rate"],
                       "conversion": found["conversion_rate"]}
        if "revenue_per_mille" in found:
            revenue, welfare = found["revenue_per_mille"], found["welfare_per_mille"]
            truth[name] |= {"revenue_per_mille": revenue, "cost_per_click": revenue / (1000 * found["click_rate"]),
                            "cost_per_action": revenue / (1000 * found["conversion_rate"]),
                            "welfare_per_mille": welfare, "surplus_per_mille": welfare - revenue}
    write_json(out / "truth.json", truth)
    return out / "truth.json"
