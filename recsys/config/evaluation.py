"""What is measured, the rule that judges it, and the money beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config.base import Strict


class PolicyConfig(Strict):
    """How a ranker's scores become a policy: softmax of (log p_click + bid_exponent * log bid) / temperature."""

    temperature: float = Field(0.25, gt=0)
    bid_exponent: float = Field(0.5, ge=0, description="squashing of the bid in the ranking score")
    reserve: float = Field(0.05, ge=0, description="lowest price of a click, in the log's currency")
    mechanism: Literal["gsp", "vcg", "first_price"] = Field("gsp", description="how a click is priced")


class EvaluationConfig(Strict):
    """What is measured, fixed before results exist."""

    goal: Literal["ctr"] = "ctr"
    method: Literal["offpolicy", "randomized"] = "offpolicy"
    unit: Literal["user_id", "group_id", "request_id"] = "user_id"
    confidence: float = Field(0.95, gt=0.5, lt=1)
    bootstrap: int = Field(2000, ge=200)
    time_column: str = Field("ts", description="column of the log that orders it, for the lift as the data grow")
    growth_looks: int = Field(20, ge=2, le=200, description="points of the lift as the data grow")
    aa_draws: int = Field(500, ge=100, description="random halves of the units on which standard errors are tried")
    policy: PolicyConfig = PolicyConfig()


class GuardrailConfig(Strict):
    """A metric that an arm must not harm, whatever it does for the goal."""

    metric: Literal["engagement", "hide", "revenue_per_mille", "surplus_per_mille", "welfare_per_mille",
                    "cost_per_click", "conversion", "cost_per_action", "diversity", "fill", "latency_ms"]
    better: Literal["higher", "lower"] = Field(description="the direction that is good")
    tolerated: float = Field(0.0, ge=0, lt=1, description="harm put up with, a share of the baseline's value")
    limit: float | None = Field(None, gt=0, description="a bound on the value itself; what latency_ms is held to")

    @model_validator(mode="after")
    def _latency_has_a_limit(self) -> GuardrailConfig:
        if (self.metric == "latency_ms") != (self.limit is not None):
            raise ValueError("a limit for latency_ms, and for no other metric: it is one measurement, without interval")
        return self


AFTER_THE_FACT = frozenset({
    "impression_id", "request_id", "ad_id", "advertiser_id", "campaign_id", "propensity", "bid", "price_paid", "click",
    "engaged", "dwell_ms", "conversion", "value", "hide", "trials", "successes", "weight", "candidates"})
"""Columns of a log that say what was shown, or what came of it: no segments."""


class DecisionConfig(Strict):
    """The rule by which arms are judged, fixed before results exist (docs/money.md). Its hash is on the report."""

    goal: Literal["ctr"] | None = Field(None, description="default: evaluation.goal, and never another")
    confidence: float | None = Field(None, gt=0.5, lt=1, description="default: evaluation.confidence, never another")
    minimum_effect: float = Field(0.0, ge=0, lt=1, description="smallest relative lift that is worth shipping")
    guardrails: tuple[GuardrailConfig, ...] = ()
    multiplicity: Literal["none", "holm", "bh"] = Field("holm", description="adjustment of the goal over arms")
    peeking: Literal["fixed", "always_valid"] = "fixed"
    looks: int = Field(1, ge=1, description="fixed: how many looks at growing data are planned; alpha is split evenly")
    tuning: float = Field(5_000.0, gt=0, description="units at which an always-valid interval is tightest")
    segments: tuple[str, ...] = Field((), description="columns of the log, known before anything was shown, by whose "
                                                      "values the lift is also told apart")
    segment_values: int = Field(12, ge=2, le=50, description="most frequent values of a segment column; the rest is "
                                                             "pooled; numbers with more are cut at quartiles")

    @model_validator(mode="after")
    def _each_once(self) -> DecisionConfig:
        for what, names in (("guardrail metric", [g.metric for g in self.guardrails]), ("segment", self.segments)):
            if len(names) != len(set(names)):
                raise ValueError(f"every {what} once, not {sorted(names)}")
        if late := [n for n in self.segments if n in AFTER_THE_FACT]:
            raise ValueError(f"segments: {late[0]} is known only once an ad was shown; a segment is known before")
        return self


class MoneyConfig(Strict):
    """Which prices apply and over how many impressions a one-off cost is spread."""

    price_card: str = Field("2026-11", description="name of a card in data/prices/ or a path to one")
    machine: str = Field("aws-c6a-large", description="the card's row for the machine the stages ran on")
    storage: str | None = Field(None, description="the card's row for what is kept between two refreshes; default: "
                                                  "the storage of the machine's provider, where the card has one")
    impressions_per_refresh: int = Field(1_000_000, ge=1, description="impressions served between two refreshes")
    months_per_refresh: float = Field(1.0, gt=0, description="how long vectors, index and model are kept")
    reference_ecpm: float = Field(2.0, gt=0, description="USD per mille assumed where no revenue was measured")
    price_decline_per_year: float = Field(
        0.25, gt=0, lt=1, description="assumed fall of compute prices, for the months to break-even (docs/money.md)"
    )
