"""Splits: deterministic, disjoint, complete; leaks are refused."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.config import ExperimentConfig, ShareSplit, parse_model
from recsys.datasets.prepare import prepare
from recsys.datasets.split import prepare_split, split_dataset, split_files
from recsys.errors import InputError, Refused
from recsys.stage import write_json

ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 30)), min_size=2, max_size=40)


def prepared(folder: Path, rows: list[tuple[int, int, int]], stories: bool = False) -> Path:
    """A prepared dataset of rows (request, user, hour); a user's rows are one story."""
    folder.mkdir(parents=True)
    table = pa.table({
        "impression_id": [str(i) for i in range(len(rows))], "request_id": [f"r{u}-{r}" for r, u, _ in rows],
        "ad_id": [f"ad{u}" for _, u, _ in rows], "user_id": [f"u{u}" for _, u, _ in rows],
        "group_id": [f"u{u}" for _, u, _ in rows],
        "ts": pa.array([dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=h) for *_, h in rows],
                       pa.timestamp("us", "UTC"))})
    pq.write_table(table, folder / "impressions.parquet")
    write_json(folder / "dataset.json", {"name": "toy", "stories": stories})
    write_json(folder / "manifest.json", {"key": str(rows), "inputs": {"impressions": str(rows)}})
    return folder


def parts(folder: Path) -> tuple[pa.Table, pa.Table]:
    return pq.read_table(folder / "train.parquet"), pq.read_table(folder / "test.parquet")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, kind=st.sampled_from(["time", "row", "user", "story"]), share=st.floats(0.05, 0.95),
       seed=st.integers(0, 3))
def test_disjoint_complete_and_deterministic(tmp_path: Path, rows: list[tuple[int, int, int]], kind: Any, share: float,
                                             seed: int) -> None:
    shutil.rmtree(tmp_path / "d", ignore_errors=True)
    data = prepared(tmp_path / "d" / "data", rows)
    split = ShareSplit(kind=kind, test_share=share)
    try:
        split_dataset(data, split, seed, tmp_path / "d" / "one")
    except InputError as error:
        assert "too few" in str(error)  # noqa: PT017
        return
    train, test = parts(tmp_path / "d" / "one")
    ids = [*train.column("impression_id").to_pylist(), *test.column("impression_id").to_pylist()]
    assert sorted(ids, key=int) == [str(i) for i in range(len(rows))]
    assert train.num_rows
    assert test.num_rows
    unit = {"time": "request_id", "row": "request_id", "user": "user_id", "story": "group_id"}[kind]
    assert not set(train.column(unit).to_pylist()) & set(test.column(unit).to_pylist())
    if kind == "time":
        first = {}
        for table in (train, test):
            for request, ts in zip(table.column(unit).to_pylist(), table.column("ts").to_pylist(), strict=True):
                first[request] = min(ts, first.get(request, ts))
        early, late = ([first[r] for r in table.column(unit).to_pylist()] for table in (train, test))
        assert max(early) < min(late)
    else:
        wanted = share * len({*train.column(unit).to_pylist(), *test.column(unit).to_pylist()})
        assert abs(len(set(test.column(unit).to_pylist())) - max(wanted, 1)) <= 0.5 + 1e-9
    again = split_dataset(data, split, seed, tmp_path / "d" / "two")
    assert [t.to_pylist() for t in parts(tmp_path / "d" / "two")] == [train.to_pylist(), test.to_pylist()]
    assert split_dataset(data, split, seed, tmp_path / "d" / "two") == {**again, "cached": True}


