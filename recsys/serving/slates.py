"""What was decided for a request, as an answer and as rows of the served log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.config import ServedPolicyConfig
from recsys.contracts import IMPRESSIONS
from recsys.serving.exploration import Slate
from recsys.serving.protocol import HEAD_COLUMNS
from recsys.serving.rank_requests import RankRequest

LOGGED = ("impression_id", "request_id", "slot", "user_id", "ts", "surface", "ad_id", "advertiser_id", "candidates",
          "propensity", "policy_id", "bid", "mechanism", "currency", "experiment_id", "arm_id")
"""Columns of IMPRESSIONS that are known when an ad is shown; the rest follows from feedback."""
OWN = pa.schema([
    pa.field("conditional_propensity", pa.float64()),  # given the ads above: for estimators of whole slates
    pa.field("price_per_click", pa.float64()), pa.field("model_id", pa.string()), pa.field("source", pa.string()),
    pa.field("user_known", pa.bool_()), pa.field("seed", pa.int64()),
    pa.field("scores", pa.list_(pa.float64())),  # of the candidates: with seed and policy, the decision again
    *(pa.field(name, pa.float64()) for name in HEAD_COLUMNS.values()),
])
"""What the served log says beyond IMPRESSIONS, besides the features that the model saw."""


@dataclass(frozen=True)
class Arm:
    """The policy of a request.

    Attributes:
        experiment_id: None outside an experiment; ``arm_id`` likewise.
        arm_id: see there.
        model: name of its model, None: the service's.
        policy: how it chooses.
    """

    experiment_id: str | None
    arm_id: str | None
    model: str | None
    policy: ServedPolicyConfig


@dataclass(frozen=True)
class Decision:
    """A slate of S ads out of K candidates.

    Attributes:
        request: that it answers.
        arm: by whose policy.
        policy_id: names model and policy.
        model_id: whose scores.
        source: where the candidates are from.
        user_known: the user's features were there.
        ts: microseconds since 1970.
        candidates: K ad ids, best first.
        scores: float64[K].
        seed: of the draw.
        slate: what was drawn.
        heads: head -> float64[K] probabilities.
        bids: float64[K] as they took part, or None.
        prices: float64[S] per click, or None without bids.
        rows: int64[K], the candidates in the ads table.
        advertisers: S advertiser ids.
    """

    request: RankRequest
    arm: Arm
    policy_id: str
    model_id: str
    source: str
    user_known: bool
    ts: int
    candidates: list[str]
    scores: np.ndarray
    seed: int
    slate: Slate
    heads: Mapping[str, np.ndarray]
    bids: np.ndarray | None
    prices: np.ndarray | None
    rows: np.ndarray
    advertisers: list[str | None] = field(default_factory=list)

    @property
    def shown(self) -> list[str]:
        """Ad ids of the slots."""
        return [self.candidates[i] for i in self.slate.position]

    def impression_id(self, slot: int) -> str:
        """What feedback names."""
        return f"{self.request.request_id}-{slot}"

    def answer(self) -> dict[str, Any]:
        """The body of ``/v1/rank``."""
        ads = []
        for slot, at in enumerate(self.slate.position.tolist()):
            ad: dict[str, Any] = {
                "impression_id": self.impression_id(slot), "slot": slot, "ad_id": self.candidates[at],
                "propensity": float(self.slate.propensity[slot]),
                **{HEAD_COLUMNS[h]: float(v[at]) for h, v in self.heads.items()}}
            if self.prices is not None:
                ad["price_per_click"] = float(self.prices[slot])
            ads.append(ad)
        return {"request_id": self.request.request_id, "model_id": self.model_id, "policy_id": self.policy_id,
                "experiment_id": self.arm.experiment_id, "arm_id": self.arm.arm_id, "user_known": self.user_known,
                "source": self.source, "ads": ads}

    def log_rows(self, features: Mapping[str, pa.Array], mechanism: str, currency: str) -> pa.RecordBatch:
        """Rows of the served log, one a slot.

        Args:
            features: column -> S values, what the model saw of the shown ads.
            mechanism: of the prices.
            currency: of bids and prices.
        """
        n, at, request = len(self.slate.position), self.slate.position, self.request
        priced = self.bids is not None

        def same(value: Any, kind: pa.DataType) -> pa.Array:
            return pa.array([value] * n, kind)

        contract = {name: IMPRESSIONS[name].type for name in LOGGED}
        columns: dict[str, pa.Array] = {
            "impression_id": pa.array([self.impression_id(s) for s in range(n)]),
            "request_id": same(request.request_id, pa.string()), "slot": pa.array(range(n), pa.int32()),
            "user_id": same(request.user_id, pa.string()), "ts": pa.array([self.ts] * n, contract["ts"]),
            "surface": same(request.surface, pa.string()), "ad_id": pa.array(self.shown),
            "advertiser_id": pa.array(self.advertisers, pa.string()),
            "candidates": same(self.candidates, contract["candidates"]),
            "propensity": pa.array(self.slate.propensity), "policy_id": same(self.policy_id, pa.string()),
            "bid": pa.array(self.bids[at]) if self.bids is not None else same(None, pa.float64()),
            "mechanism": same(mechanism if priced else None, pa.string()),
            "currency": same(currency if priced else None, pa.string()),
            "experiment_id": same(self.arm.experiment_id, pa.string()),
            "arm_id": same(self.arm.arm_id, pa.string()),
            "conditional_propensity": pa.array(self.slate.conditional),
            "price_per_click": same(None, pa.float64()) if self.prices is None else pa.array(self.prices),
            "model_id": same(self.model_id, pa.string()), "source": same(self.source, pa.string()),
            "user_known": same(self.user_known, pa.bool_()), "seed": same(self.seed, pa.int64()),
            "scores": same(self.scores, pa.list_(pa.float64())),
        }
        for head, name in HEAD_COLUMNS.items():
            columns[name] = pa.array(self.heads[head][at]) if head in self.heads else same(None, pa.float64())
        for name, values in features.items():
            columns.setdefault(name, values)
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
