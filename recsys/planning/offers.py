"""Machines of the price card that could do a piece of work: how many, for how long, at what price."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from recsys.ledger.prices import PriceCard, PriceRow
from recsys.planning.speeds import SpeedCard

HOURS_A_YEAR = 8760.0


def machines_of(card: PriceCard, speeds: SpeedCard,
                names: Iterable[str]) -> tuple[list[PriceRow], dict[str, list[str]]]:
    """Machines to reckon with, and those left out with their reasons.

    Raises:
        InputError: a named row is not there or no machine. Refused: a named row is quarantined.
    """
    chosen = [card.get(name, "machine") for name in names] or card.usable("machine")
    rows, out = [], {i: why for i, why in card.quarantined().items() if card.find(i).kind == "machine"}
    for row in chosen:
        if row.accelerator is not None and row.accelerator not in speeds.accelerators:
            out[row.id] = [f"the speed of {row.accelerator} is not on the card of speeds"]
        elif row.accelerator is None and (row.vcpus is None or row.memory_gib is None):
            out[row.id] = ["its processors or its memory are not on the price card"]
        else:
            rows.append(row)
    return rows, out


def offer(component: str, row: PriceRow, machines: int, hours: float, **facts: Any) -> dict[str, Any]:
    """So many machines for so many hours a year, as a row of the plan.

    Returns:
        {"component", "provider", "offer", "price_row", "machines", "hours": a year, "on_demand": USD a year, "spot":
        {"low", "high"} or None, "source", "as_of", "dated", "assumes": [words], ...facts}.
    """
    price = row.list_price
    assert price is not None  # usable rows have one
    amount = machines * hours
    spot = None if row.spot is None else {"low": row.spot.low * amount, "high": row.spot.high * amount}
    return {"component": component, "provider": row.provider, "price_row": row.id,
            "offer": row.sku if row.accelerator is None else f"{row.sku}, {row.accelerators} x {row.accelerator}",
            "machines": machines, "hours": hours, "on_demand": price * amount, "spot": spot, "source": row.source,
            "as_of": row.as_of, "dated": row.dated, **facts}


def fleet(component: str, rows: Iterable[PriceRow], gib: float, replicas: int, memory_share: float,
          cores: Callable[[int], float], assumes: list[str]) -> list[dict[str, Any]]:
    """Machines without accelerators that hold ``gib`` together, ``replicas`` times, and have the cores that are needed.

    They run all year, sized for the busiest hour.

    Args:
        cores: number of shards -> cores that all machines need together.
    """
    found = []
    for row in rows:
        if row.accelerator is not None:
            continue
        assert row.vcpus is not None
        assert row.memory_gib is not None
        shards = max(math.ceil(gib / (row.memory_gib * memory_share)), 1)
        machines = max(shards * replicas, math.ceil(cores(shards) / row.vcpus))
        found.append(offer(component, row, machines, HOURS_A_YEAR, shards=shards, assumes=assumes,
                           because="memory" if machines == shards * replicas else "arithmetic"))
    return found


def cheapest_first(offers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By list price; spot prices may be gone tomorrow."""
    return sorted(offers, key=lambda o: (o["on_demand"], o["price_row"]))


def totals(components: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each provider's cheapest offer of every component, added up; providers that lack one are told so.

    Returns:
        [{"provider", "on_demand", "spot": {"low", "high"} (the list price where a row has none), "price_rows",
        "missing": [components]}], whole ones first, cheapest first.
    """
    providers = sorted({o["provider"] for offers in components.values() for o in offers})
    found = []
    for provider in providers:
        best = {c: min((o for o in offers if o["provider"] == provider), key=lambda o: o["on_demand"], default=None)
                for c, offers in components.items()}
        have = [o for o in best.values() if o is not None]
        found.append({
            "provider": provider, "on_demand": sum(o["on_demand"] for o in have),
            "spot": {end: sum(o["on_demand"] if o["spot"] is None else o["spot"][end] for o in have)
                     for end in ("low", "high")},
            "price_rows": [o["price_row"] for o in have], "undated": [o["price_row"] for o in have if not o["dated"]],
            "missing": [c for c, o in best.items() if o is None]})
    return sorted(found, key=lambda t: (len(t["missing"]), t["on_demand"]))
