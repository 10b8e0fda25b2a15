"""FOCUS 1.2 (FinOps Open Cost and Usage Specification): what a cost row's values may be, and how they hang together.

Presence, types and nulls are the contract's (``recsys.contracts.COSTS``); the rules here are those of the
specification's column pages that a row of this ledger can break.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.contracts import COSTS
from recsys.errors import InputError

CHARGE_CATEGORIES = ("Adjustment", "Credit", "Purchase", "Tax", "Usage")
PRICING_CATEGORIES = ("Committed", "Dynamic", "Other", "Standard")
SERVICE_CATEGORIES = (
    "AI and Machine Learning", "Analytics", "Business Applications", "Compute", "Databases", "Developer Tools",
    "Multicloud", "Identity", "Integration", "Internet of Things", "Management and Governance", "Media", "Migration",
    "Mobile", "Networking", "Security", "Storage", "Web", "Other",
)
COSTS_OF_A_ROW = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")

Row = Mapping[str, Any]
Rule = tuple[str, Callable[[Row], bool], str]
"""(column to blame, True where the row breaks the rule, what is expected)."""


def _regular(row: Row) -> bool:
    return row["ChargeCategory"] in ("Usage", "Purchase") and row["ChargeClass"] != "Correction"


def _not_json_object(value: Any) -> bool:
    if value is None:
        return False
    try:
        return not isinstance(json.loads(value), dict)
    except (TypeError, ValueError):
        return True


def _unequal(a: float, b: float) -> bool:
    return not math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)


_RULES: tuple[Rule, ...] = (
    *((name, lambda r, n=name: not math.isfinite(r[n]) or r[n] < 0, "a finite amount >= 0: nothing here is a refund")
      for name in COSTS_OF_A_ROW),
    ("BillingCurrency", lambda r: not re.fullmatch("[A-Z]{3}", r["BillingCurrency"]), "an ISO 4217 code"),
    ("ChargeCategory", lambda r: r["ChargeCategory"] not in CHARGE_CATEGORIES, " | ".join(CHARGE_CATEGORIES)),
    ("ChargeClass", lambda r: r["ChargeClass"] not in (None, "Correction"), "null, or Correction"),
    ("ServiceCategory", lambda r: r["ServiceCategory"] not in SERVICE_CATEGORIES, "one of FOCUS's categories"),
    ("PricingCategory", lambda r: r.get("PricingCategory") not in (None, *PRICING_CATEGORIES),
     " | ".join(PRICING_CATEGORIES)),
    ("PricingQuantity", lambda r: _regular(r) and r["PricingQuantity"] is None, "a quantity for usage"),
    ("PricingUnit", lambda r: (r["PricingUnit"] is None) != (r["PricingQuantity"] is None), "a unit with a quantity"),
    ("ConsumedUnit", lambda r: (r.get("ConsumedUnit") is None) != (r.get("ConsumedQuantity") is None),
     "a unit with a quantity"),
    ("ListCost", lambda r: _regular(r) and None not in (r.get("ListUnitPrice"), r["PricingQuantity"])
     and _unequal(r["ListUnitPrice"] * r["PricingQuantity"], r["ListCost"]), "ListUnitPrice x PricingQuantity"),
    ("ChargePeriodEnd", lambda r: r["ChargePeriodEnd"] < r["ChargePeriodStart"], "not before ChargePeriodStart"),
    ("BillingPeriodEnd", lambda r: r["BillingPeriodEnd"] <= r["BillingPeriodStart"], "after BillingPeriodStart"),
    ("ChargePeriodStart", lambda r: not r["BillingPeriodStart"] <= r["ChargePeriodStart"] < r["BillingPeriodEnd"],
     "within the billing period"),
    ("SkuPriceDetails", lambda r: _not_json_object(r.get("SkuPriceDetails")), "a JSON object"),
    ("Tags", lambda r: _not_json_object(r.get("Tags")), "a JSON object"),
    ("EffectiveCost", lambda r: None not in (r.get("x_CostLow"), r.get("x_CostHigh"))
     and not r["x_CostLow"] - 1e-12 <= r["EffectiveCost"] <= r["x_CostHigh"] + 1e-12,
     "x_CostLow <= EffectiveCost <= x_CostHigh"),
)


def violations(table: pa.Table) -> Iterator[tuple[int | None, str, Any, str]]:
    """Everything in a table of the COSTS contract that FOCUS does not allow: (row, column, got, expected)."""
    known = {c.name for c in COSTS.columns}
    for name in table.column_names:
        if name not in known and not name.startswith("x_"):
            yield None, name, name, "a FOCUS column of the contract, or a custom column that starts with x_"
    for at, row in enumerate(table.to_pylist()):
        for column, broken, expected in _RULES:
            if broken(row):
                yield at, column, row.get(column), expected


def require_focus(table: pa.Table, file: str | Path | None = None) -> None:
    """Raise :class:`InputError` for the first violation."""
    for row, column, got, expected in violations(table):
        raise InputError("value not allowed" if row is not None else "column not allowed", file=file, column=column,
                         row=row, got=got, expected=expected)
