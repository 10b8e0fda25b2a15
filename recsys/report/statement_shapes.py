"""The shape of ``statement.json``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recsys.report.shapes import Ends, Interval, Open


class Ecpm(Open):
    """Ad revenue per thousand impressions that lifts are turned into money with."""

    value: float
    metric: str | None
    assumed: bool
    source: str


class Months(Open):
    """Months of falling prices until an arm pays: 0 today, null never."""

    estimate: float | None
    worst: float | None
    best: float | None


class BreakEvenPrice(Open):
    """How far prices are from where revenue and cost meet."""

    multiple: Interval | None
    decline_per_year: float
    months: Months


class ArmBooks(Open):
    """One arm's books, US dollars; per mille is per thousand impressions, incremental is against the baseline."""

    model_revenue: Annotated[float, Field(ge=0, le=0, description="zero by construction")]
    cost: Interval | None
    cost_per_mille: Interval
    incremental_cost_per_mille: Interval
    revenue_lift: Interval
    incremental_revenue_per_mille: Interval
    revenue_basis: Literal["baseline", "measured", "lift of revenue", "lift of the goal"]
    net_per_mille: Interval
    net_per_refresh: Interval
    roi: Interval | None
    break_even_lift: Interval
    break_even_price: BreakEvenPrice | None
    stages: dict[str, Interval]
    tokens: int | None
    seconds: float | None
    sunk: list[str]
    api_alternative: Ends | None


class Point(Open):
    """An arm on the substitution curve; ``below_best`` is its paired difference to the best arm."""

    name: str
    lift: Interval
    cost_per_mille: Interval
    efficient: bool
    below_best: Interval | None
    significantly_below_best: bool


class Substitution(Open):
    """Lift against cost."""

    points: list[Point]
    frontier: list[str]
    best: str | None
    chosen: str | None
    rule: str


class Priced(Open):
    """An arm's work at a provider's list price, US dollars."""

    arm: str
    provider: str
    on_demand: float


class CloudRow(Priced):
    """One stage of one arm at one offer."""

    stage: str
    basis: Literal["seconds", "flops", "tokens", "bytes"]
    offer: str
    price_row: str
    spot: Ends | None
    source: str
    as_of: str
    dated: bool


class CloudTotal(Priced):
    """A whole arm on one cloud; ``undated`` names the price rows in it whose source gives no date."""

    spot: Ends
    undated: list[str]


class Clouds(Open):
    """The same work on every cloud; ``left_out`` maps quarantined price rows to the reasons."""

    rows: list[CloudRow]
    totals: list[CloudTotal]
    left_out: dict[str, list[str]]
    assumptions: list[str]


class Statement(Open):
    """The profit-and-loss statement of an experiment."""

    currency: Literal["USD"]
    impressions_per_refresh: int
    ecpm: Ecpm
    arms: dict[str, ArmBooks]
    substitution: Substitution
    notes: list[str]
    price_sources: list[str]
    clouds: Clouds | None = None
