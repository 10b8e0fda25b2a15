"""The door: every way a table can be wrong gives one line with file, column, row, got and expected."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.contracts import ADS, COSTS, IMPRESSIONS, POLICY, SCORES, iter_parquet, read_parquet, validate
from recsys.errors import InputError


def impressions(**columns: list) -> pa.Table:
    rows = max((len(v) for v in columns.values()), default=2)
    names = [str(i) for i in range(rows)]
    return pa.table({"impression_id": names, "request_id": names, "ad_id": names} | columns)


def problem(table: pa.Table, contract=IMPRESSIONS) -> InputError:
    with pytest.raises(InputError) as caught:
        validate(table, contract, "log.parquet")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_right_table_passes_and_is_cast_to_the_contract():
    table = validate(impressions(click=pa.array([0, 1], pa.int64()), slot=pa.array([0, 1], pa.int64())), IMPRESSIONS)
    assert table.schema.field("click").type == pa.int8()
    assert table.schema.field("slot").type == pa.int32()


def test_missing_column_is_named():
    error = problem(impressions().drop_columns(["ad_id"]))
    assert error.column == "ad_id"
    assert "missing column" in str(error)
    assert "log.parquet" in str(error)


def test_wrong_type_names_the_first_row_that_does_not_fit():
    error = problem(impressions(propensity=["0.5", "0.25", "many", "x"]))
    assert (error.column, error.row, error.got) == ("propensity", 2, "many")


@pytest.mark.parametrize("bad", [0.0, -0.1, 1e-300, 1.0001, float("nan"), float("inf")])
def test_a_propensity_outside_its_range_is_refused(bad: float):
    error = problem(impressions(propensity=[0.5, bad]))
    assert (error.column, error.row) == ("propensity", 1)
    assert "(0, 1]" in str(error)


def test_an_unknown_propensity_is_null_and_passes():
    assert validate(impressions(propensity=[0.5, None]), IMPRESSIONS).column("propensity").null_count == 1


def test_a_click_without_trials_and_more_successes_than_trials_are_refused():
    assert problem(impressions(trials=[3, 0], click=[1, 1])).column == "click"
    error = problem(impressions(trials=[3, 2], successes=[1, 5]))
    assert (error.column, error.row) == ("successes", 1)


def test_null_in_a_required_column_is_refused():
    error = problem(impressions(ad_id=["a", None]))
    assert (error.column, error.row) == ("ad_id", 1)


@pytest.mark.parametrize(("contract", "column", "value"), [
    (ADS, "bid", -1.0), (POLICY, "probability", 1.5), (SCORES, "p_click", -0.1)])
def test_other_contracts_check_their_values(contract, column, value):
    row = {c.name: pa.array([None], c.type) if c.nullable else pa.array([""] if c.type == pa.string() else [0], c.type)
           for c in contract.columns}
    row[column] = pa.array([value])
    assert problem(pa.table(row), contract).column == column


def test_costs_has_the_mandatory_columns_of_focus():
    required = {c.name for c in COSTS.columns if c.required}
    assert {"BilledCost", "EffectiveCost", "ListCost", "ChargePeriodStart", "ServiceCategory"} <= required
    assert len(required) == 21


@given(st.integers(0, 40), st.integers(1, 41))
def test_the_row_of_a_late_error_is_right_whatever_the_batch(bad: int, batch: int):
    import tempfile

    clicks = [0] * 41
    clicks[bad] = 7
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.parquet"
        pq.write_table(impressions(click=clicks), path)
        with pytest.raises(InputError) as caught:
            list(iter_parquet(path, IMPRESSIONS, batch_rows=batch))
    assert caught.value.row == bad


def test_empty_truncated_foreign_and_rowless_files(tmp_path: Path):
    good = tmp_path / "good.parquet"
    pq.write_table(impressions(), good)
    cases = {"empty.parquet": b"", "truncated.parquet": good.read_bytes()[:-20], "foreign.parquet": b"a,b\n1,2\n" * 9}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_parquet(tmp_path / name, IMPRESSIONS)
    pq.write_table(impressions().slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(InputError, match="no rows"):
        read_parquet(tmp_path / "none.parquet", IMPRESSIONS)
    with pytest.raises(InputError, match="no such file"):
        read_parquet(tmp_path / "absent.parquet")


def test_two_columns_of_one_name_are_refused_before_anything_asks_for_either(tmp_path: Path):
    table = impressions()
    pq.write_table(pa.table([*table.columns, table["ad_id"]], [*table.column_names, "ad_id"]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet, column ad_id: column twice; got '2 columns'; expected one"):
        read_parquet(tmp_path / "x.parquet")
