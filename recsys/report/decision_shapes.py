"""The shape of the decision in ``lift.json``: the rule, fixed before the results, and what it says of them."""

from __future__ import annotations

from typing import Literal

from recsys.report.shapes import Interval, Open, Sha256, Share

Verdict = Literal["Ship", "Roll back", "Review", "Not enough data"]


class Bound(Open):
    """What a guardrail tolerates."""

    better: Literal["higher", "lower"]
    tolerated: float
    limit: float | None = None


class Guardrail(Bound):
    """A guardrail's reading; ``change`` is a lift, ``value`` stands beside a ``limit``."""

    status: Literal["kept", "harmed", "unclear"]
    change: Interval | None
    value: float | None = None
    note: str | None = None


class RuleGuardrail(Bound):
    """A guardrail as the rule states it."""

    metric: str


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
    segments: list[str]
    segment_values: int


class Power(Open):
    """Was the log large enough to tell a lift of the minimum effect (``asked``) from none?"""

    power: float
    detectable_lift: float | None
    asked: float | None
    units: int
    reached: bool | None
    units_needed: int | None


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
    power: dict[str, Power]
    registered: str | None = None
    looks: int | None = None
