from __future__ import annotations

import datetime as dt
import json
import logging
from pathlib import Path

import pyarrow as pa
import pytest

from recsys.contracts import COSTS
from recsys.errors import InputError, Refused
from recsys.ledger import book, load_card, read_costs, validate_costs, write_costs

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
EMBED = {"stage": "embed", "model_id": "HuggingFaceTB/SmolLM2-135M", "model_revision": "abc", "tokens": 1_000_000,
         "seconds": 1800.0, "device": "cpu", "device_name": "EPYC", "flops": 2.7e14, "utilisation": 0.4}


def booked(usages: list[dict], arms: str | list[str] = "smollm2", machine: str = "aws-c6a-large") -> list[dict]:
    return book(usages, load_card("2026-11"), machine, "demo", arms, impressions_per_refresh=1000, now=NOW).to_pylist()


def test_cost_is_measured_seconds_times_the_list_price_and_the_interval_starts_at_spot() -> None:
    row = booked([EMBED])[0]
    assert row["EffectiveCost"] == pytest.approx(0.5 * 0.0765)
    assert row["BilledCost"] == row["ListCost"] == row["ContractedCost"] == row["EffectiveCost"] == row["x_CostHigh"]
    assert row["x_CostLow"] == pytest.approx(0.5 * 0.0296)
    assert (row["PricingQuantity"], row["PricingUnit"], row["ListUnitPrice"]) == (0.5, "Hours", 0.0765)
    assert (row["ConsumedQuantity"], row["ConsumedUnit"]) == (1800.0, "Seconds")
    assert row["x_IsEstimated"] is True
    assert (row["x_ExperimentId"], row["x_ArmId"]) == ("demo", "smollm2")
    assert row["x_MFU"] == 0.4
    assert row["x_GpuSeconds"] == 0.0
    assert "e385a0d" in row["x_PriceSource"]
    assert "1000" in row["x_AmortisationRule"]


def test_the_rows_satisfy_the_contract_with_every_mandatory_focus_column() -> None:
    table = book([EMBED], load_card("2026-11"), "aws-c6a-large", "demo", "a", now=NOW)
    assert table.schema.names == [c.name for c in COSTS.columns]
    assert {r["ServiceCategory"] for r in table.to_pylist()} == {"AI and Machine Learning"}


def test_periods_are_the_work_and_its_calendar_month() -> None:
    row = booked([{**EMBED, "started": "2026-12-31T23:45:00+00:00"}])[0]
    assert row["ChargePeriodEnd"] - row["ChargePeriodStart"] == dt.timedelta(seconds=1800)
    assert row["BillingPeriodStart"] == dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
    assert row["BillingPeriodEnd"] == dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
    assert booked([EMBED])[0]["ChargePeriodEnd"] == NOW


def test_an_api_stands_beside_an_embedding_as_an_alternative_and_enters_no_total() -> None:
    row = booked([EMBED])[0]
    api = json.loads(row["SkuPriceDetails"])["api_alternative"]
    assert api["cost"] == pytest.approx([0.008, 0.15])  # one million tokens at the cheapest and the dearest row
    assert "api_alternative" not in json.loads(booked([{"stage": "train", "seconds": 1.0}])[0]["SkuPriceDetails"])


def test_pretraining_is_one_disclosed_row_at_zero_per_model() -> None:
    rows = booked([EMBED, EMBED, {"stage": "train", "seconds": 60.0}])
    sunk = [r for r in rows if r["x_Stage"] == "pretrain"]
    assert len(sunk) == 1
    assert sunk[0]["EffectiveCost"] == sunk[0]["x_CostHigh"] == 0.0
    assert "sunk, paid by HuggingFaceTB" in sunk[0]["ChargeDescription"]
    hashed = booked([{"stage": "embed", "model_id": "hashed", "seconds": 1.0, "tokens": 10, "flops": 0}])
    assert [r["x_Stage"] for r in hashed] == ["embed"]


def test_shared_work_is_split_so_that_the_rows_add_up() -> None:
    rows = booked([{"stage": "train", "seconds": 3600.0}, {"stage": "train", "seconds": 3600.0, "arm_id": "b"}],
                  ["a", "b", "c"])
    assert sum(r["EffectiveCost"] for r in rows) == pytest.approx(2 * 0.0765)
    assert [r["x_ArmId"] for r in rows] == ["a", "b", "c", "b"]
    assert "shared evenly by arms a, b, c" in rows[0]["x_AmortisationRule"]
    assert "shared" not in rows[3]["x_AmortisationRule"]


def test_stored_things_of_one_model_can_be_told_apart() -> None:
    stored = {"stage": "store", "bytes": 10**9, "months": 1.0, "model_id": "minilm"}
    rows = booked([{**stored, "feature_set_id": what} for what in ("content", "index")] + [stored])
    assert [r["ChargeDescription"] for r in rows] == [
        "store content of minilm on S3 Standard", "store index of minilm on S3 Standard",
        "store minilm on S3 Standard"]


def test_gpu_seconds_and_a_machine_without_an_accelerator(caplog: pytest.LogCaptureFixture) -> None:
    usage = {**EMBED, "device": "cuda:0"}
    row = booked([usage], machine="aws-g6-xlarge")[0]
    assert row["x_GpuSeconds"] == 1800.0
    assert row["EffectiveCost"] == pytest.approx(0.4024)
    assert json.loads(row["Tags"]) == {}
    log = logging.getLogger("recsys")
    log.addHandler(caplog.handler)
    try:
        row = booked([usage])[0]
    finally:
        log.removeHandler(caplog.handler)
    assert "no accelerator" in caplog.text
    assert "price_mismatch" in json.loads(row["Tags"])


@pytest.mark.parametrize(("change", "column"), [
    ({"stage": "dream"}, "stage"), ({"seconds": -1.0}, "seconds"), ({"seconds": float("nan")}, "seconds"),
    ({"seconds": None}, "seconds"), ({"tokens": -5}, "tokens"), ({"utilisation": 1.5}, "utilisation"),
    ({"started": "yesterday"}, "started"), ({"device": "Intel(R) Xeon(R) CPU"}, "device"),
])
def test_bad_usage_is_one_line_that_says_where(change: dict, column: str) -> None:
    with pytest.raises(InputError, match=f"column {column}"):
        booked([{**EMBED, **change}])


def test_quarantined_machine_is_refused_and_an_unknown_one_is_bad_input() -> None:
    with pytest.raises(Refused, match="quarantined"):
        booked([EMBED], machine="azure-nc40ads-h100-v5")
    with pytest.raises(InputError, match="no such price row"):
        booked([EMBED], machine="toaster")


def test_nothing_to_book_is_an_empty_table_and_no_arm_is_an_error() -> None:
    assert booked([]) == []
    with pytest.raises(InputError, match="no arm"):
        booked([EMBED], [])


def test_parquet_round_trip_and_a_cost_outside_its_interval_is_not_written(tmp_path: Path) -> None:
    table = book([EMBED], load_card("2026-11"), "aws-c6a-large", "demo", "a", now=NOW)
    write_costs(table, tmp_path / "costs.parquet")
    assert read_costs(tmp_path / "costs.parquet").to_pylist() == table.to_pylist()
    at = table.column_names.index("x_CostHigh")
    broken = table.set_column(at, "x_CostHigh", pa.array([1e-9] * len(table)))
    with pytest.raises(InputError, match="x_CostLow <= EffectiveCost"):
        validate_costs(broken)
    with pytest.raises(InputError):
        write_costs(broken, tmp_path / "broken.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["costs.parquet"]
