"""The shape of ``lift.json`` and ``statement.json``, as JSON Schema (draft 2020-12) beside this module.

The models here are the source; ``python -m recsys.report.schema`` writes the two files, and a test holds them and the
outputs of a real experiment together. Keys may be added in later versions, so objects stay open; a key that is here
keeps its name and type.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FILES = {"lift": "lift.schema.json", "statement": "statement.schema.json"}
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Label = Literal["confirmatory", "exploratory"]
Verdict = Literal["Ship", "Roll back", "Review", "Not enough data"]


class Open(BaseModel):
    """Base of every object: types are not converted, no NaN or infinity, further keys allowed."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Ends(Open):
    """The ends of an interval."""

    low: float
    high: float


class Interval(Ends):
    """An estimate and its interval; a lift is a fraction (0.05 is 5 %)."""

    estimate: float


class Truth(Open):
    """What a simulator knows; absent for real data."""

    true_value: float | None = None
    true_lift: float | None = None
    covers_truth: bool | None = None
    value_covers_truth: bool | None = None


class Metric(Truth):
    """A metric beside the goal. Refused: too few events of its own, then without intervals."""

    value: float
    value_interval: Ends | None
    lift: Interval | None
    absolute_lift: Interval | None = None
    se: float | None = None
    label: Label | None = None
    interval_method: str | None = None
    interval_reason: str | None = None
    refused: str | None = None


class Encoder(Open):
    """The content encoder of an arm."""

    name: str
    kind: str
    model: str | None


class Arm(Truth):
    """One arm on the goal."""

    lift: Interval
    absolute_lift: Interval
    p_value: Share | None
    se: float | None
    value: float
    value_interval: Ends
    n: int
    clusters: int
    numerator: float | None = None
    denominator: int | None = None
    interval_method: str
    label: Label
    interval_reason: str
    secondary: dict[str, Metric]
    diagnostics: dict[str, Any]
    cost_per_mille_usd: float | None
    cost_per_mille_interval: Ends | None
    latency_ms: float | None = None
    verdict: Verdict | None = None
    encoder: Encoder | None = None


class Pair(Open):
    """Two arms on the same data: the difference is lift(arm) - lift(against)."""

    arm: str
    against: str
    difference: Interval
    lift: Interval
    p_value: Share | None
    interval_method: str


class Check(Open):
    """A health check."""

    check: str
    ok: bool
    detail: str


class Guardrail(Open):
    """A guardrail's reading; ``change`` is a lift, ``value`` stands beside a ``limit``."""

    status: Literal["kept", "harmed", "unclear"]
    better: Literal["higher", "lower"]
    tolerated: float
    change: Interval | None
    limit: float | None = None
    value: float | None = None
    note: str | None = None


class RuleGuardrail(Open):
    """A guardrail as the rule states it."""

    metric: str
    better: Literal["higher", "lower"]
    tolerated: float
    limit: float | None


class Rule(Open):
    """The decision rule, as it was registered and hashed."""

    goal: str
    baseline: str
    method: str
    unit: str
    confidence: float
    minimum_effect: float
    guardrails: list[RuleGuardrail]
    multiplicity: Literal["none", "holm", "bh"]
    peeking: Literal["fixed", "always_valid"]
    looks: int
    tuning: float


class Decision(Open):
    """The rule applied: by arm, without the baseline. ``sha256`` is of the rule."""

    rule: Rule
    sha256: Sha256
    alpha: float
    verdict: dict[str, Verdict]
    why: dict[str, str]
    goal: dict[str, Literal["met", "missed", "open"]]
    p_value: dict[str, Share]
    p_adjusted: dict[str, Share]
    guardrails: dict[str, dict[str, Guardrail]]
    detectable_lift: dict[str, float | None]
    registered: str | None = None
    looks: int | None = None


class Lift(Open):
    """The lift report of an experiment."""

    experiment: str
    goal: str
    method: Literal["offpolicy", "randomized"]
    unit: str
    confidence: float
    baseline: str
    arms: dict[str, Arm]
    pairwise: dict[str, Pair]
    health: list[Check]
    healthy: bool
    multiplicity: str
    peeking: str
    minimum_effect: float
    config_sha256: Sha256
    data_sha256: Sha256
    created: str
    versions: dict[str, str]
    decision: Decision
    seed: int | None = None
    retrieval: dict[str, dict[str, Any]] | None = None


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


class CloudRow(Open):
    """One stage of one arm at one offer, US dollars."""

    arm: str
    stage: str
    basis: Literal["seconds", "flops", "tokens", "bytes"]
    provider: str
    offer: str
    price_row: str
    on_demand: float
    spot: Ends | None
    source: str
    as_of: str
    dated: bool


class CloudTotal(Open):
    """A whole arm on one cloud; ``undated`` names the price rows in it whose source gives no date."""

    arm: str
    provider: str
    on_demand: float
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


MODELS: dict[str, type[Open]] = {"lift": Lift, "statement": Statement}


def schema_text(name: str) -> str:
    """The schema of ``lift`` or ``statement`` as it stands in its file."""
    made = MODELS[name].model_json_schema()
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": f"{name}.json"}
    return json.dumps(made, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for key, file in FILES.items():
        (Path(__file__).parent / file).write_text(schema_text(key))
