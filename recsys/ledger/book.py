"""Measured work -> money: COSTS rows in the columns of FOCUS 1.2 (FinOps Open Cost and Usage Specification).

A *usage* is what a stage says about the work of one model: its stage, tokens, measured seconds, device. Booking one
multiplies the measured seconds with the price of the machine they ran on (stored bytes with that of storage); one that
names the ``price_row`` of a hosted API multiplies the tokens that the API counted with its price. Nobody sends an
invoice for these rows, so
``x_IsEstimated`` is true and billed, contracted, list and effective cost are all list price x time; the interval
``x_CostLow``..``x_CostHigh`` runs from the lowest spot price to the list price. What a hosted API would have charged
for the same tokens stands in ``SkuPriceDetails`` as an alternative and enters no total.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.contracts import COSTS, read_parquet, validate
from recsys.errors import InputError
from recsys.ledger.focus import require_focus
from recsys.ledger.prices import PriceCard, PriceRow
from recsys.log import log

STAGES = ("embed", "finetune", "train", "index", "store", "score", "online-score", "serve")
"""Stages that a usage may name; ``pretrain`` is booked by this module alone."""
PRETRAIN = "pretrain"
_HOUR, _GB = 3600.0, 1e9
_DEVICE = re.compile(r"cpu|remote|(cuda|mps)(:\d+)?")


def book(
    usages: Iterable[Mapping[str, Any]],
    card: PriceCard,
    machine: str,
    experiment_id: str,
    arm_ids: str | Sequence[str],
    *,
    storage: str | None = None,
    impressions_per_refresh: int | None = None,
    now: dt.datetime | None = None,
) -> pa.Table:
    """Book measured work as COSTS rows.

    Args:
        usages: one mapping per piece of work. ``stage`` (one of :data:`STAGES`) and ``seconds`` (wall clock, >= 0) are
            required; stage ``store`` has ``bytes`` and ``months`` instead of seconds. Read where present:
            ``model_id``, ``model_revision``, ``tokens``, ``tokens_out``, ``device`` ("cpu", "cuda", "cuda:0",
            "remote"), ``price_row`` (of a hosted model; its tokens are priced, not the seconds), ``device_name``,
            ``flops``, ``utilisation`` (of the device's peak, 0..1), ``batch_size``, ``cache_hit``, ``feature_set_id``,
            ``started`` (datetime or ISO text), ``machine`` and ``arm_id`` (over the arguments of that name),
            ``pretrained`` (default: an embedding that took FLOPs).
        card: the price card.
        machine: id of the card's row for the machine the work ran on.
        storage: id of the card's row for what is stored; default: the storage of the machine's provider. A card
            without one prices no storage: such work is left out, with a warning.
        experiment_id: goes into every row; with the arm it is the join key to the lift.
        arm_ids: the arm, or the arms that share the work; shared work is split evenly over them, so that the rows of
            an experiment add up to what it took.
        impressions_per_refresh: named in the amortisation rule.
        now: end of work whose start is not given; default the present.

    Returns:
        A validated COSTS table: a row per usage and arm, and one row at $0 per arm and pre-trained model, which
        discloses that its pre-training is sunk and was paid by its publisher.

    Raises:
        InputError: a usage without stage or seconds, an unknown stage, a negative or non-finite amount, an unknown
            price row. Refused: the price row is quarantined.
    """
    arms = [arm_ids] if isinstance(arm_ids, str) else list(arm_ids)
    if not arms:
        raise InputError("no arm to book the cost on", got=arms, expected="at least one arm name")
    now = now or dt.datetime.now(dt.UTC)
    rows: list[dict[str, Any]] = []
    sunk: set[tuple[str, str, str]] = set()
    for index, usage in enumerate(usages):
        _check(usage, index)
        stored, hosted = usage["stage"] == "store", usage.get("price_row")
        price: PriceRow | None = card.get(str(hosted or usage.get("machine") or machine), None if hosted else "machine")
        if hosted and price is not None and price.unit == "hour":
            raise InputError("a machine's price row for a hosted model", file="usage", column="price_row", row=index,
                             got=price.id, expected="a row priced by the million tokens")
        if stored and price is not None:
            price = card.storage_beside(price, storage)
        if price is None:
            log.warning("costs: price card %s has no storage row beside %s: %s stored bytes are not booked", card.name,
                        machine, f"{usage['bytes']:,}")
            continue
        named = usage.get("arm_id")
        for arm in [str(named)] if named else arms:
            share = 1.0 if named else 1.0 / len(arms)
            rule = _rule(impressions_per_refresh, None if named else arms)
            row = (_stored if stored else _row)(usage, card, price, share, now) | {"x_AmortisationRule": rule}
            row |= {"x_ExperimentId": experiment_id, "x_ArmId": arm}
            rows.append(row)
            key = (arm, row["x_ModelId"] or "", row["x_ModelRevision"] or "")
            if _pretrained(usage) and key not in sunk:
                sunk.add(key)
                rows.append(_sunk(row))
    table = pa.Table.from_pylist(rows, schema=COSTS.schema())
    return validate_costs(table) if rows else table


def validate_costs(table: pa.Table, file: str | Path | None = None) -> pa.Table:
    """Check a table against the COSTS contract and the rules of FOCUS 1.2 (:mod:`recsys.ledger.focus`).

    Raises:
        InputError: a missing column, wrong type, null, a value that FOCUS does not allow, a column of no contract
            whose name does not start with ``x_``, a negative cost, an estimate outside its interval.
    """
    table = validate(table, COSTS, file)
    require_focus(table, file)
    return table


def write_costs(table: pa.Table, path: str | Path) -> None:
    """Validate and write COSTS rows as Parquet; the file appears whole or not at all."""
    path = Path(path)
    table = validate_costs(table, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table, partial, compression="zstd")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_costs(path: str | Path) -> pa.Table:
    """Read and validate COSTS rows from Parquet."""
    return validate_costs(read_parquet(path), path)


def _check(usage: Mapping[str, Any], index: int) -> None:
    def bad(column: str, expected: str) -> InputError:
        return InputError("value not allowed", file="usage", column=column, row=index, got=usage.get(column),
                          expected=expected)

    if usage.get("stage") not in STAGES:
        raise bad("stage", "one of " + ", ".join(STAGES))
    for key in ("bytes", "months") if usage["stage"] == "store" else ("seconds",):
        if not _amount(usage.get(key)):
            raise bad(key, f"measured {key}, finite and >= 0")
    for key in ("tokens", "tokens_out", "flops", "utilisation", "batch_size"):
        if usage.get(key) is not None and not _amount(usage[key]):
            raise bad(key, "a finite amount >= 0, or nothing")
    # GPU seconds and price mismatches are read off the device's type; a processor's own name would count as a GPU.
    if not _DEVICE.fullmatch(str(usage.get("device") or "cpu")):
        raise bad("device", "cpu, cuda, cuda:0 or remote (the processor's own name is device_name)")
    if (usage.get("utilisation") or 0) > 1:
        raise bad("utilisation", "a share of the device's peak in [0, 1]")


def _amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _pretrained(usage: Mapping[str, Any]) -> bool:
    flag = usage.get("pretrained")
    return bool(flag) if flag is not None else usage["stage"] == "embed" and bool(usage.get("flops"))


def _common(usage: Mapping[str, Any], card: PriceCard, price: PriceRow, quantity: float, unit: str,
            now: dt.datetime) -> dict[str, Any]:
    """What every row has: ``quantity`` of what the price row sells, at its list price."""
    low, high = price.price_range
    cost = high * quantity
    # One model's vectors and index are stored side by side: the line says which it is.
    kept = usage["stage"] == "store" and usage.get("feature_set_id")
    what = " ".join(str(w) for w in (usage["stage"], kept and f"{kept} of", usage.get("model_id")) if w)
    return _period(usage, now) | {
        "BilledCost": cost, "ContractedCost": cost, "EffectiveCost": cost, "ListCost": cost,
        "BillingAccountId": "estimate", "BillingAccountName": "Estimate from measured work",
        "BillingCurrency": card.currency, "ChargeCategory": "Usage", "ChargeClass": None,
        "ChargeDescription": f"{what} on {price.sku}",
        "InvoiceIssuerName": price.provider, "ProviderName": price.provider, "PublisherName": price.provider,
        "PricingQuantity": quantity, "PricingUnit": unit, "PricingCategory": "Standard", "ListUnitPrice": high,
        "ServiceCategory": "AI and Machine Learning", "ServiceName": price.service,
        "SkuId": price.sku, "SkuPriceId": f"{card.name}/{price.id}", "RegionId": price.region,
        "x_Stage": usage["stage"], "x_ModelId": usage.get("model_id"), "x_ModelRevision": usage.get("model_revision"),
        "x_FeatureSetId": usage.get("feature_set_id"),
        "x_PriceSource": card.citation(price), "x_PriceAsOf": price.as_of or card.as_of,
        "x_CostLow": low * quantity, "x_CostHigh": cost, "x_IsEstimated": True,
    }


def _row(usage: Mapping[str, Any], card: PriceCard, price: PriceRow, share: float, now: dt.datetime) -> dict[str, Any]:
    seconds = float(usage["seconds"]) * share
    device = str(usage.get("device") or "cpu")
    paid = (usage.get("tokens") or 0) * share
    tokens, flops = round(paid), usage.get("flops")
    hosted = price.unit == "million tokens"
    quantity, unit = (paid / 1e6, "1M Tokens") if hosted else (seconds / _HOUR, "Hours")
    return _common(usage, card, price, quantity, unit, now) | {
        "ConsumedQuantity": paid if hosted else seconds, "ConsumedUnit": "Tokens" if hosted else "Seconds",
        "SkuPriceDetails": json.dumps(_price_details(usage, card, price, tokens), sort_keys=True),
        "ResourceId": usage.get("device_name") or device,
        "Tags": json.dumps(_tags(usage, device, price), sort_keys=True),
        "x_TokensIn": tokens, "x_TokensOut": round((usage.get("tokens_out") or 0) * share),
        "x_Seconds": seconds, "x_Device": device,
        "x_GpuSeconds": 0.0 if device.startswith(("cpu", "remote")) else seconds,
        "x_Flops": None if flops is None else float(flops) * share,
        "x_MFU": usage.get("utilisation"), "x_BatchSize": usage.get("batch_size"),
        "x_CacheHit": usage.get("cache_hit"),
    }


def _stored(usage: Mapping[str, Any], card: PriceCard, price: PriceRow, share: float,
            now: dt.datetime) -> dict[str, Any]:
    """Bytes kept for some months."""
    size = round(usage["bytes"] * share)
    months = size / _GB * float(usage["months"])
    return _common(usage, card, price, months, "GB-Months", now) | {
        "ConsumedQuantity": months, "ConsumedUnit": "GB-Months", "Tags": "{}", "x_Bytes": size,
        "x_TokensIn": 0, "x_TokensOut": 0,
    }


def _rule(impressions: int | None, shared_by: list[str] | None) -> str:
    rule = "one-off per refresh, spread evenly over the impressions until the next refresh"
    if impressions is not None:
        rule += f" ({impressions})"
    if shared_by is not None and len(shared_by) > 1:
        rule += "; work shared evenly by arms " + ", ".join(shared_by)
    return rule


def _price_details(usage: Mapping[str, Any], card: PriceCard, price: PriceRow, tokens: int) -> dict[str, Any]:
    if price.unit == "million tokens":
        return {"list_per_million_tokens": price.list_price}
    details: dict[str, Any] = {"list_per_hour": price.list_price,
                               "spot_per_hour": None if price.spot is None else [price.spot.low, price.spot.high]}
    api = card.token_price_range("embedding")
    if usage["stage"] == "embed" and api is not None and tokens:
        details["api_alternative"] = {"per_million_tokens": list(api), "cost": [p * tokens / 1e6 for p in api],
                                      "rows": sorted(r.id for r in card.usable("embedding"))}
    return details


def _tags(usage: Mapping[str, Any], device: str, price: PriceRow) -> dict[str, str]:
    if device.startswith("cuda") and not price.accelerators:
        log.warning("costs: %s ran on %s, but price row %s has no accelerator: set money.machine to the machine used",
                    usage["stage"], usage.get("device_name") or device, price.id)
        return {"price_mismatch": f"ran on {device}, priced as {price.id}"}
    return {}


def _period(usage: Mapping[str, Any], now: dt.datetime) -> dict[str, dt.datetime]:
    start = usage.get("started")
    if isinstance(start, str):
        try:
            start = dt.datetime.fromisoformat(start)
        except ValueError:
            raise InputError("value not allowed", file="usage", column="started", got=start,
                             expected="an ISO 8601 time") from None
    # What is stored is charged from now on; the period is when the charge begins, its length is in the quantity.
    length = dt.timedelta(seconds=float(usage.get("seconds") or 0.0))
    start = start or now - length
    start = start.replace(tzinfo=dt.UTC) if start.tzinfo is None else start.astimezone(dt.UTC)
    month = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return {"ChargePeriodStart": start, "ChargePeriodEnd": start + length, "BillingPeriodStart": month,
            "BillingPeriodEnd": (month + dt.timedelta(days=32)).replace(day=1)}


def _sunk(row: Mapping[str, Any]) -> dict[str, Any]:
    """The disclosed row at $0 for the pre-training of the model that ``row`` used."""
    model = str(row["x_ModelId"] or "the open model")
    publisher = model.split("/")[0] if "/" in model else "its publisher"
    zero = dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "PricingQuantity",
                          "ListUnitPrice", "ConsumedQuantity", "x_CostLow", "x_CostHigh", "x_Seconds",
                          "x_GpuSeconds"), 0.0)
    cleared = dict.fromkeys(("x_MFU", "x_Flops", "x_BatchSize", "x_CacheHit", "SkuPriceDetails", "ResourceId", "SkuId",
                             "SkuPriceId", "RegionId"))
    return {**row, **zero, **cleared, "x_TokensIn": 0, "x_TokensOut": 0, "x_Stage": PRETRAIN, "Tags": "{}",
            "ChargeDescription": f"Pre-training of {model}: sunk, paid by {publisher}, not by this account",
            "ProviderName": publisher, "PublisherName": publisher, "InvoiceIssuerName": publisher,
            "ServiceName": "Open model weights", "x_PriceSource": "disclosure", "x_IsEstimated": False,
            "x_AmortisationRule": "sunk before and outside this experiment: booked at zero and disclosed"}
