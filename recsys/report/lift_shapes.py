"""The shape of ``lift.json``."""

from __future__ import annotations

from typing import Any, Literal

from recsys.report.decision_shapes import Decision, Verdict
from recsys.report.shapes import Ends, Interval, Open, Sha256, Share

Label = Literal["confirmatory", "exploratory"]


class Truth(Open):
    """What a simulator knows; absent for real data."""

    true_value: float | None = None
    true_lift: float | None = None
    covers_truth: bool | None = None
    value_covers_truth: bool | None = None


class Reading(Open):
    """How a lift was intervalled; ``refused``: not at all, and why."""

    se: float | None = None
    label: Label | None = None
    interval_method: str | None = None
    refused: str | None = None


class Metric(Truth, Reading):
    """A metric beside the goal. Refused: too few events of its own, or a health check failed."""

    value: float | None
    value_interval: Ends | None
    lift: Interval | None
    absolute_lift: Interval | None = None
    interval_reason: str | None = None


class Unadjusted(Open):
    """The lift without the outcome model, and the share of its variance that the model saves."""

    estimator: str
    lift: Interval
    se: float | None
    variance_reduction: float | None


class Encoder(Open):
    """The content encoder of an arm."""

    name: str
    kind: str
    model: str | None


class Arm(Truth):
    """One arm on the goal. Refused: a health check failed, then every estimate is null."""

    lift: Interval | None
    absolute_lift: Interval | None
    p_value: Share | None
    se: float | None
    value: float | None
    value_interval: Ends | None
    refused: str | None = None
    n: int
    clusters: int
    numerator: float | None = None
    denominator: int | None = None
    interval_method: str
    label: Label
    interval_reason: str
    secondary: dict[str, Metric]
    diagnostics: dict[str, Any]
    unadjusted: Unadjusted | None = None
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


class NotChecked(Open):
    """A health check that the method leaves no room for."""

    check: str
    why: str


class AA(Open):
    """An arm's standard error tried on halves of its own units; ``low`` and ``high``: 99 % range of ``rejected``."""

    draws: int | None = None
    units: int | None = None
    alpha: float | None = None
    rejected: Share | None = None
    low: Share | None = None
    high: Share | None = None
    excess_p: Share | None = None
    uniformity_p: Share | None = None
    ok: bool | None = None
    refused: str | None = None


class Look(Open):
    """The lift on all rows up to ``until``: bounds that hold at all looks at once, and the interval of a single look,
    by the rule of the report (``method``, ``label``) for the evidence of that look."""

    until: str
    n: int
    units: int
    lift: Interval
    one_look: Interval
    method: str | None = None
    label: Literal["confirmatory", "exploratory"] | None = None


class Halves(Open):
    """The lift in each half of the time, and the p-value of their difference."""

    first: Interval | None
    second: Interval | None
    p_value: Share | None


class Growth(Open):
    """The lift as the data grew; ``refused``: the log has nothing to order it by."""

    column: str | None = None
    looks: int | None = None
    tuning: float | None = None
    confidence: float | None = None
    arms: dict[str, list[Look]] | None = None
    halves: dict[str, Halves] | None = None
    refused: str | None = None


class Size(Open):
    """Rows and independent units of a segment."""

    n: int
    clusters: int


class Drawn(Open):
    """An estimate drawn towards others; without an interval where the evidence is exploratory."""

    estimate: float
    low: float | None
    high: float | None


class SegmentLift(Reading):
    """An arm's lift in a segment, as measured and shrunk towards its overall lift; p-values are against no lift."""

    lift: Interval | None = None
    shrunk: Drawn | None = None
    p_value: Share | None = None
    p_adjusted: Share | None = None


class Wald(Open):
    """Test of equal lifts in the segments of a column whose evidence is confirmatory (``segments``)."""

    statistic: float
    df: int
    p_value: Share
    p_adjusted: Share
    segments: list[str] | None = None


class SegmentArm(Open):
    """An arm over a column's segments; ``between_sd``: estimated spread of the true lifts, null if not shrunk."""

    heterogeneity: Wald | None
    between_sd: float | None
    values: dict[str, SegmentLift]


class SegmentColumn(Open):
    """A column that the experiment file named beforehand."""

    values: dict[str, Size]
    arms: dict[str, SegmentArm]


class Threat(Open):
    """A threat to validity, and what this log says of it."""

    threat: str
    why: str
    evidence: str | None


class Certificate(Open):
    """The certification of the interval methods (docs/certification.md) for the report's ``design``; false: their code
    has changed since; ``unmet``: what it required of that design and did not find."""

    id: Sha256
    methods_match: bool
    design: str | None = None
    unmet: list[str] | None = None


class Lift(Open):
    """The lift report of an experiment. Refused: a health check failed, so no estimate is in it; and what mends it."""

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
    refused: str | None = None
    not_checked: list[NotChecked]
    aa: dict[str, AA]
    growth: Growth
    segments: dict[str, SegmentColumn]
    threats: list[Threat]
    multiplicity: str
    peeking: str
    minimum_effect: float
    config_sha256: Sha256
    data_sha256: Sha256
    created: str
    versions: dict[str, str]
    decision: Decision
    certificate: Certificate | None = None
    seed: int | None = None
    retrieval: dict[str, dict[str, Any]] | None = None
