"""Retrieve, then rank, on a small simulated marketplace whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import ExperimentConfig, load_config
from recsys.contracts import COSTS, POLICY, read_parquet
from recsys.errors import InputError
from recsys.experiment import run_experiment, run_retriever
from recsys.experiment.retrieval import HistoryVectors, PopularityVectors, RandomVectors, Shortlist

SMALL = [
    "data.simulate={users: 300, advertisers: 20, ads: 150, requests: 14000, candidates: 12}",
    "encoders={words: {kind: hashed, dim: 256}}",
    "retrievers={towers: {content: words, dim: 16, embedding_dim: 8, content_dim: 32, user: [32], ad: [32], "
    "training: {epochs: 6, batch_size: 256, patience: 2}}, near: {kind: history, content: words}, "
    "popular: {kind: popularity}, chance: {kind: random}}",
    "arms={all: {}, towers: {retrieval: {retriever: towers, k: 4}}, near: {retrieval: {retriever: near, k: 4}}, "
    "popular: {policy: uniform, retrieval: {retriever: popular, k: 4}}, "
    "chance: {retrieval: {retriever: chance, k: 4}}, uniform: {policy: uniform}}",
    "baseline=chance", "training.epochs=1", "training.batch_size=512", "training.ensemble=1",
    "evaluation.bootstrap=200",
    "decision.segments=[]",
]


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return load_config("marketplace", SMALL)


@pytest.fixture(scope="module")
def out(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval") / "run"
    run_experiment(config, folder)
    return folder


@pytest.mark.slow
def test_the_lift_of_each_stage_stands_beside_its_truth(out: Path) -> None:
    """Arms that differ in the retriever alone say what it brings; those that differ in the choice, the ranker."""
    arms = json.loads((out / "report/lift.json").read_text())["arms"]
    truth = {name: found["ctr"] for name, found in json.loads((out / "truth.json").read_text()).items()}
    assert truth["towers"] > 1.05 * truth["chance"]  # a better shortlist, the same ranker
    assert truth["all"] > 1.1 * truth["uniform"]
    assert truth["popular"] > truth["uniform"]  # the same choice, another shortlist
    for name in ("towers", "near", "all", "uniform"):
        lift = arms[name]["lift"]
        assert arms[name]["true_lift"] == pytest.approx(truth[name] / truth["chance"] - 1)
        # One seed: a wrong join or a policy beyond the log's support is far outside, a fair interval may miss narrowly.
        assert abs(lift["estimate"] - arms[name]["true_lift"]) < lift["high"] - lift["low"], name


@pytest.mark.slow
def test_arms_show_only_what_is_kept_and_a_request_has_what_it_needs(config: ExperimentConfig, out: Path) -> None:
    policy = read_parquet(out / "arms/towers/policy/policy.parquet", POLICY)
    whole = read_parquet(out / "arms/all/policy/policy.parquet", POLICY)
    assert policy.num_rows == whole.num_rows * 4 // 12
    sums = policy.group_by(["request_id", "slot"]).aggregate([("probability", "sum"), ("ad_id", "count")])
    np.testing.assert_allclose(sums["probability_sum"].to_numpy(), 1, atol=1e-9)
    assert set(sums["ad_id_count"].to_pylist()) == {4}


@pytest.mark.slow
def test_recall_is_measured_beside_what_needs_no_training_and_booked(out: Path) -> None:
    found = json.loads((out / "retrieval.json").read_text())
    assert set(found) == {"towers", "near", "popular", "chance"}
    assert found["towers"] == json.loads((out / "retrievers/towers/recall.json").read_text())
    recall = {n: found["towers"][n]["recall"]["10"] for n in ("popularity", "random", "history")}
    assert found["towers"]["recall"]["10"] > max(recall["popularity"], recall["random"])
    assert recall["random"] == pytest.approx(10 / found["towers"]["ads"], abs=0.06)
    assert found["towers"]["index"]["recall"] == 1.0
    assert found["near"]["recall"]["10"] == recall["history"]
    costs = read_parquet(out / "costs.parquet", COSTS).to_pylist()
    stages = {arm: sorted(r["x_Stage"] for r in costs if r["x_ArmId"] == arm) for arm in ("towers", "popular")}
    assert stages["towers"].count("train") == 2  # the retriever and the ranker
    assert {"embed", "index"} <= set(stages["towers"])
    assert stages["popular"] == ["serve"]  # a uniform choice costs nothing, keeping some candidates does


@pytest.mark.slow
def test_a_retriever_alone_by_name(config: ExperimentConfig, out: Path) -> None:
    before = (out / "retrievers/towers/model/manifest.json").read_bytes()
    found = run_retriever(config, out, "towers")
    assert (out / "retrievers/towers/model/manifest.json").read_bytes() == before
    assert {str(k): v for k, v in found["recall"].items()} == json.loads(
        (out / "retrievers/towers/recall.json").read_text())["recall"]
    with pytest.raises(InputError, match="no such retriever"):
        run_retriever(config, out, "elsewhere")


def test_the_shortlist_keeps_the_best_of_each_request_and_no_fewer_than_its_slots() -> None:
    ads = pa.array(["a", "b", "c", "d"])
    shortlist = Shortlist(PopularityVectors(np.array([1.0, 4.0, 3.0, 2.0])), ads, 2)
    rows = pa.table({"request_id": ["r"] * 8 + ["s"] * 9, "slot": [0] * 4 + [1] * 4 + [0] * 3 + [1] * 3 + [2] * 3,
                     "ad_id": ["d", "a", "b", "c"] * 2 + ["a", "c", "d"] * 3})
    kept = shortlist.keep(rows)
    assert kept["ad_id"].to_pylist() == ["b", "c"] * 2 + ["a", "c", "d"] * 3
    assert kept["slot"].to_pylist() == [0, 0, 1, 1] + [0] * 3 + [1] * 3 + [2] * 3


def test_what_needs_no_training() -> None:
    requests = pa.table({"request_id": ["q", "r", "q"],
                         "history": pa.array([["a", "x"], [], ["a", "b"]], pa.list_(pa.string()))})
    history = HistoryVectors(["a", "b"], np.eye(2, dtype=np.float32), "history").users(requests)
    np.testing.assert_allclose(history, [[1, 0], [0, 0], [0.5**0.5, 0.5**0.5]], rtol=1e-6)
    drawn = RandomVectors(5, 0).users(requests)
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize(("override", "message"), [
    ("arms={a: {retrieval: {retriever: nobody, k: 3}}}", "not one of the retrievers"),
    ("retrievers={a: {content: nobody}}", "not one of the encoders"),
    ("retrievers={a: {kind: history}}", "needs an encoder"),
    ("retrievers={a: {training: {ensemble: 2}}}", "a ranker's"),
    ("retrievers={a: {semantic_ids: {}}}", "content to make them of")])
def test_settings_that_do_not_fit_are_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config("marketplace", ["baseline=null", override])


