"""Preparing made-up raw files: rules, errors, and nothing half-written."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from recsys.contracts import ADS, IMPRESSIONS, read_parquet
from recsys.datasets import reader
from recsys.datasets.info import load_dataset_info
from recsys.datasets.prepare import prepare
from recsys.datasets.text import content_hash
from recsys.errors import InputError

RECIPE: dict[str, Any] = {
    "name": "toy", "published": "https://example.org/toy", "licence": "CC0",
    "tables": {"impressions": {"file": ["none.csv", "log.csv"]}, "ads": {"file": "ads.csv"}},
    "columns": {
        "impression_id": {"row_id": True}, "request_id": {"join": ["user", "page"], "separator": "/"},
        "user_id": "user", "slot": {"from": ["place", "position"], "add": -1}, "ad_id": "ad",
        "ts": {"from": "when", "time": "%Y%m%d%H%M%S", "fraction_digits": 3, "utc_offset_hours": 8},
        "candidates": {"all_ads": True}, "propensity": "p", "click": {"from": "stars", "at_least": 4},
        "hide": {"from": "hidden", "optional": True}, "bid": {"from": "cents", "multiply": 0.01},
        "tags": {"from": "tags", "split": ";"}, "raw_stars": {"from": "stars", "type": "float"}},
    "ads": {"ad_id": "id", "title": "name", "body": {"from": "text"}, "topic": "topic"},
    "features": {"dense": ["age"], "sparse": ["topic", "user_id"], "sequence": ["tags"], "ads": ["topic"]},
    "label": {"click": {"kind": "binary", "column": "click"}}, "text": ["title", "body"],
}
LOG = ["user,page,position,ad,when,p,stars,cents,tags,age",
       "u1,7,1,a,20131023193112417,0.5,4,150,x;y,33", "u1,7,2,b,20131023193112417,1,3.5,0,,44.5",
       "u2,8,1,a,,,5,20,z,"]
ADS_FILE = ["id,name,text,topic", 'a,"One, two",,t1', "b,Three,four,t2"]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "log.csv").write_text("\n".join(LOG) + "\n")
    (tmp_path / "ads.csv").write_text("\n".join(ADS_FILE) + "\n")
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def run(folder: Path) -> dict[str, Any]:
    return prepare(folder / "toy.yaml", folder / "out", data_home=folder)


def test_rules_make_the_columns_they_say(toy: Path) -> None:
    manifest = run(toy)
    assert manifest["rows"] == {"impressions": 3, "ads": 2}
    table = read_parquet(toy / "out" / "impressions.parquet", IMPRESSIONS)
    rows = table.to_pylist()
    assert [r["request_id"] for r in rows] == ["u1/7", "u1/7", "u2/8"]
    assert [r["slot"] for r in rows] == [0, 1, 0]
    assert rows[0]["ts"] == dt.datetime(2013, 10, 23, 11, 31, 12, 417000, tzinfo=dt.UTC)
    assert rows[2]["ts"] is None
    assert [r["propensity"] for r in rows] == [0.5, 1.0, None]
    assert [r["click"] for r in rows] == [1, 0, 1]
    assert [r["raw_stars"] for r in rows] == [4.0, 3.5, 5.0]
    assert [r["bid"] for r in rows] == [1.5, 0.0, 0.2]
    assert [r["tags"] for r in rows] == [["x", "y"], None, ["z"]]
    assert [r["topic"] for r in rows] == ["t1", "t2", "t1"]
    assert [r["age"] for r in rows] == [33.0, 44.5, None]
    assert rows[0]["candidates"] == ["a", "b"]
    assert "hide" not in table.column_names
    assert len({r["impression_id"] for r in rows}) == 3
    ads = read_parquet(toy / "out" / "ads.parquet", ADS).to_pylist()
    assert [a["content_hash"] for a in ads] == [content_hash("One, two"), content_hash("Three", "four")]
    info = load_dataset_info(toy / "out")
    assert (info.name, info.source, info.licence) == ("toy", "https://example.org/toy", "CC0")
    assert (info.dense, info.sparse, info.ad_features) == (("age",), ("topic", "user_id"), ("topic",))
    assert json.loads((toy / "out" / "dataset.json").read_text())["label"] == RECIPE["label"]


def test_id_rows_are_written_as_integers_and_checked_at_the_door(toy: Path) -> None:
    log = [line + more for line, more in zip(LOG, [",spot", ",0", ",4", ",2"], strict=True)]
    ads = [line + more for line, more in zip(ADS_FILE, [",group", ",1", ",0"], strict=True)]
    features = {"sparse": ["spot", "group", "topic"], "ads": ["group", "topic"], "id_rows": {"spot": 5, "group": 2}}
    recipe = {**RECIPE, "features": features, "ads": {**RECIPE["ads"], "group": "group"}}

    def prepared(log: list[str], ads: list[str]) -> dict[str, Any]:
        (toy / "log.csv").write_text("\n".join(log) + "\n")
        (toy / "ads.csv").write_text("\n".join(ads) + "\n")
        (toy / "toy.yaml").write_text(yaml.safe_dump(recipe))
        return run(toy)

    prepared(log, ads)
    table = pq.read_table(toy / "out" / "impressions.parquet")
    assert table.schema.field("spot").type == table.schema.field("group").type == pa.int64()
    assert table["spot"].to_pylist() == [0, 4, 2]
    assert table["group"].to_pylist() == [1, 0, 1]
    assert load_dataset_info(toy / "out").id_rows == {"spot": 5, "group": 2}
    with pytest.raises(InputError, match=r"column spot, row 2: value not allowed; got 5; expected an integer"):
        prepared([*log[:-1], log[-1][:-1] + "5"], ads)
    with pytest.raises(InputError, match="column spot, row 2: null value"):
        prepared([*log[:-1], log[-1][:-1]], ads)
    with pytest.raises(InputError, match=r"column group, row 0: value not allowed; got 2; .* \[0, 2\)"):
        prepared(log, [ads[0], ads[1][:-1] + "2", ads[2]])


def test_second_run_does_nothing_and_a_changed_input_runs_again(toy: Path) -> None:
    assert run(toy)["cached"] is False
    before = (toy / "out" / "impressions.parquet").stat().st_mtime_ns
    assert run(toy)["cached"] is True
    assert (toy / "out" / "impressions.parquet").stat().st_mtime_ns == before
    (toy / "log.csv").write_text("\n".join(LOG[:2]) + "\n")
    assert run(toy)["rows"]["impressions"] == 1


def test_batches_join_without_seams(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = LOG[:1] + LOG[1:] * 400
    (toy / "log.csv").write_text("\n".join(many) + "\n")
    monkeypatch.setattr(reader, "BLOCK_BYTES", 1000)
    run(toy)
    table = pq.read_table(toy / "out" / "impressions.parquet")
    assert [i.rsplit("-", 1)[1] for i in table.column("impression_id").to_pylist()] == [str(i) for i in range(1200)]
    assert table.column("click").to_pylist() == [1, 0, 1] * 400


BAD = [
    ("p of 0", 2, "u1,7,2,b,20131023193112417,0,3.5,0,,44.5", "log.csv, column p, row 1: value not allowed; got 0.0"),
    ("p above 1", 3, "u2,8,1,a,,1.5,5,20,z,", "log.csv, column p, row 2: value not allowed; got 1.5"),
    ("wrong type", 2, "u1,7,2,b,20131023193112417,1,good,0,,44.5", "column stars, row 1: wrong type; got 'good'"),
    ("wrong dense", 1, "u1,7,1,a,20131023193112417,0.5,4,150,x,old", "column age, row 0: wrong type; got 'old'"),
    ("no label", 2, "u1,7,2,b,20131023193112417,1,,0,,44.5", "log.csv, column stars, row 1: null value"),
    ("no ad", 2, "u1,7,2,,20131023193112417,1,3,0,,44.5", "log.csv, column ad, row 1: null value"),
    ("unknown ad", 2, "u1,7,2,q,20131023193112417,1,3,0,,44.5", "row 1: ad without a row in the ads file; got 'q'"),
    ("slot below 0", 1, "u1,7,0,a,20131023193112417,1,3,0,,44.5", "log.csv, column position, row 0: value not allowed"),
    ("not a time", 1, "u1,7,1,a,2013-10-23,1,3,0,,44.5", "log.csv, column when, row 0: not a time; got '2013-10-23'"),
    ("negative bid", 1, "u1,7,1,a,20131023193112417,1,3,-5,,44.5", "log.csv, column cents, row 0: value not allowed"),
    ("short row", 3, "u2,8,1,a", "log.csv, row 2: row of the wrong length; got '4 fields'; expected 10 fields"),
    ("missing column", 0, "user,page,position,ad,when,prop,stars,cents,tags,age", "column p: missing column"),
    ("either column missing", 0, "user,page,pos,ad,when,p,stars,cents,tags,age", "column place or position: missing"),
]


@pytest.mark.parametrize(("line", "text", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_values_are_named_by_raw_file_column_and_row(toy: Path, line: int, text: str, message: str) -> None:
    (toy / "log.csv").write_text("\n".join([*LOG[:line], text, *LOG[line + 1:]]) + "\n")
    before = sorted(toy.iterdir())
    with pytest.raises(InputError) as error:
        run(toy)
    assert message in str(error.value)
    assert "log.csv" in str(error.value)
    assert "expected" in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(toy.iterdir()) == before  # neither output nor partial folder


def test_an_ad_listed_twice_and_files_without_rows(toy: Path) -> None:
    (toy / "ads.csv").write_text("\n".join([*ADS_FILE, "a,again,,t9"]) + "\n")
    with pytest.raises(InputError, match=r"ads.csv, column ad_id, row 2: ad listed twice; got 'a'"):
        run(toy)
    (toy / "ads.csv").write_text(ADS_FILE[0] + "\n")
    with pytest.raises(InputError, match=r"ads.csv: no rows"):
        run(toy)
    (toy / "ads.csv").write_text("\n".join(ADS_FILE))
    (toy / "log.csv").write_text(LOG[0] + "\n")
    with pytest.raises(InputError, match=r"log.csv: no rows"):
        run(toy)


def test_missing_file_says_where_it_is_published(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / "log.csv").unlink()
    with pytest.raises(InputError) as error:
        run(toy)
    for part in ("raw file not found", "none.csv or log.csv", "https://example.org/toy", "licence: CC0"):
        assert part in str(error.value)
    monkeypatch.delenv("RECSYS_DATA_HOME", raising=False)
    with pytest.raises(InputError, match=r"no data home; expected --data-home or RECSYS_DATA_HOME"):
        prepare(toy / "toy.yaml", toy / "out")
    monkeypatch.setenv("RECSYS_DATA_HOME", str(toy))
    with pytest.raises(InputError, match="raw file not found"):
        prepare(toy / "toy.yaml", toy / "out")


def test_files_argument_is_looked_for_as_given_then_below_the_home(toy: Path) -> None:
    (toy / "log.csv").rename(toy / "other.csv")
    for given in ("other.csv", str(toy / "other.csv")):
        done = prepare(toy / "toy.yaml", toy / "out", data_home=toy, files={"impressions": given})
        assert done["rows"]["impressions"] == 3
    with pytest.raises(InputError, match="no such table"):
        prepare(toy / "toy.yaml", toy / "out", data_home=toy, files={"clicks": "other.csv"})
    with pytest.raises(InputError, match="not a simulation"):
        prepare(toy / "toy.yaml", toy / "out", data_home=toy, params={"users": 3}, files={"impressions": "other.csv"})


def upworthy(folder: Path, **columns: list[Any]) -> dict[str, Any]:
    base: dict[str, list[Any]] = {
        "clickability_test_id": ["t1", "t1", "t1", "t1", "t2", "t2", "t3", "t3"],
        "headline": ["A", "B", "B ", "C", "D", "A", "E", "F"], "eyecatcher_id": list("iiijkkll"),
        "test_week": [201400, 201402, 201402, 201402, 201402, 201402, 201450, 201324],
        "impressions": [100, 100, 50, 70, 60, 90, 80, 0], "clicks": [3, 2, 1, 1, 0, 5, 4, 0]}
    base["test_week"][0] = 201402
    pq.write_table(pa.table({**base, **columns}), folder / "packages.parquet")
    return prepare("upworthy", folder / "out", data_home=folder)


def test_pooling_stories_and_requests_without_a_choice(tmp_path: Path) -> None:
    facts = upworthy(tmp_path)["facts"]
    rows = pq.read_table(tmp_path / "out" / "impressions.parquet").to_pylist()
    got = [(r["request_id"], r["ad_id"], r["trials"], r["successes"], r["group_id"]) for r in rows]
    assert got == [("t1|i", content_hash("A"), 100, 3, "t1"), ("t1|i", content_hash("B"), 150, 3, "t1"),
                   ("t2|k", content_hash("D"), 60, 0, "t1"), ("t2|k", content_hash("A"), 90, 5, "t1")]
    assert (facts["pooled_rows"], facts["dropped_without_trials"], facts["dropped_without_choice"]) == (1, 1, 2)
    ads = pq.read_table(tmp_path / "out" / "ads.parquet").to_pylist()
    assert [(a["title"], a["content_hash"] == a["ad_id"]) for a in ads] == [("A", True), ("B", True), ("D", True)]


def test_rows_in_a_raw_file_keep_their_numbers_through_the_filter(tmp_path: Path) -> None:
    weeks = [201330, 201401, *[201402] * 6]
    with pytest.raises(InputError, match=r"packages.parquet, column clicks, row 5: value not allowed"):
        upworthy(tmp_path, test_week=weeks, clicks=[3, 2, 1, 1, 0, 91, 4, 0])
    with pytest.raises(InputError, match=r"column clicks, row 7: value not allowed"):  # a click without trials
        upworthy(tmp_path, test_week=weeks, clicks=[3, 2, 1, 1, 0, 5, 4, 1])
    with pytest.raises(InputError, match=r"column impressions, row 2: wrong type; got 'many'"):
        upworthy(tmp_path, test_week=weeks, impressions=["1", "2", "many", *["200"] * 5])
    with pytest.raises(InputError, match=r"column headline, row 0: wrong type; got 1.5; expected a text"):
        upworthy(tmp_path, headline=[1.5] * 8)
    done = upworthy(tmp_path, test_week=weeks)
    assert done["facts"]["dropped"]["randomisation was broken in these weeks"] == 2


def test_bad_weeks_are_cut_at_both_ends(tmp_path: Path) -> None:
    done = upworthy(tmp_path, test_week=[201324, 201325, 201350, 201401, 201402, 201402, 201402, 201402])
    assert done["facts"]["dropped"]["randomisation was broken in these weeks"] == 3
