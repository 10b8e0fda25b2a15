"""The same work on other machines: measured seconds and FLOPs -> money on AWS, Google Cloud and Azure, and by API.

Three bases, named in every entry, because they assume different things:

* ``seconds``: the measured wall clock, at the price of a machine like the one that was booked (the same accelerator,
  or as many virtual CPUs). Assumes that such machines are equally fast.
* ``flops``: the counted FLOPs over peak x utilisation of an accelerator, at its price. Assumes that utilisation; a
  batch that does not fill the device takes longer.
* ``tokens``: the tokens that were embedded, at an API's price a million. Another model: its vectors are others.
* ``bytes``: what is stored, at a store's price a month.

Quarantined price rows are left out, and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from recsys.ledger.prices import PriceCard, PriceRow
from recsys.ledger.statement import tokens_per_second

CLOUDS = ("AWS", "Google Cloud", "Azure")
TOKEN_STAGES = ("embed",)


def cloud_costs(costs: Iterable[Mapping[str, Any]], card: PriceCard, machine: str) -> dict[str, Any]:
    """Price every arm's stages on every cloud of the card.

    Args:
        costs: COSTS rows as dicts.
        card: the price card.
        machine: id of the row that the work was booked on; "a machine like it" is judged from this one.

    Returns:
        {"rows": [{"arm", "stage", "basis", "provider", "offer", "on_demand": USD, "spot": {"low", "high"} or None,
        "source", "as_of", "dated"}], "totals": [{"arm", "provider", "on_demand", "spot", "undated": [ids of its price
        rows without a date]}] of the bases seconds and bytes (what the whole arm takes on that cloud; spot falls back
        to the list price where a row has none), "left_out": {row
        id: [reasons]}, "assumptions": [words]}.
    """
    booked = card.find(machine)
    work = _work(costs)
    rows: list[dict[str, Any]] = []
    for (arm, stage), amount in work.items():
        for provider in CLOUDS:
            if stage == "store":
                found = [r for r in card.usable("storage") if r.provider == provider]
                rows += [_entry(arm, stage, "bytes", r, amount["gb_months"], 1) for r in found[:1]]
                continue
            like = _like(card, booked, provider)
            if like is not None:
                per = like.accelerators or 1
                rows.append(_entry(arm, stage, "seconds", like, amount["seconds"] / 3600 * (booked.accelerators or 1),
                                   per))
            if amount["flops"] > 0:
                rows += [_entry(arm, stage, "flops", r, _hours(amount["flops"], card, r), r.accelerators)
                         for r in _fastest(card, provider)]
        if stage in TOKEN_STAGES and amount["tokens"]:
            rows += [_entry(arm, stage, "tokens", r, amount["tokens"] / 1e6, 1) for r in card.usable("embedding")]
    return {"rows": rows, "totals": _totals(rows), "left_out": card.quarantined(), "assumptions": _assumptions(booked)}


def _work(costs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    out: dict[tuple[str, str], dict[str, float]] = {}
    for row in costs:
        if row.get("x_Stage") == "pretrain":
            continue
        at = out.setdefault((str(row["x_ArmId"]), str(row["x_Stage"])),
                            {"seconds": 0.0, "flops": 0.0, "tokens": 0.0, "gb_months": 0.0})
        if row.get("PricingUnit") != "1M Tokens":  # waiting for a hosted model is not work that a machine would do
            at["seconds"] += row.get("x_Seconds") or 0.0
        at["flops"] += row.get("x_Flops") or 0.0
        at["tokens"] += row.get("x_TokensIn") or 0
        at["gb_months"] += row["PricingQuantity"] if row["PricingUnit"] == "GB-Months" else 0.0
    return out


def _like(card: PriceCard, booked: PriceRow, provider: str) -> PriceRow | None:
    """The provider's cheapest usable machine of the booked one's accelerator, or of as many virtual CPUs."""
    def same(row: PriceRow) -> bool:
        if booked.accelerator is not None:
            return row.accelerator == booked.accelerator
        return row.accelerator is None and row.vcpus == booked.vcpus

    if provider == booked.provider and not booked.reasons():
        return booked
    found = [r for r in card.usable("machine") if r.provider == provider and same(r)]
    return min(found, key=_per_accelerator, default=None)


def _fastest(card: PriceCard, provider: str) -> list[PriceRow]:
    """The provider's cheapest usable machine of every accelerator whose throughput the card knows."""
    best: dict[str, PriceRow] = {}
    for row in card.usable("machine"):
        name = row.accelerator
        if row.provider == provider and name in card.accelerators and row.accelerators:
            assert name is not None
            if name not in best or _per_accelerator(row) < _per_accelerator(best[name]):
                best[name] = row
    return [best[name] for name in sorted(best)]


def _per_accelerator(row: PriceRow) -> float:
    return row.price_range[1] / (row.accelerators or 1)


def _hours(flops: float, card: PriceCard, row: PriceRow) -> float:
    """Accelerator hours of that many FLOPs: a token of half a parameter is one FLOP."""
    known = card.accelerators[str(row.accelerator)]
    return flops / tokens_per_second(0.5, known.peak_flops, known.utilisation) / 3600


def _entry(arm: str, stage: str, basis: str, row: PriceRow, quantity: float, parts: int) -> dict[str, Any]:
    """``quantity`` of one of the ``parts`` accelerators that the row sells together."""
    listed = row.price_range[1] / parts
    spot = None
    if row.spot is not None:
        spot = {"low": row.spot.low / parts * quantity, "high": row.spot.high / parts * quantity}
    return {"arm": arm, "stage": stage, "basis": basis, "provider": row.provider,
            "offer": row.sku if row.accelerator is None else f"{row.accelerator} ({row.sku})", "price_row": row.id,
            "on_demand": listed * quantity, "spot": spot, "source": row.source, "as_of": row.as_of,
            "dated": row.dated}


def _totals(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["basis"] not in ("seconds", "bytes"):
            continue
        at = out.setdefault((row["arm"], row["provider"]), {
            "arm": row["arm"], "provider": row["provider"], "on_demand": 0.0, "spot": {"low": 0.0, "high": 0.0},
            "undated": []})
        # Left out, the total would be of a part of the work and look cheap; so it is kept, and says what it rests on.
        if not row["dated"] and row["price_row"] not in at["undated"]:
            at["undated"].append(row["price_row"])
        at["on_demand"] += row["on_demand"]
        for end in ("low", "high"):
            at["spot"][end] += row["on_demand"] if row["spot"] is None else row["spot"][end]
    return list(out.values())


def _assumptions(booked: PriceRow) -> list[str]:
    what = f"with {booked.accelerator}" if booked.accelerator else f"of {booked.vcpus} virtual CPUs"
    return [f"seconds: measured once and taken to be the same on every machine {what}",
            "flops: the card's share of the accelerator's peak is taken to be reached",
            "tokens: a hosted model's price for the same tokens; it is another model, with other vectors",
            "bytes: capacity alone, without requests and traffic"]
