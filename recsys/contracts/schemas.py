"""The contracts themselves: Arrow schemas of everything that passes between stages, and which values are allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Bad = Callable[[pa.Array | pa.ChunkedArray], Any]
"""Takes a column, returns a boolean array that is true where a (non-null) value is not allowed."""


@dataclass(frozen=True)
class Column:
    """One column of a contract.

    Args:
        name: column name.
        type: Arrow type that the column has, or is losslessly cast to on reading.
        required: the table is refused without it.
        nullable: nulls are allowed.
        bad: marks values that are not allowed; ``expected`` says what is.
        expected: the words of the error message.
    """

    name: str
    type: pa.DataType
    required: bool = False
    nullable: bool = True
    bad: Bad | None = None
    expected: str = ""


@dataclass(frozen=True)
class Contract:
    """A named list of columns; ``rules`` are checks over several columns at once.

    A rule is (columns, bad, column to blame, expected); it runs where all its columns are present.
    """

    name: str
    columns: tuple[Column, ...]
    rules: tuple[tuple[tuple[str, ...], Callable[..., Any], str, str], ...] = field(default=())

    def __getitem__(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)

    def schema(self, names: list[str] | None = None) -> pa.Schema:
        """The Arrow schema of the contract, or of the named columns of it."""
        chosen = self.columns if names is None else [self[n] for n in names]
        return pa.schema([pa.field(c.name, c.type, c.nullable) for c in chosen])


def _negative(a: Any) -> Any:
    return pc.less(a, 0)


def _not_finite(a: Any) -> Any:
    return pc.invert(pc.is_finite(a))


def _outside_unit(a: Any) -> Any:
    return pc.or_(pc.invert(pc.and_(pc.greater_equal(a, 0.0), pc.less_equal(a, 1.0))), pc.is_nan(a))


def _not_propensity(a: Any) -> Any:
    # Below, sums of squared weights overflow, and no logging policy means it.
    return pc.or_(pc.invert(pc.and_(pc.greater(a, 1e-70), pc.less_equal(a, 1.0))), pc.is_nan(a))


def _one_of(*values: str) -> Bad:
    return lambda a: pc.invert(pc.is_in(a, value_set=pa.array(values)))


def _not_binary(a: Any) -> Any:
    return pc.invert(pc.is_in(a, value_set=pa.array([0, 1], a.type)))


SURFACES = ("feed", "discovery", "messaging")
_s, _f, _i = pa.string(), pa.float64(), pa.int64()
_binary: dict[str, Any] = {"bad": _not_binary, "expected": "0 or 1"}
_money: dict[str, Any] = {"bad": lambda a: pc.or_(_negative(a), _not_finite(a)), "expected": "a finite amount >= 0"}

IMPRESSIONS = Contract(
    "IMPRESSIONS",
    (
        Column("impression_id", _s, required=True, nullable=False),
        Column("request_id", _s, required=True, nullable=False),
        Column("slot", pa.int32(), bad=_negative, expected="a slot number >= 0"),
        Column("user_id", _s),
        Column("ts", pa.timestamp("us", "UTC")),
        Column("surface", _s, bad=_one_of(*SURFACES), expected=" | ".join(SURFACES)),
        Column("ad_id", _s, required=True, nullable=False),
        Column("advertiser_id", _s),
        Column("candidates", pa.list_(_s)),
        Column("propensity", _f, bad=_not_propensity, expected="a logged probability in (0, 1], or null if unknown"),
        Column("policy_id", _s),
        Column("bid", _f, **_money),
        Column("price_paid", _f, **_money),
        Column("mechanism", _s),
        Column("currency", _s),
        Column("click", pa.int8(), **_binary),
        Column("dwell_ms", _f, bad=_negative, expected="milliseconds >= 0"),
        Column("conversion", pa.int8(), **_binary),
        Column("value", _f),
        Column("hide", pa.int8(), **_binary),
        Column("experiment_id", _s),
        Column("arm_id", _s),
        Column("group_id", _s),
        Column("weight", _f, **_money),
        Column("trials", _i, bad=_negative, expected="a count >= 0"),
        Column("successes", _i, bad=_negative, expected="a count >= 0"),
    ),
    rules=(
        (("trials", "successes"), lambda t, s: pc.greater(s, t), "successes", "at most as many successes as trials"),
        (("trials", "click"), lambda t, c: pc.and_(pc.equal(t, 0), pc.equal(c, 1)), "click", "no click without trials"),
    ),
)

ADS = Contract(
    "ADS",
    (
        Column("ad_id", _s, required=True, nullable=False),
        Column("advertiser_id", _s),
        Column("campaign_id", _s),
        Column("title", _s, required=True, nullable=False),
        Column("body", _s),
        Column("category", _s),
        Column("image_id", _s),
        Column("landing", _s),
        Column("bid", _f, **_money),
        Column("budget", _f, **_money),
        Column("created", pa.timestamp("us", "UTC")),
        Column("content_hash", _s, required=True, nullable=False),
    ),
)

CONTENT = Contract(
    "CONTENT",
    (
        Column("content_hash", _s, required=True, nullable=False),
        Column("model_id", _s, required=True, nullable=False),
        Column("model_revision", _s, required=True, nullable=False),
        Column("pooling", _s, required=True, nullable=False),
        Column("dim", pa.int32(), required=True, nullable=False, bad=_negative, expected="a dimension >= 0"),
        # A fixed-size list of float16; its length is the row's `dim`, so the width is checked by the store.
        Column("vector", pa.null(), required=True, nullable=False),
        Column("tokens", pa.int32(), required=True, nullable=False, bad=_negative, expected="a count >= 0"),
    ),
)

SCORES = Contract(
    "SCORES",
    (
        Column("request_id", _s, required=True, nullable=False),
        Column("user_id", _s),
        Column("ad_id", _s, required=True, nullable=False),
        Column("p_click", _f, required=True, nullable=False, bad=_outside_unit, expected="a probability in [0, 1]"),
        Column("p_engage", _f, bad=_outside_unit, expected="a probability in [0, 1]"),
        Column("p_convert", _f, bad=_outside_unit, expected="a probability in [0, 1]"),
        Column("expected_value", _f),
        Column("model_id", _s, required=True, nullable=False),
        Column("scored_at", pa.timestamp("us", "UTC"), required=True, nullable=False),
    ),
)

POLICY = Contract(
    "POLICY",
    (
        Column("request_id", _s, required=True, nullable=False),
        Column("slot", pa.int32(), required=True, nullable=False, bad=_negative, expected="a slot number >= 0"),
        Column("ad_id", _s, required=True, nullable=False),
        Column("probability", _f, required=True, nullable=False, bad=_outside_unit, expected="a probability in [0, 1]"),
        # What the arm's own model expects of showing this ad in this slot: the outcome model of doubly robust
        # estimation. Optional: without it the estimators that need one are left out.
        Column("expected_click", _f, bad=_outside_unit, expected="a probability in [0, 1]"),
        Column("price_per_click", _f, **_money),
        Column("bid", _f, **_money),  # taken as what a click is worth to the advertiser
    ),
)

_time = pa.timestamp("us", "UTC")
# FOCUS 1.2's mandatory columns; those that the specification lets be null are nullable here. What a value may be,
# and how columns hang together, is checked by recsys.ledger.focus.
_FOCUS_NULLABLE = ("BillingAccountName", "ChargeClass", "ChargeDescription", "PricingQuantity", "PricingUnit")
COSTS = Contract(
    "COSTS",
    tuple(
        Column(n, t, required=True, nullable=n in _FOCUS_NULLABLE)
        for n, t in (
            ("BilledCost", _f), ("BillingAccountId", _s), ("BillingAccountName", _s), ("BillingCurrency", _s),
            ("BillingPeriodStart", _time), ("BillingPeriodEnd", _time), ("ChargeCategory", _s), ("ChargeClass", _s),
            ("ChargeDescription", _s), ("ChargePeriodStart", _time), ("ChargePeriodEnd", _time),
            ("ContractedCost", _f), ("EffectiveCost", _f), ("InvoiceIssuerName", _s), ("ListCost", _f),
            ("PricingQuantity", _f), ("PricingUnit", _s), ("ProviderName", _s), ("PublisherName", _s),
            ("ServiceCategory", _s), ("ServiceName", _s),
        )
    )
    + tuple(
        Column(n, t)
        for n, t in (
            ("ListUnitPrice", _f), ("ConsumedQuantity", _f), ("ConsumedUnit", _s), ("PricingCategory", _s),
            ("SkuId", _s), ("SkuPriceId", _s), ("SkuPriceDetails", _s), ("RegionId", _s), ("ResourceId", _s),
            ("Tags", _s), ("x_ModelId", _s), ("x_ModelRevision", _s), ("x_Stage", _s), ("x_TokensIn", _i),
            ("x_TokensOut", _i), ("x_Seconds", _f), ("x_Device", _s), ("x_GpuSeconds", _f), ("x_MFU", _f),
            ("x_Flops", _f), ("x_Bytes", _i),
            ("x_BatchSize", _i), ("x_CacheHit", pa.bool_()), ("x_FeatureSetId", _s), ("x_ExperimentId", _s),
            ("x_ArmId", _s), ("x_PriceSource", _s), ("x_PriceAsOf", _s), ("x_AmortisationRule", _s),
            ("x_CostLow", _f), ("x_CostHigh", _f), ("x_IsEstimated", pa.bool_()),
        )
    ),
)