def test_seed_matters_and_truth_and_ads_travel(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", [(i, i % 7, i) for i in range(200)])
    (data / "truth").mkdir()
    (data / "truth" / "world.json").write_text("{}")
    pq.write_table(pa.table({"ad_id": ["ad0"], "title": ["x"], "content_hash": ["h"]}), data / "ads.parquet")
    tests = []
    for seed in (0, 1):
        split_dataset(data, ShareSplit(kind="row"), seed, tmp_path / f"s{seed}")
        tests.append(parts(tmp_path / f"s{seed}")[1].column("impression_id").to_pylist())
    assert tests[0] != tests[1]
    assert (tmp_path / "s0" / "truth" / "world.json").is_file()
    assert pq.read_table(tmp_path / "s0" / "ads.parquet").num_rows == 1
    assert json.loads((tmp_path / "s0" / "dataset.json").read_text())["name"] == "toy"


def test_missing_unit_null_unit_and_unprepared_folder(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", [(i, i, i) for i in range(9)])
    file = data / "impressions.parquet"
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["ts"]), file)
    with pytest.raises(InputError, match="column ts: a split by time needs this column"):
        split_dataset(data, ShareSplit(kind="time"), 0, tmp_path / "s")
    users = pa.array(["u", "v", None, *["w"] * 6])
    pq.write_table(table.set_column(table.column_names.index("user_id"), "user_id", users), file)
    with pytest.raises(InputError, match="column user_id, row 2: a split by user needs a value"):
        split_dataset(data, ShareSplit(kind="user"), 0, tmp_path / "s")
    with pytest.raises(InputError, match="not a prepared dataset"):
        split_dataset(tmp_path, ShareSplit(kind="row"), 0, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def headlines(folder: Path, tests: list[tuple[str, list[str]]], seed: int = 0) -> Path:
    """An Upworthy-shaped raw file: each test shows its headlines with one image."""
    rng = np.random.default_rng(seed)
    rows = [(test, text) for test, texts in tests for text in texts]
    n = len(rows)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{tests[0][0]}.parquet"
    pq.write_table(pa.table({
        "clickability_test_id": [t for t, _ in rows], "headline": [h for _, h in rows], "eyecatcher_id": ["i"] * n,
        "test_week": [201420] * n, "impressions": [1000] * n, "clicks": rng.integers(5, 40, n)}), file)
    return file


def repeated_tests(n: int = 60) -> list[tuple[str, list[str]]]:
    """Every test is run twice with the same headlines, as editors do."""
    return [(f"t{i:03d}{run}", [f"headline {i} {k}" for k in range(3)]) for i in range(n) for run in "ab"]


def memoriser_wins(train: pa.Table, test: pa.Table) -> tuple[int, int]:
    """Pairs of a request for which a text-free memory of training click rates knows both headlines."""
    known = set(train.column("ad_id").to_pylist())
    requests: dict[str, list[bool]] = {}
    for request, ad in zip(test.column("request_id").to_pylist(), test.column("ad_id").to_pylist(), strict=True):
        requests.setdefault(request, []).append(ad in known)
    return sum(all(r) for r in requests.values()), len(requests)


def test_the_text_free_memoriser_is_kept_out(tmp_path: Path) -> None:
    file = headlines(tmp_path / "raw", repeated_tests())
    prepare("upworthy", tmp_path / "data", files={"impressions": str(file)})
    # The trap is real: cut at random, most test requests hold only headlines whose click rate was seen in training.
    table = pq.read_table(tmp_path / "data" / "impressions.parquet")
    requests = pc.unique(table.column("request_id")).to_pylist()
    random = set(np.random.default_rng(0).permutation(requests)[: len(requests) // 5])
    held = pa.array([r in random for r in table.column("request_id").to_pylist()])
    known, total = memoriser_wins(table.filter(pc.invert(held)), table.filter(held))
    assert known > 0.6 * total
    with pytest.raises(Refused, match=r"a split by row leaks: \d+ texts and \d+ stories.*split: \{kind: story\}"):
        split_dataset(tmp_path / "data", ShareSplit(kind="row"), 0, tmp_path / "split")
    assert not (tmp_path / "split").exists()
    split_dataset(tmp_path / "data", ShareSplit(kind="story"), 0, tmp_path / "split")
    assert memoriser_wins(*parts(tmp_path / "split")) == (0, 24)
    audit = json.loads((tmp_path / "split" / "audit.json").read_text())
    assert audit["groups"] == {"train": 48, "test": 12, "shared": 0}
    assert audit["texts"] == {"train": 144, "test": 36, "shared": 0}


def config(**split: Any) -> ExperimentConfig:
    return parse_model(ExperimentConfig, {"name": "x", "data": {"recipe": "upworthy"}, "split": split}, "x.yaml")


def test_files_split_drops_training_stories_that_reach_into_the_test_file(tmp_path: Path) -> None:
    # a1 shares a headline with b1 of the test file, a2 shares one with a1: the whole chain must go.
    train = headlines(tmp_path / "raw", [("a1", ["x", "y"]), ("a2", ["y", "z"]), ("a3", ["p", "q"])])
    test = headlines(tmp_path / "raw", [("b1", ["x", "w"]), ("b2", ["m", "n"])], seed=1)
    prepare_split(config(kind="files", train=train.name, test=str(test)), tmp_path / "out", tmp_path / "raw")
    left, right = parts(tmp_path / "out" / "split")
    assert set(left.column("experiment_id").to_pylist()) == {"a3"}
    assert set(right.column("experiment_id").to_pylist()) == {"b1", "b2"}
    assert right.num_rows == 4
    audit = json.loads((tmp_path / "out" / "split" / "audit.json").read_text())
    assert audit["dropped"] == {"rows": 4, "side": "train", "why": "shares a story with the test file", "groups": 1}
    assert audit["groups"]["shared"] == audit["texts"]["shared"] == 0
    ads = pq.read_table(tmp_path / "out" / "split" / "ads.parquet").column("title").to_pylist()
    assert sorted(ads) == ["m", "n", "p", "q", "w", "x"]
    again = prepare_split(config(kind="files", train=train.name, test=str(test)), tmp_path / "out", tmp_path / "raw")
    assert again["cached"] is True


def test_files_split_refuses_the_same_file_and_needs_something_to_train_on(tmp_path: Path) -> None:
    train = headlines(tmp_path / "raw", [("a1", ["x", "y"])])
    test = headlines(tmp_path / "raw", [("b1", ["x", "w"])])
    with pytest.raises(Refused, match="same file"):
        prepare_split(config(kind="files", train=str(train), test=str(train)), tmp_path / "out")
    with pytest.raises(InputError, match="every training row shares a story with the test file"):
        prepare_split(config(kind="files", train=str(train), test=str(test)), tmp_path / "out")
    assert not (tmp_path / "out" / "split").exists()
    with pytest.raises(InputError, match="raw file not found"):
        prepare_split(config(kind="files", train=str(train), test="nowhere.parquet"), tmp_path / "out")


def test_ad_logs_may_share_ads_across_files(tmp_path: Path) -> None:
    one = prepared(tmp_path / "one", [(i, i % 3, i) for i in range(9)])
    two = prepared(tmp_path / "two", [(i, i % 3, i) for i in range(5)])
    split_files(one, two, tmp_path / "out")
    left, right = parts(tmp_path / "out")
    assert (left.num_rows, right.num_rows) == (9, 5)
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["texts"]["shared"] == 3


def test_a_simulated_recipe_is_prepared_and_split(tmp_path: Path) -> None:
    small = {"users": 100, "advertisers": 20, "ads": 60, "requests": 400}
    whole = parse_model(ExperimentConfig, {"name": "x", "data": {"recipe": "marketplace", "simulate": small},
                                           "split": {"kind": "time", "test_share": 0.25}}, "x.yaml")
    rows = prepare_split(whole, tmp_path / "out")["rows"]
    assert rows["train"] + rows["test"] == pq.read_metadata(tmp_path / "out" / "data" / "impressions.parquet").num_rows
    assert (tmp_path / "out" / "split" / "truth").is_dir()
    train, test = parts(tmp_path / "out" / "split")
    assert pc.max(train.column("ts")).as_py() < pc.min(test.column("ts")).as_py()
    assert pc.count_distinct(test.column("request_id")).as_py() == pytest.approx(100, abs=1)
    with pytest.raises(InputError, match="a simulated data set reads no files"):
        prepare("marketplace", tmp_path / "other", files={"impressions": "x"})
