from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys.errors import InputError
from recsys.evaluation.ab.units import HEAD_ROWS, Metric, parse_metric, read_units
from tests.evaluation.ab.samples import exposures, written

CLICKS = Metric("click", "rows", "before")


def test_sums_per_unit_are_those_of_pandas(tmp_path):
    table = exposures(500, arms=("b", "a", "c"))
    units = read_units(written(tmp_path, table), "arm", "user_id", [CLICKS, Metric("value")])
    assert units.arms == ["a", "b", "c"]
    assert units.rows == table.num_rows
    plain = table.to_pandas().groupby("user_id").agg(arm=("arm", "first"), click=("click", "sum"),
                                                     value=("value", "sum"), before=("before", "first"),
                                                     rows=("click", "size"))
    for name in units.arms:
        part = plain[plain["arm"] == name].sort_values(["click", "rows", "value", "before"])
        mine = pd.DataFrame({c: units.of(name, c) for c in ("click", "rows", "value", "before")})
        mine = mine.sort_values(["click", "rows", "value", "before"])
        np.testing.assert_allclose(mine.to_numpy(), part[list(mine.columns)].to_numpy())


def test_a_folder_of_parts_and_any_order_of_rows_give_the_same(tmp_path):
    table = exposures(400)
    whole = read_units(written(tmp_path / "one", table), "arm", "user_id", [CLICKS])
    half = table.num_rows // 2
    written(tmp_path / "two", table.slice(half), "a.parquet")
    written(tmp_path / "two", table.slice(0, half), "b.parquet")
    parts = read_units(tmp_path / "two", "arm", "user_id", [CLICKS])
    for name in whole.arms:
        for column in ("click", "rows"):
            assert sorted(whole.of(name, column)) == sorted(parts.of(name, column))


def test_units_in_several_arms_are_counted_and_left_out(tmp_path):
    table = pa.table({"user_id": ["u", "u", "v", "w", "w"], "arm": ["a", "b", "a", "b", "b"], "click": [1, 1, 0, 1, 1]})
    units = read_units(written(tmp_path, table), "arm", "user_id", [Metric("click")])
    assert units.crossed == 1
    assert units.of("a", "click").tolist() == [0]
    assert units.of("b", "click").tolist() == [2]


def test_a_covariate_is_the_units_one_number(tmp_path):
    table = pa.table({"user_id": ["u", "u", "v", "w", "w"], "arm": ["a", "a", "b", "a", "b"], "click": [1, 2, 0, 1, 1],
                      "before": [0.0, -0.0, 0.1, 3.0, 3.0]})
    units = read_units(written(tmp_path, table), "arm", "user_id", [CLICKS])
    assert units.crossed == 1
    assert {c: v.tolist() for c, v in units.values.items()} == {"click": [3, 0], "before": [0, 0.1], "rows": [2, 1]}
    # and a change is seen after the first rows as well, which are tried before all are read
    user = np.arange(HEAD_ROWS + 1)
    user[-1] = 7
    late = pa.table({"user_id": user, "arm": np.array(["a", "b"])[user % 2], "click": np.zeros(len(user)),
                     "before": np.where(np.arange(len(user)) == HEAD_ROWS, 1.0, 0.5)})
    with pytest.raises(InputError, match=r"covariate changes within user_id 7; got \(0.5, 1.0\)"):
        read_units(written(tmp_path, late), "arm", "user_id", [CLICKS])


@pytest.mark.parametrize(("change", "message"), [
    ({"click": pa.array([1, None, 0])}, "column click, row 1: value not allowed"),
    ({"click": pa.array([1.0, 2.0, np.inf])}, "column click, row 2: value not allowed"),
    ({"click": pa.array([np.nan, 2.0, 1.0])}, "column click, row 0: value not allowed"),
    ({"user_id": pa.array(["u", None, "v"])}, "column user_id, row 1: value not allowed"),
    ({"arm": pa.array(["a", "b", None])}, "column arm, row 2: value not allowed"),
    ({"click": pa.array(["x", "y", "z"])}, "column click: not a number"),
    ({"before": pa.array([1.0, 2.0, 3.0]), "user_id": pa.array(["u", "u", "v"]), "arm": pa.array(["a", "a", "b"])},
     "column before: covariate changes within user_id u"),
    ({"before": pa.array([1.0, np.nan, 2.0]), "user_id": pa.array(["u", "u", "v"]), "arm": pa.array(["a", "a", "b"])},
     "column before, row 1: value not allowed"),
])
def test_bad_rows_are_named(tmp_path, change, message):
    good = {"user_id": pa.array(["u", "v", "w"]), "arm": pa.array(["a", "b", "a"]), "click": pa.array([1, 0, 1]),
            "before": pa.array([1.0, 1.0, 1.0])}
    with pytest.raises(InputError, match=message):
        read_units(written(tmp_path, pa.table(good | change)), "arm", "user_id", [CLICKS])


def test_bad_files_are_named(tmp_path):
    table = exposures(50)
    file = written(tmp_path, table)
    for wrong, message in (({"arm": "group"}, "missing column"), ({"unit": "person"}, "missing column"),
                           ({"arm": "user_id"}, "one column")):
        with pytest.raises(InputError, match=message):
            read_units(file, **{"arm": "arm", "unit": "user_id", "metrics": [CLICKS], **wrong})
    with pytest.raises(InputError, match="its own covariate"):
        read_units(file, "arm", "user_id", [Metric("click", covariate="click")])
    with pytest.raises(InputError, match="no such file"):
        read_units(tmp_path / "none.parquet", "arm", "user_id", [CLICKS])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no Parquet file"):
        read_units(tmp_path / "empty", "arm", "user_id", [CLICKS])
    data = bytearray(file.read_bytes())
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut.parquet: not a readable Parquet file"):
        read_units(tmp_path / "cut.parquet", "arm", "user_id", [CLICKS])
    with pytest.raises(InputError, match="no rows"):
        read_units(written(tmp_path, table.slice(0, 0), "none.parquet"), "arm", "user_id", [CLICKS])
    written(tmp_path / "mixed", table.slice(0, 20), "a.parquet")
    written(tmp_path / "mixed", table.slice(20).drop_columns(["click"]), "b.parquet")
    with pytest.raises(InputError, match=r"b.parquet, column click: value not allowed|does not stand in every file"):
        read_units(tmp_path / "mixed", "arm", "user_id", [CLICKS])


def test_metrics_are_parsed():
    assert parse_metric("click/rows") == Metric("click", "rows")
    assert parse_metric("spend", {"": "history"}) == Metric("spend", None, "history")
    assert parse_metric("a/b", {"": "x", "a/b": "c/d"}) == Metric("a", "b", "c", "d")
    for bad in ("", "/", "a/", "a/b/c", "/b"):
        with pytest.raises(InputError, match="malformed metric"):
            parse_metric(bad)


def test_booleans_count(tmp_path):
    table = pa.table({"user_id": [1, 1, 2], "arm": ["a", "a", "b"], "click": [True, True, False]})
    units = read_units(written(tmp_path, table), "arm", "user_id", [Metric("click")])
    assert units.of("a", "click").tolist() == [2.0]
    assert pc.sum(pa.array(units.values["rows"])).as_py() == 3
