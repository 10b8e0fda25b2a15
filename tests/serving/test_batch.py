from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.contracts import SCORES, validate
from recsys.errors import InputError, RecsysError
from recsys.serving import load_scorer, read_scores, score_batch
from recsys.serving.job import new_job
from recsys.serving.places import place
from recsys.serving.rows import REJECTED
from recsys.stage import sha256_file
from tests.processes import live_glob
from tests.serving.conftest import make_ads, make_impressions

ROOT = Path(__file__).parents[2]


def files_of(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def with_column(path: Path, name: str, values: list | pa.Array) -> None:
    table = pq.read_table(path)
    table = table.drop_columns(name) if name in table.column_names else table
    pq.write_table(table.append_column(name, pa.array(values)), path)


def test_scores_are_the_models_and_satisfy_the_contract(model: Path, impressions: Path, tmp_path: Path) -> None:
    manifest = score_batch(model, impressions, tmp_path / "out", shard_rows=300, batch_rows=128, keep=["slot"])
    table, scores = pq.read_table(impressions), read_scores(tmp_path / "out")
    validate(scores, SCORES)
    assert scores.column_names == ["request_id", "user_id", "ad_id", "p_click", "expected_value", "model_id",
                                   "scored_at", "slot"]
    for name in ("request_id", "user_id", "ad_id", "slot"):
        assert scores[name].to_pylist() == table[name].to_pylist()
    direct = load_scorer(model).score(table)["click"]
    np.testing.assert_allclose(scores["p_click"].to_numpy(), direct, rtol=1e-5)
    assert np.std(direct) > 0.005  # a real model: its scores differ
    np.testing.assert_allclose(scores["expected_value"].to_numpy(), direct * table["bid"].to_numpy(), rtol=1e-5)
    assert manifest["rows"] == {"input": 1000, "pairs": 1000, "scored": 1000, "rejected": 0}
    assert [p["rows"] for p in manifest["facts"]["parts"]] == [300, 300, 300, 100]
    for part in manifest["facts"]["parts"]:
        assert sha256_file(tmp_path / "out" / part["name"]) == part["sha256"]
    assert len(set(scores["scored_at"].to_pylist())) == 1
    assert manifest["facts"]["seconds"] > 0


def test_a_rerun_does_nothing_and_mends_a_damaged_part(model: Path, impressions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = score_batch(model, impressions, out, shard_rows=300)
    before = files_of(out)
    again = score_batch(model, impressions, out, shard_rows=300)
    assert again["cached"]
    assert not first["cached"]
    assert files_of(out) == before
    part = out / first["facts"]["parts"][1]["name"]
    part.write_bytes(part.read_bytes()[:-1] + b"X")
    with pytest.raises(InputError, match="damaged part"):
        read_scores(out)
    mended = score_batch(model, impressions, out, shard_rows=300)
    assert mended["facts"]["parts"] == first["facts"]["parts"]
    assert not mended["cached"]
    changed = {n for n, t in files_of(out).items() if before.get(n) != t}
    assert {n for n in changed if n.startswith("part-")} == {part.name}


def test_an_interrupted_job_goes_on_where_it_was(model: Path, impressions: Path, tmp_path: Path) -> None:
    score_batch(model, impressions, tmp_path / "whole", shard_rows=130, batch_rows=64)
    out, scorer, calls = tmp_path / "out", load_scorer(model), []

    class Dies:
        columns, heads, model_id = scorer.columns, scorer.heads, scorer.model_id

        def score(self, table: pa.Table) -> dict[str, np.ndarray]:
            calls.append(table.num_rows)
            if len(calls) == 8:
                raise MemoryError
            return scorer.score(table)

    with pytest.raises(MemoryError):
        score_batch(model, impressions, out, shard_rows=130, batch_rows=64, scorer=Dies())
    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}
    assert finished
    assert not (out / "manifest.json").exists()
    score_batch(model, impressions, out, shard_rows=130, batch_rows=64)
    assert {n: (out / n).stat().st_mtime_ns for n in finished} == finished
    whole, resumed = read_scores(tmp_path / "whole"), read_scores(out)
    assert whole.drop_columns("scored_at") == resumed.drop_columns("scored_at")  # to the last bit
    assert len(set(resumed["scored_at"].to_pylist())) == 1


def test_other_input_replaces_the_old_job_and_sweeps_its_parts(model: Path, impressions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    old = score_batch(model, impressions, out, shard_rows=300)
    pq.write_table(make_impressions(200, 9), impressions)
    new = score_batch(model, impressions, out, shard_rows=300)
    assert new["key"] != old["key"]
    assert read_scores(out).num_rows == 200
    assert [p.name for p in out.glob("part-*")] == [p["name"] for p in new["facts"]["parts"]]


def test_candidates_are_expanded_with_their_own_features_and_bids(model: Path, impressions: Path, ads: Path,
                                                                   tmp_path: Path) -> None:
    manifest = score_batch(model, impressions, tmp_path / "out", ads=ads, shard_rows=400, batch_rows=100)
    table, scores = pq.read_table(impressions).to_pydict(), read_scores(tmp_path / "out").to_pydict()
    pairs = [(r, a) for r, c in zip(table["request_id"], table["candidates"], strict=True) for a in c]
    assert list(zip(scores["request_id"], scores["ad_id"], strict=True)) == pairs
    assert manifest["rows"]["pairs"] == len(pairs) > 3000
    ad = {r["ad_id"]: r for r in make_ads().to_pylist()}
    row = {r: i for i, r in enumerate(table["request_id"])}
    for i in range(0, len(pairs), 371):  # by hand, one at a time
        request, name = pairs[i]
        one = {n: table[n][row[request]] for n in ("user_id", "age", "history")}
        one |= {"ad_id": name, "advertiser_id": ad[name]["advertiser_id"], "topic": ad[name]["topic"]}
        alone = load_scorer(model).score(pa.Table.from_pylist([one]))["click"][0]
        assert scores["p_click"][i] == pytest.approx(alone, rel=1e-5)
        assert scores["expected_value"][i] == pytest.approx(alone * ad[name]["bid"], rel=1e-5)


def test_user_and_candidates_alone_are_enough(model: Path, ads: Path, tmp_path: Path) -> None:
    rows = [{"request_id": "q", "user_id": "u1", "age": 30.0, "history": ["a1"], "candidates": ["a3", "a9"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    score_batch(model, tmp_path / "in.parquet", tmp_path / "out", ads=ads)
    assert read_scores(tmp_path / "out")["ad_id"].to_pylist() == ["a3", "a9"]


def test_missing_ad_features_of_plain_rows_come_from_the_ads_table(model: Path, impressions: Path, ads: Path,
                                                                   tmp_path: Path) -> None:
    score_batch(model, impressions, tmp_path / "full")
    table = pq.read_table(impressions).drop_columns(["candidates", "topic", "advertiser_id", "bid"])
    ids = table["ad_id"].to_pylist()
    ids[4] = "nobody"
    pq.write_table(table.set_column(table.column_names.index("ad_id"), "ad_id", pa.array(ids)), impressions)
    manifest = score_batch(model, impressions, tmp_path / "out", ads=ads)
    full = read_scores(tmp_path / "full").drop_columns("scored_at")
    looked_up = read_scores(tmp_path / "out").drop_columns("scored_at")
    assert manifest["facts"]["reasons"] == {"ad_id: not in the ads table": 1}
    full = full.filter(pc.not_equal(full["request_id"], "r4"))
    for name in ("p_click", "expected_value"):
        np.testing.assert_allclose(full[name].to_numpy(), looked_up[name].to_numpy(), rtol=1e-6)


def test_bad_rows_are_rejected_with_reasons_and_nothing_is_lost(model: Path, impressions: Path, ads: Path,
                                                                tmp_path: Path) -> None:
    table = pq.read_table(impressions).to_pydict()
    table["request_id"][1] = None
    table["age"][160] = float("nan")
    table["age"][161] = None  # missing is not bad
    table["age"][162] = 1e308  # beyond float32, in which the model computes
    table["age"][999] = float("-inf")
    table["candidates"][5] = ["a1", "nobody", None]
    table["candidates"][6] = []
    table["candidates"][7], table["ad_id"][7] = None, "a2"  # stands for its own ad
    pq.write_table(pa.table(table), impressions, row_group_size=150)
    manifest = score_batch(model, impressions, tmp_path / "out", ads=ads, shard_rows=300, batch_rows=64)
    rejected, rows = pq.read_table(tmp_path / "out" / "rejected.parquet"), manifest["rows"]
    validate(rejected, REJECTED)
    found = [(r["row"], r["ad_id"], r["column"], r["reason"]) for r in rejected.to_pylist()]
    assert [f for f in found if f[0] in (5, 6)] == [
        (5, None, "candidates", "null ad_id"), (5, "nobody", "candidates", "not in the ads table"),
        (6, table["ad_id"][6], "candidates", "no candidates")]
    for row, column, reason in ((1, "request_id", "null"), *((r, "age", "not finite") for r in (160, 162, 999))):
        assert [f[1:] for f in found if f[0] == row] == [(a, column, reason) for a in table["candidates"][row]]
    expected = sum(1 if c is None else max(len(c), 1) for c in table["candidates"])
    assert rows["pairs"] == expected == rows["scored"] + rows["rejected"]
    assert rows["rejected"] == rejected.num_rows == sum(manifest["facts"]["reasons"].values())
    scores = read_scores(tmp_path / "out").to_pydict()
    assert [a for r, a in zip(scores["request_id"], scores["ad_id"], strict=True) if r in ("r5", "r6", "r7")] == \
        ["a1", "a2"]
    assert "r161" in scores["request_id"]


def test_negative_bid_and_null_ad_are_rejected(model: Path, impressions: Path, tmp_path: Path) -> None:
    table = pq.read_table(impressions).to_pydict()
    table["bid"][3], table["bid"][4], table["ad_id"][5], table["bid"][6] = -1.0, float("inf"), None, None
    pq.write_table(pa.table(table), impressions)
    manifest = score_batch(model, impressions, tmp_path / "out")
    assert manifest["facts"]["reasons"] == {"ad_id: null": 1, "bid: negative": 1, "bid: not finite": 1}
    scores = read_scores(tmp_path / "out").to_pydict()
    assert scores["expected_value"][scores["request_id"].index("r6")] is None


def test_a_row_without_a_probability_is_rejected(model: Path, impressions: Path, tmp_path: Path) -> None:
    scorer = load_scorer(model)

    class Diverged:
        columns, heads, model_id = scorer.columns, scorer.heads, scorer.model_id

        def score(self, table: pa.Table) -> dict[str, np.ndarray]:
            old = np.asarray(table["ad_id"].to_pylist()) == "a3"
            return {"click": np.where(old, np.nan, scorer.score(table)["click"])}

    manifest = score_batch(model, impressions, tmp_path / "out", scorer=Diverged())
    n = pq.read_table(impressions)["ad_id"].to_pylist().count("a3")
    assert manifest["facts"]["reasons"] == {"model: no finite probability": n}
    assert n > 0
    assert "a3" not in read_scores(tmp_path / "out")["ad_id"].to_pylist()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def break_a_page(path: Path) -> None:
    column = pq.ParquetFile(path).metadata.row_group(5).column(1)
    where = column.dictionary_page_offset or column.data_page_offset
    assert column.path_in_schema == "request_id"
    data = bytearray(path.read_bytes())
    data[where : where + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda p: p.unlink(), "no such file"),
    (lambda p: p.write_bytes(b""), "empty file"),
    (cut_short, "not a readable Parquet file"),
    (break_a_page, "damaged Parquet file"),
    (lambda p: pq.write_table(pq.read_table(p).drop_columns("age"), p), "column age: missing column"),
    (lambda p: pq.write_table(pq.read_table(p).drop_columns("request_id"), p), "column request_id: missing column"),
    (lambda p: pq.write_table(pq.read_table(p).slice(0, 0), p), "no rows"),
    (lambda p: with_column(p, "age", ["young"] * 1000), "column age: wrong type"),
    (lambda p: with_column(p, "bid", ["much"] * 1000), "column bid, row 0: wrong type"),
])
def test_bad_files_are_one_line_and_leave_nothing(model: Path, impressions: Path, tmp_path: Path, spoil, message: str,
                                                  ) -> None:
    spoil(impressions)
    with pytest.raises(InputError, match=message) as caught:
        score_batch(model, impressions, tmp_path / "out", shard_rows=100)
    assert "impressions.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_input_leaves_a_finished_job_alone(model: Path, impressions: Path, tmp_path: Path) -> None:
    out, good = tmp_path / "out", impressions.read_bytes()
    score_batch(model, impressions, out, shard_rows=100)
    before = read_scores(out)
    break_a_page(impressions)
    with pytest.raises(InputError, match="damaged"):
        score_batch(model, impressions, out, shard_rows=100)
    assert read_scores(out) == before
    impressions.write_bytes(good)
    assert score_batch(model, impressions, out, shard_rows=100)["cached"]


def test_a_foreign_folder_is_refused(model: Path, impressions: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not a scoring job's output"):
        score_batch(model, impressions, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_two_jobs_do_not_write_to_one_folder(model: Path, impressions: Path, tmp_path: Path) -> None:
    with place(tmp_path / "out").start("another", new_job("another")):
        with pytest.raises(RecsysError, match="another scoring job"):
            score_batch(model, impressions, tmp_path / "out")


def test_globs_cut_into_the_same_rows(model: Path, impressions: Path, tmp_path: Path) -> None:
    table = pq.read_table(impressions)
    for i in range(3):
        pq.write_table(table.slice(i * 400, 400), tmp_path / f"day-{i}.parquet")
    manifest = score_batch(model, str(tmp_path / "day-*.parquet"), tmp_path / "out", shard_rows=250)
    assert [p["rows"] for p in manifest["facts"]["parts"]] == [250, 150, 250, 150, 200]
    assert read_scores(tmp_path / "out")["request_id"].to_pylist() == table["request_id"].to_pylist()
    with pytest.raises(InputError, match="named twice"):
        score_batch(model, [impressions, impressions], tmp_path / "other")


def test_ads_with_a_doubled_id_are_refused(model: Path, impressions: Path, ads: Path, tmp_path: Path) -> None:
    pq.write_table(pa.concat_tables([make_ads(), make_ads().slice(3, 1)]), ads)
    with pytest.raises(InputError, match=r"ads.parquet, column ad_id: ad twice; got 'a3'"):
        score_batch(model, impressions, tmp_path / "out", ads=ads)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "serve.py"), "batch", *map(str, arguments)]


def row_checksums(folder: Path) -> list[int]:
    rows = read_scores(folder).drop_columns("scored_at").to_pylist()
    return sorted(hash(tuple(r.values())) for r in rows)


@pytest.mark.slow
def test_kill_at_random_moments_then_rerun_equals_an_undisturbed_run(model: Path, ads: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(make_impressions(20_000, 7), source, row_group_size=1500)
    settings = ("--model", model, "--input", source, "--ads", ads, "--shard-rows", 500, "--batch-rows", 512)
    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run(command(*settings, "--output", whole), check=True, capture_output=True)
    seed = time.time_ns()
    print("seed", seed)
    rng, kills, halfway = np.random.default_rng(seed), 0, 0
    while kills < 5:
        before = len(live_glob(out, "part-*"))
        goal = before + int(rng.integers(0, 7))
        process = subprocess.Popen(command(*settings, "--output", out), stderr=subprocess.DEVNULL)
        while process.poll() is None and (not (out / "job.json").exists() or len(live_glob(out, "part-*")) < goal):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
        if (out / "manifest.json").exists():  # it was faster than the kill
            assert row_checksums(out) == row_checksums(whole)
            shutil.rmtree(out)
            continue
        kills += 1
        done = len(live_glob(out, "part-*"))
        assert done >= before
        halfway += 0 < done < 40
    assert halfway >= 1
    subprocess.run(command(*settings, "--output", out), check=True, capture_output=True)
    assert row_checksums(out) == row_checksums(whole)
    assert not list(out.rglob("*.partial"))


@pytest.mark.slow
def test_the_command_line(model: Path, impressions: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), capture_output=True, text=True)

    done = run("--model", model, "--input", impressions, "--output", tmp_path / "out", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["rows"]["scored"] == 1000
    again = run("--model", model, "--input", impressions, "--output", tmp_path / "out")
    assert again.stdout.strip().endswith("1,000 scored, 0 rejected (finished before)")
    with_column(impressions, "age", ["young"] * 1000)
    bad = run("--model", model, "--input", impressions, "--output", tmp_path / "bad")
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert bad.stderr.startswith("error: ")
    assert bad.stderr.count("\n") == 1
