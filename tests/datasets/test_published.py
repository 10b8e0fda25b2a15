"""Every recipe on the data set's own published files (RECSYS_DATA_HOME)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.config import ExperimentConfig, ShareSplit, parse_model
from recsys.contracts import ADS, IMPRESSIONS, read_parquet
from recsys.datasets.candidates import expand_candidates
from recsys.datasets.info import load_dataset_info
from recsys.datasets.prepare import prepare
from recsys.datasets.split import prepare_split, split_dataset
from recsys.errors import InputError, Refused


def run(name: str, home: Path, out: Path, **more: Any) -> tuple[pa.Table, dict[str, Any]]:
    manifest = prepare(name, out / name, data_home=home, **more)
    table = read_parquet(out / name / "impressions.parquet", IMPRESSIONS)
    assert table.num_rows == manifest["rows"]["impressions"]
    info = load_dataset_info(out / name)
    assert {*info.dense, *info.sparse, *info.sequence} <= set(table.column_names)
    if (out / name / "ads.parquet").is_file():
        ads = read_parquet(out / name / "ads.parquet", ADS)
        assert set(info.ad_features) <= set(ads.column_names)
        assert pc.all(pc.is_in(table.column("ad_id"), value_set=ads.column("ad_id").combine_chunks())).as_py()
    return table, manifest


def mean(table: pa.Table, column: str) -> float:
    return float(pc.mean(table.column(column)).as_py())


def test_criteo_attribution(data_home: Path, tmp_path: Path) -> None:
    table, _ = run("criteo_attribution", data_home, tmp_path)
    assert table.num_rows == 115_382
    assert mean(table, "click") == pytest.approx(0.361, abs=5e-4)
    assert set(table.column_names) == {"impression_id", "request_id", "ad_id", "click", "cat1", "cat4", "cat6", "cat8",
                                       "cat9"}
    assert pc.count_distinct(table.column("impression_id")).as_py() == table.num_rows


def test_criteo_kaggle_short_rows(data_home: Path, tmp_path: Path) -> None:
    table, _ = run("criteo_kaggle", data_home, tmp_path)
    assert table.num_rows == 1000
    assert mean(table, "click") == pytest.approx(0.205, abs=5e-4)
    raw = [line.rstrip("\n").split("\t") for line in (data_home / "criteo_kaggle_fixture/train_first1000.tsv").open()]
    assert {len(r) for r in raw} == {37, 38, 40}
    names = [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]
    for row, made in zip(raw, table.to_pylist(), strict=True):
        filled = row + [""] * (40 - len(row))
        expected = [float(v) if n[0] == "I" and v else v or None for n, v in zip(names, filled[1:], strict=True)]
        assert [made[n] for n in names] == expected


def test_upworthy(data_home: Path, tmp_path: Path) -> None:
    table, manifest = run("upworthy", data_home, tmp_path)
    raw = pq.read_table(data_home / "upworthy" / "packages.parquet")
    assert pc.sum(raw.column("impressions")).as_py() == 52_982_171
    week = raw.column("test_week").to_numpy()
    kept = raw.filter(pa.array((week < 201325) | (week > 201401))).filter(pc.field("eyecatcher_id").is_valid())
    pooled: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in kept.to_pylist():  # the plain way: requests with at least two headlines, counts added up
        texts = pooled.setdefault((row["clickability_test_id"], row["eyecatcher_id"]), {})
        counts = texts.setdefault(" ".join(row["headline"].split()), [0, 0])
        counts[0] += row["impressions"]
        counts[1] += row["clicks"]
    choices = {k: v for k, v in pooled.items() if len(v) > 1}
    assert manifest["rows"]["impressions"] == sum(len(v) for v in choices.values())
    assert pc.count_distinct(table.column("request_id")).as_py() == len(choices)
    for at, column in enumerate(("trials", "successes")):
        assert pc.sum(table.column(column)).as_py() == sum(c[at] for v in choices.values() for c in v.values())
    assert sum(manifest["facts"]["dropped"].values()) == raw.num_rows - kept.num_rows
    stories = table.select(["group_id", "ad_id"]).group_by("ad_id").aggregate([("group_id", "count_distinct")])
    assert pc.max(stories.column("group_id_count_distinct")).as_py() == 1
    info = load_dataset_info(tmp_path / "upworthy")
    assert info.stories
    assert info.text == ("title",)
    with pytest.raises(Refused, match=r"split: \{kind: story\}"):
        split_dataset(tmp_path / "upworthy", ShareSplit(kind="row"), 0, tmp_path / "split")


def test_upworthy_on_another_file_of_the_same_shape(data_home: Path, tmp_path: Path) -> None:
    raw = pq.read_table(data_home / "upworthy" / "packages.parquet")
    tests = pc.unique(raw.column("clickability_test_id")).to_pylist()
    second = pc.is_in(raw.column("clickability_test_id"), value_set=pa.array(tests[::3], raw.schema[0].type))
    pq.write_table(raw.filter(pc.invert(second)), tmp_path / "one.parquet")
    pq.write_table(raw.filter(second), tmp_path / "two.parquet")
    split = {"kind": "files", "train": "one.parquet", "test": "two.parquet"}
    config = parse_model(ExperimentConfig, {"name": "x", "data": {"recipe": "upworthy", "home": str(tmp_path)},
                                            "split": split}, "x")
    audit = prepare_split(config, tmp_path / "out")["facts"]["audit"]
    assert audit["groups"]["shared"] == audit["texts"]["shared"] == 0
    assert audit["dropped"]["rows"] > 0
    whole = pq.read_metadata(tmp_path / "out" / "data_test" / "impressions.parquet").num_rows
    assert audit["rows"]["test"] == whole


def test_hillstrom(data_home: Path, tmp_path: Path) -> None:
    table, _ = run("hillstrom", data_home, tmp_path)
    assert table.num_rows == 64_000
    assert mean(table, "click") == pytest.approx(0.1468, abs=5e-5)
    assert mean(table, "conversion") == pytest.approx(0.00903, abs=5e-6)
    assert mean(table, "value") == pytest.approx(1.0509, abs=5e-5)
    assert set(table.column("arm_id").to_pylist()) == {"Mens E-Mail", "Womens E-Mail", "No E-Mail"}
    lines = (data_home / "hillstrom" / "hillstrom.csv").read_text().splitlines()[:50]
    (tmp_path / "original.csv").write_text("\n".join([lines[0].replace("treatment", "segment"), *lines[1:]]))
    again, _ = run("hillstrom", tmp_path, tmp_path, files={"impressions": "original.csv"})
    assert again.column("arm_id").to_pylist() == table.column("arm_id").to_pylist()[:49]


def test_movielens(data_home: Path, tmp_path: Path) -> None:
    source = data_home / "movielens_latest_small"
    with (source / "ratings.csv").open() as handle:
        header, *rows = list(csv.reader(handle))
    # A copy may hold a damaged line: it is refused by row, and the rest reads.
    good = [r for r in rows if r[3].isdigit()]
    assert len(rows) == 100_836
    assert len(good) >= 100_835
    if len(good) < len(rows):
        row = next(i for i, r in enumerate(rows) if not r[3].isdigit())
        with pytest.raises(InputError, match=f"ratings.csv, column timestamp, row {row}: wrong type"):
            prepare("movielens", tmp_path / "bad", data_home=data_home)
    with (tmp_path / "ratings.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([header, *good])
    table, manifest = run("movielens", data_home, tmp_path, files={"impressions": str(tmp_path / "ratings.csv")})
    assert manifest["rows"] == {"impressions": len(good), "ads": 9742}
    assert table.column("click").to_pylist() == [int(float(r[2]) >= 4) for r in good]
    assert pc.count_distinct(table.column("user_id")).as_py() == 610
    ads = pq.read_table(tmp_path / "movielens" / "ads.parquet").slice(0, 1).to_pylist()[0]
    assert (ads["title"], ads["category"]) == ("Toy Story (1995)", "Adventure|Animation|Children|Comedy|Fantasy")
    row = table.slice(0, 1).to_pylist()[0]
    assert (row["year"], row["animation"], row["war"]) == (1995.0, 1.0, 0.0)
    at = np.array(table.column("ts").cast("int64"))
    mine = [int(at[i]) for i, u in enumerate(table.column("user_id").to_pylist()) if u == "1"]
    assert row["user_ratings"] == sum(t < at[0] for t in mine)
    split_dataset(tmp_path / "movielens", ShareSplit(kind="time"), 0, tmp_path / "split")
    train, test = (pq.read_table(tmp_path / "split" / f"{s}.parquet").column("ts") for s in ("train", "test"))
    assert pc.max(train).as_py() < pc.min(test).as_py()
    assert len(test) == pytest.approx(0.2 * len(good), rel=0.01)


@pytest.mark.parametrize(("name", "policy", "clicks"), [("open_bandit", "random", 46), ("open_bandit_bts", "bts", 69)])
def test_open_bandit(data_home: Path, tmp_path: Path, name: str, policy: str, clicks: int) -> None:
    table, manifest = run(name, data_home, tmp_path)
    assert manifest["rows"] == {"impressions": 10_000, "ads": 34}
    assert pc.sum(table.column("click")).as_py() == clicks
    assert set(table.column("slot").to_pylist()) == {0, 1, 2}
    assert pc.unique(table.column("policy_id")).to_pylist() == [policy]
    propensity = table.column("propensity").to_numpy()
    assert ((propensity > 0) & (propensity <= 1)).all()
    if policy == "random":
        assert np.allclose(propensity, 1 / 34)
    few = table.slice(0, 50)
    ads = pq.read_table(tmp_path / name / "ads.parquet")
    expanded = expand_candidates(few, ads, load_dataset_info(tmp_path / name))
    assert expanded.num_rows == 50 * 34
    assert pc.sum(expanded.column("logged")).as_py() == 50
    shown = expanded.filter(expanded.column("logged")).select(["ad_id", "item_feature_1"])
    assert shown.to_pylist() == few.select(["ad_id", "item_feature_1"]).to_pylist()


def test_ipinyou(data_home: Path, tmp_path: Path) -> None:
    table, _ = run("ipinyou_theta", data_home, tmp_path)
    assert table.num_rows == 156_063
    assert pc.sum(table.column("click")).as_py() == 530
    assert load_dataset_info(tmp_path / "ipinyou_theta").dense == ()
    log, _ = run("ipinyou", data_home, tmp_path)
    first = log.slice(0, 1).to_pylist()[0]
    assert log.num_rows == 20
    assert first["ts"].isoformat() == "2013-10-23T11:31:12.417000+00:00"
    assert (first["ad_id"], first["advertiser_id"], first["user_tags"]) == ("7323", "2259", None)
    assert (first["bid"], first["price_paid"], first["floor"]) == pytest.approx((0.00294, 0.00148, 0.0005))
    assert pc.all(pc.less_equal(log.column("price_paid"), log.column("bid"))).as_py()
    assert log.column("user_tags")[7].as_py()[:2] == ["10057", "10059"]
