"""The ledger's rows against FOCUS 1.2: the mandatory columns, what may be null, what values may be."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest

from recsys.contracts import COSTS
from recsys.errors import InputError
from recsys.ledger import book, load_card, validate_costs

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
DECIMAL, TEXT, TIME = pa.float64(), pa.string(), pa.timestamp("us", "UTC")
# Column -> (type, may be null), as in the specification's column pages.
MANDATORY = {
    "BilledCost": (DECIMAL, False), "BillingAccountId": (TEXT, False), "BillingAccountName": (TEXT, True),
    "BillingCurrency": (TEXT, False), "BillingPeriodStart": (TIME, False), "BillingPeriodEnd": (TIME, False),
    "ChargeCategory": (TEXT, False), "ChargeClass": (TEXT, True), "ChargeDescription": (TEXT, True),
    "ChargePeriodStart": (TIME, False), "ChargePeriodEnd": (TIME, False), "ContractedCost": (DECIMAL, False),
    "EffectiveCost": (DECIMAL, False), "InvoiceIssuerName": (TEXT, False), "ListCost": (DECIMAL, False),
    "PricingQuantity": (DECIMAL, True), "PricingUnit": (TEXT, True), "ProviderName": (TEXT, False),
    "PublisherName": (TEXT, False), "ServiceCategory": (TEXT, False), "ServiceName": (TEXT, False),
}
USAGES = [
    {"stage": "embed", "model_id": "a/b", "seconds": 1800.0, "tokens": 1000, "flops": 1e12, "device": "cpu"},
    {"stage": "train", "seconds": 60.0}, {"stage": "index", "seconds": 0.5}, {"stage": "serve", "seconds": 10.0},
    {"stage": "store", "bytes": 2_500_000_000, "months": 2.0, "model_id": "a/b"},
]


def booked() -> pa.Table:
    return book(USAGES, load_card("2026-11"), "aws-c6a-large", "x", ["arm", "other"], now=NOW)


def changed(column: str, value: object, row: int = 0) -> pa.Table:
    table = booked()
    at = table.column_names.index(column)
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(at, column, pa.array(values, table.schema.field(column).type))


def test_mandatory_columns_have_the_specifications_types_and_nullability() -> None:
    required = {c.name: (c.type, c.nullable) for c in COSTS.columns if c.required}
    assert required == MANDATORY
    assert all(c.name.startswith("x_") or c.name[0].isupper() for c in COSTS.columns)
    table = booked()
    assert validate_costs(table).num_rows == 12  # five pieces of work and one disclosure, by two arms
    assert table["ChargeClass"].null_count == table.num_rows


@pytest.mark.parametrize("column", sorted(MANDATORY))
def test_a_missing_mandatory_column_is_refused(column: str) -> None:
    with pytest.raises(InputError, match=f"column {column}: missing column"):
        validate_costs(booked().drop_columns([column]))


@pytest.mark.parametrize("column", sorted(n for n, (_, null) in MANDATORY.items() if not null))
def test_a_null_where_none_may_be_is_refused(column: str) -> None:
    with pytest.raises(InputError, match=f"column {column}, row 1: null value"):
        validate_costs(changed(column, None, 1))


@pytest.mark.parametrize(("column", "value"), [
    ("ChargeClass", ""), ("ChargeClass", "Refund"), ("ChargeCategory", "Fun"), ("ServiceCategory", "AI"),
    ("PricingCategory", "Cheap"), ("BillingCurrency", "Dollar"), ("BilledCost", -1.0), ("ListCost", float("nan")),
    ("EffectiveCost", float("inf")), ("ListCost", 99.0), ("PricingQuantity", None), ("PricingUnit", None),
    ("ConsumedUnit", None), ("Tags", "[1]"), ("SkuPriceDetails", "{"),
    ("ChargePeriodEnd", dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
    ("BillingPeriodEnd", dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
    ("ChargePeriodStart", dt.datetime(2026, 10, 1, tzinfo=dt.UTC)), ("x_CostHigh", 1e-9),
])
def test_a_value_that_focus_does_not_allow_is_named(column: str, value: object) -> None:
    blamed = "EffectiveCost" if column == "x_CostHigh" else column
    with pytest.raises(InputError, match=f"column {blamed}, row 0: value not allowed"):
        validate_costs(changed(column, value))


def test_custom_columns_start_with_x() -> None:
    table = booked()
    assert validate_costs(table.append_column("x_Mine", pa.array([1] * len(table)))).num_rows == len(table)
    with pytest.raises(InputError, match="column Mine: column not allowed"):
        validate_costs(table.append_column("Mine", pa.array([1] * len(table))))


def test_stored_bytes_are_charged_by_the_gigabyte_and_month() -> None:
    rows = [r for r in booked().to_pylist() if r["x_Stage"] == "store"]
    assert len(rows) == 2
    for row in rows:
        assert row["EffectiveCost"] == pytest.approx(1.25 * 2 * 0.023)  # half of 2.5 GB each, two months
        assert (row["PricingUnit"], row["x_Bytes"], row["x_CostLow"]) == ("GB-Months", 1_250_000_000,
                                                                        row["EffectiveCost"])
        assert row["ServiceName"] == "Amazon S3"
    with pytest.raises(InputError, match="column bytes"):
        book([{"stage": "store", "seconds": 1.0}], load_card("2026-11"), "aws-c6a-large", "x", "a")
    with pytest.raises(InputError, match="another kind"):
        book(USAGES[-1:], load_card("2026-11"), "aws-c6a-large", "x", "a", storage="aws-c6a-large")
    google = book(USAGES[-1:], load_card("2026-11"), "gcp-e2-standard-2", "x", "a").to_pylist()
    assert google[0]["EffectiveCost"] == pytest.approx(2.5 * 2 * 0.020)  # the storage of the machine's provider
    named = book(USAGES[-1:], load_card("2026-11"), "aws-c6a-large", "x", "a", storage="azure-blob-hot-lrs")
    assert named.to_pylist()[0]["EffectiveCost"] == pytest.approx(2.5 * 2 * 0.018)
    assert book(USAGES[-1:], load_card("2026-11"), "lambda-2x-h100", "x", "a").num_rows == 0  # it sells none
    with pytest.raises(InputError, match="another kind"):
        book(USAGES[:1], load_card("2026-11"), "aws-s3-standard", "x", "a")
