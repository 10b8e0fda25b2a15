"""A whole experiment on a small simulated marketplace: its files, its numbers, and running it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import ExperimentConfig, load_config
from recsys.contracts import COSTS, POLICY, read_parquet, validate
from recsys.errors import InputError, Refused
from recsys.experiment import make_report, run_experiment, run_training

SMALL = [
    "data.simulate={users: 300, advertisers: 20, ads: 150, requests: 12000}",
    "encoders={hashed_text: {kind: hashed, dim: 64}, length: {kind: length}}",
    "arms={ids_only: {}, hashed_text: {content: hashed_text}, "
    "both: {content: [hashed_text, length], semantic_ids: {levels: 2, codebook: 8, dim: 8}}, "
    "uniform: {policy: uniform}}",
    "training.epochs=1", "training.batch_size=512", "model.content_dim=16", "evaluation.bootstrap=200",
]


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return load_config("marketplace", SMALL)


@pytest.fixture(scope="module")
def out(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment") / "run"
    run_experiment(config, folder)
    return folder


def test_semantic_ids_reach_the_ranker_and_the_books(out: Path):
    from recsys.models.bundle import load_bundle
    from recsys.training.data import training_ad_ids

    encoder = load_bundle(out / "arms/both/model").encoder
    assert list(encoder.of_content) == ["semantic_id_1", "semantic_id_2"]
    assert not {"semantic_id_1", "semantic_id_2"} & set(encoder.columns)
    codes = read_parquet(out / "semantic_ids/both/codes.parquet")
    ads = read_parquet(out / "split/ads.parquet")
    assert set(codes["content_hash"].to_pylist()) == set(ads["content_hash"].to_pylist())
    trained = training_ad_ids(out / "split")
    of_training = {h for a, h in zip(ads["ad_id"].to_pylist(), ads["content_hash"].to_pylist(), strict=True)
                   if a in trained}
    fitted = zip(codes["content_hash"].to_pylist(), codes["fitted"].to_pylist(), strict=True)
    assert {h for h, was in fitted if was} == of_training
    booked = read_parquet(out / "costs.parquet", COSTS).to_pylist()
    assert [r["x_ArmId"] for r in booked if (r["x_ModelId"] or "").startswith("semantic ids of")] == ["both"]


def test_an_unknown_price_row_is_refused_before_any_data_is_read(tmp_path: Path):
    paid = load_config("marketplace", [*SMALL, "arms={ids_only: {}, api: {content: api}}", "encoders={api: {kind: "
                       "endpoint, url: 'http://127.0.0.1:9/v1', model: m, dim: 8, price: api-nobody}}"])
    with pytest.raises(InputError, match="no such price row"):
        run_experiment(paid, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_report_has_what_its_readers_rely_on(config: ExperimentConfig, out: Path):
    lift = json.loads((out / "report/lift.json").read_text())
    assert {"experiment", "goal", "arms", "config_sha256", "data_sha256"} <= lift.keys()
    assert lift["experiment"] == "marketplace"
    assert set(lift["arms"]) == {"ids_only", "hashed_text", "both", "uniform"}
    for arm in lift["arms"].values():
        assert {"lift", "true_lift", "value", "cost_per_mille_usd", "n"} <= arm.keys()
        assert arm["lift"]["low"] <= arm["lift"]["estimate"] <= arm["lift"]["high"]
        assert arm["n"] == pq.read_metadata(out / "split/test.parquet").num_rows
    assert min(lift["arms"][n]["cost_per_mille_usd"] for n in ("hashed_text", "ids_only")) > 0
    assert lift["arms"]["uniform"]["cost_per_mille_usd"] == 0
    joined = {"name": "hashed_text + length", "kind": "joined", "model": "hashed + length"}
    assert lift["arms"]["both"]["encoder"] == joined
    assert lift["healthy"]
    assert lift["retrieval"]["hashed_text"]["recall"] == 1.0
    assert lift["retrieval"]["hashed_text"]["n"] == pq.read_metadata(out / "split/ads.parquet").num_rows
    page = (out / "report/lift.html").read_text()
    assert "hashed_text" in page
    assert "http-equiv" in page
    assert load_config(out / "config.yaml") == config


def test_the_outputs_follow_the_published_schemas(out: Path):
    from tests.report.test_schema import check

    for name in ("lift", "statement"):
        check(name, json.loads((out / f"report/{name}.json").read_text()))


def test_every_interval_covers_the_simulators_truth(out: Path):
    # One fixed seed at 95 %: a check of the wiring (units, slots, truth), not of coverage; that is benchmarks' work.
    lift = json.loads((out / "report/lift.json").read_text())
    for name in ("hashed_text", "uniform"):
        arm = lift["arms"][name]
        assert arm["lift"]["low"] <= arm["true_lift"] <= arm["lift"]["high"], name
    assert lift["arms"]["uniform"]["true_lift"] < 0


def test_logs_satisfy_their_contracts(out: Path):
    costs = validate(read_parquet(out / "costs.parquet"), COSTS)
    booked = set(zip(costs["x_ArmId"].to_pylist(), costs["x_Stage"].to_pylist(), strict=True))
    arms = ("ids_only", "hashed_text", "both")
    assert booked == {(a, s) for a in arms for s in ("train", "serve", "store")} | {
        (a, s) for a in arms[1:] for s in ("embed", "index")}
    embedded = [c["x_ArmId"] for c in costs.to_pylist() if c["x_Stage"] == "embed"]
    assert sorted(embedded) == ["both", "both", "hashed_text"]  # each arm pays for all that it needs
    kept = sum(b or 0 for a, b in zip(costs["x_ArmId"].to_pylist(), costs["x_Bytes"].to_pylist(), strict=True)
               if a == "hashed_text")
    folders = ("content/hashed_text", "index/hashed_text", "arms/hashed_text/model")
    assert kept == sum(p.stat().st_size for f in folders for p in (out / f).rglob("*") if p.is_file())
    policy = read_parquet(out / "arms/hashed_text/policy/policy.parquet", POLICY)
    sums = policy.group_by(["request_id", "slot"]).aggregate([("probability", "sum")])["probability_sum"].to_numpy()
    assert abs(sums - 1).max() < 1e-9


def test_both_sides_of_the_market_agree_with_the_simulators_truth(out: Path):
    # As above: one seed. A wrong join or unit is far outside; a fair interval may miss narrowly, so it is doubled here.
    lift = json.loads((out / "report/lift.json").read_text())
    for name in ("ids_only", "hashed_text"):
        found = lift["arms"][name]["secondary"]
        assert {"engagement", "revenue_per_mille", "welfare_per_mille", "surplus_per_mille", "cost_per_click",
                "hide", "conversion", "cost_per_action", "diversity", "fill"} == found.keys()
        for metric in found.keys() - {"diversity", "fill"}:  # they are the policy's own: nothing to estimate
            one = found[metric]
            if metric in ("conversion", "cost_per_action") and "refused" in one:  # this small log has few of them
                continue
            low, high = one["value_interval"]["low"], one["value_interval"]["high"]
            assert abs(one["true_value"] - one["value"]) <= high - low, metric
        value = {m: one["true_value"] for m, one in found.items() if "true_value" in one}
        assert value["welfare_per_mille"] == pytest.approx(value["revenue_per_mille"] + value["surplus_per_mille"])


def test_the_verdict_follows_the_rule_of_the_file_and_its_hash_is_everywhere(config: ExperimentConfig, out: Path):
    from recsys.evaluation.decision import VERDICTS, decision_rule, rule_sha256

    lift = json.loads((out / "report/lift.json").read_text())
    found, sha = lift["decision"], rule_sha256(decision_rule(config))
    assert found["sha256"] == sha == json.loads((out / "decision.json").read_text())["sha256"]
    assert sha in (out / "report/lift.html").read_text()
    assert found["verdict"].keys() == {"hashed_text", "both", "uniform"}
    assert found["verdict"]["uniform"] in ("Roll back", "Not enough data")  # about a quarter below the baseline
    assert set(found["verdict"].values()) <= set(VERDICTS)
    assert found["registered"]
    assert lift["minimum_effect"] == 0.01
    assert lift["multiplicity"].startswith("holm")
    assert lift["peeking"].startswith("fixed")
    assert [g["metric"] for g in found["rule"]["guardrails"]] == [
        "engagement", "hide", "revenue_per_mille", "cost_per_click", "diversity", "latency_ms"]
    assert found["guardrails"]["hashed_text"]["latency_ms"]["value"] > 0


def test_a_rule_that_was_changed_after_the_results_is_refused(out: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    report = (copy / "report/lift.json").read_bytes()
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("minimum_effect: 0.01", "minimum_effect: 0.0"))
    with pytest.raises(Refused, match=r"changed after results existed.*minimum_effect"):
        make_report(copy)
    (copy / "config.yaml").write_text(text)
    with pytest.raises(Refused, match="changed after results existed"):
        run_experiment(load_config("marketplace", [*SMALL, "decision.multiplicity=none"]), copy)
    assert (copy / "report/lift.json").read_bytes() == report
    assert (copy / "config.yaml").read_text() == text


def test_the_books_show_every_stage_on_every_cloud(out: Path):
    from typer.testing import CliRunner

    from recsys.cli import app

    shown = CliRunner().invoke(app, ["ledger", str(out)])
    assert shown.exit_code == 0
    for words in ("serve", "store", "S3 Standard", "Google Cloud", "Azure", "A100-80GB", "text-embedding-3-small",
                  "no spot price", "left out: azure-nc40ads-h100-v5", "revenue of the model 0 by construction"):
        assert words in shown.output, words
    books = json.loads(CliRunner().invoke(app, ["ledger", str(out), "--json"]).output)
    assert {"arms", "substitution", "clouds", "ecpm"} <= books.keys()
    assert {t["provider"] for t in books["clouds"]["totals"]} == {"AWS", "Google Cloud", "Azure"}


def test_a_second_run_does_no_stage_again(config: ExperimentConfig, out: Path):
    files = [p for p in out.rglob("*") if p.is_file() and "report" not in p.parts and p.name != "costs.parquet"
             and p.name not in ("config.yaml", "truth.json", "retrieval.json")]
    before = {p: p.stat().st_mtime_ns for p in files}
    first = json.loads((out / "report/lift.json").read_text())
    again = run_experiment(config, out)
    assert {p: p.stat().st_mtime_ns for p in files} == before
    assert again["arms"]["hashed_text"]["lift"] == first["arms"]["hashed_text"]["lift"]


def test_the_report_is_made_again_from_the_logs_alone(out: Path):
    first = json.loads((out / "report/lift.json").read_text())
    (out / "report/lift.json").unlink()
    again = make_report(out)
    assert {k: v for k, v in again.items() if k != "created"} == {k: v for k, v in first.items() if k != "created"}


def test_a_propensity_that_was_tampered_with_is_refused(out: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    test = pq.read_table(copy / "split/test.parquet")
    at = test.column_names.index("propensity")
    halved = (test["propensity"].to_numpy() * 0.5).tolist()
    pq.write_table(test.set_column(at, "propensity", [halved]), copy / "split/test.parquet")
    with pytest.raises(InputError, match="another configuration or test part"):
        make_report(copy)


def test_a_report_is_not_published_under_settings_that_did_not_make_it(out: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    text = (copy / "config.yaml").read_text()
    assert "temperature: 0.25" in text
    (copy / "config.yaml").write_text(text.replace("temperature: 0.25", "temperature: 5.0"))
    with pytest.raises(InputError, match="another configuration"):
        make_report(copy)


def criteo(path: Path, rows: int, **changes: list) -> Path:
    names = ("cat1", "cat4", "cat6", "cat8", "cat9")
    columns = {n: [i % 5 for i in range(rows)] for n in names} | {"click": [i % 2 for i in range(rows)]} | changes
    pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    return path


@pytest.mark.parametrize("bad", ["missing column", "wrong type", "empty", "truncated", "absent", "no rows"])
def test_bad_test_files_leave_nothing_of_the_run(bad: str, tmp_path: Path):
    train, test = criteo(tmp_path / "train.parquet", 40), tmp_path / "test.parquet"
    if bad == "missing column":
        criteo(test, 10, cat6=None)
    elif bad == "wrong type":
        criteo(test, 2, click=["1", "often"])
    elif bad == "no rows":
        pq.write_table(pq.read_table(train).slice(0, 0), test)
    elif bad != "absent":
        criteo(test, 10)
        test.write_bytes(test.read_bytes()[:-25] if bad == "truncated" else b"")
    config = load_config("criteo_attribution", [f"split={{kind: files, train: {train}, test: {test}}}"])
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError, match=r"test\.parquet"):
        run_training(config, tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(InputError):
        run_training(config, mine)
    assert [p.name for p in mine.iterdir()] == ["notes.txt"]


def test_a_model_that_is_not_a_llama_stops_the_experiment_before_any_work(tmp_path: Path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    config = load_config("marketplace", [f"encoders.smollm2.model={tmp_path / 'bert'}"])
    with pytest.raises(InputError, match="bert"):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("price", "reason"), [
    ({"on_demand": 0.05, "spot": {"low": 0.02, "high": 0.4}}, "above the list price"), ({"on_demand": 0.0}, "zero"),
    ({"on_demand": None}, "blank"), ({"on_demand": 0.5, "spot": {"low": 0.05, "high": 0.05}}, "exactly a tenth"),
])
def test_a_poisoned_price_ends_in_a_refusal_that_says_what_would_mend_it(price: dict, reason: str, tmp_path: Path):
    row = {"id": "mine", "kind": "machine", "provider": "P", "service": "S", "sku": "s", "unit": "hour", "source": "s"}
    card = {"name": "mine", "as_of": "2026-11-01", "sources": {"s": "a catalog"}, "rows": [{**row, **price}]}
    (tmp_path / "card.json").write_text(json.dumps(card))  # JSON is YAML
    config = load_config("marketplace", [*SMALL, f"money.price_card={tmp_path / 'card.json'}", "money.machine=mine"])
    with pytest.raises(Refused, match=reason) as refused:
        run_experiment(config, tmp_path / "run")
    assert "mend the row" in str(refused.value)
    assert refused.value.exit_code == 3
    assert not (tmp_path / "run").exists()


def test_paths_in_an_experiment_file_are_relative_to_it(tmp_path: Path):
    criteo(tmp_path / "a.parquet", 60)
    criteo(tmp_path / "b.parquet", 30)
    (tmp_path / "x.yaml").write_text("name: x\ndata: {recipe: criteo_attribution}\n"
                                     "split: {kind: files, train: a.parquet, test: b.parquet}\n"
                                     "training: {batch_size: 16}\n")
    metrics = run_training(load_config(tmp_path / "x.yaml"), tmp_path / "run")
    assert metrics["test"]["n"] == 30


def test_an_output_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="not a folder"):
        run_training(load_config("marketplace", [*SMALL, "arms={ids_only: {}}", "baseline=ids_only"]), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_training_alone_writes_metrics(tmp_path: Path):
    config = load_config("marketplace", [*SMALL, "arms={ids_only: {}}", "baseline=ids_only"])
    metrics = run_training(config, tmp_path / "run")
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written == metrics
    assert {"train", "test", "samples_per_second", "input_stall_share"} <= written.keys()
    assert {"auc", "normalized_entropy", "log_loss", "calibration_ratio", "n"} <= written["test"].keys()
    assert 0.5 < written["test"]["auc"] < 1


def test_arms_are_asked_for_by_name(config: ExperimentConfig, tmp_path: Path):
    with pytest.raises(InputError, match="which arm"):
        run_training(config, tmp_path / "run")
    with pytest.raises(InputError, match="hashed_text"):
        run_training(config, tmp_path / "run", arm="uniform")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(out: Path, tmp_path: Path):
    expected = json.loads((out / "report/lift.json").read_text())["arms"]
    target = tmp_path / "run"
    command = [sys.executable, "-m", "recsys.cli", "experiment", "marketplace", "--out", str(target)]
    command += [part for item in SMALL for part in ("--set", item)]
    for seconds in (4, 6, 8, 10, 12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    got = json.loads((target / "report/lift.json").read_text())["arms"]
    for name, arm in got.items():
        assert arm["lift"] == expected[name]["lift"]
        assert arm["n"] == expected[name]["n"]
    assert [p.name for p in target.rglob("*.partial")] == []


@pytest.mark.slow
def test_upworthy_on_another_file_of_the_same_shape(data_home: Path, tmp_path: Path):
    raw = pq.read_table(data_home / "upworthy/packages.parquet")
    tests = sorted(set(raw["clickability_test_id"].to_pylist()))
    other = set(tests[::3])
    mask = [t in other for t in raw["clickability_test_id"].to_pylist()]
    pq.write_table(raw.filter(mask), tmp_path / "test.parquet")
    pq.write_table(raw.filter([not m for m in mask]), tmp_path / "train.parquet")
    split = f"split={{kind: files, train: {tmp_path / 'train.parquet'}, test: {tmp_path / 'test.parquet'}}}"
    config = load_config("upworthy", [
        split, "arms={uniform: {policy: uniform}, length: {content: length}, minilm: {content: minilm}}"])
    lift = run_experiment(config, tmp_path / "run", data_home)
    audit = json.loads((tmp_path / "run/split/audit.json").read_text())
    assert audit["kind"] == "files"
    minilm = lift["arms"]["minilm"]["lift"]
    # Loose on purpose: a third of the file is a noisy judge; benchmarks/upworthy_splits.py is the measurement.
    assert minilm["estimate"] > 0.03
    assert lift["arms"]["minilm"]["diagnostics"]["oracle_lift"]["noisy"] > minilm["estimate"]


def test_segments_that_are_not_there_are_refused_before_anything_is_trained(tmp_path: Path):
    config = load_config("marketplace", [*SMALL, "decision.segments=[surface, nosuch]"])
    with pytest.raises(InputError, match=r"column nosuch: missing column; .*decision\.segments"):
        run_experiment(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
