"""What the service needs to decide which ads are shown: docs/serving.md, "Ranking"."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from recsys.config.base import Strict
from recsys.config.evaluation import DecisionConfig, PolicyConfig

ContextType = Literal["number", "integer", "string", "strings"]


class ServedPolicyConfig(PolicyConfig):
    """How scores become a slate: with probability ``epsilon`` a uniformly random one, else by the ranker's scores.

    By the scores: a softmax of (log rate + bid_exponent * log bid) / temperature, drawn without replacement; at
    temperature 0 their falling order. ``rate`` is the sum of ``heads`` times the model's probabilities.
    """

    temperature: float = Field(0.25, ge=0, description="0: the order of the scores")
    epsilon: float = Field(0.1, ge=0, le=1, description="share of requests with a uniformly random slate")
    depth: int = Field(20, ge=1, le=100, description="candidates, best first, that compete for the slots")
    heads: dict[Literal["click", "engage", "convert"], float] = Field(
        {"click": 1.0}, description="what an impression is worth, in the units of a click")

    @model_validator(mode="after")
    def _worth_something(self) -> ServedPolicyConfig:
        if not self.heads or min(self.heads.values()) < 0 or not any(self.heads.values()):
            raise ValueError("heads: weights >= 0, not all of them 0")
        return self


class ServedArmConfig(Strict):
    """One arm of a served experiment."""

    share: float = Field(gt=0, le=1, description="of the units")
    model: str | None = Field(None, description="model folder, or name in the service; default: the service's model")
    policy: ServedPolicyConfig | None = Field(None, description="default: the service's policy")


class ServedExperimentConfig(Strict):
    """Units are dealt to arms by a stable hash; the rule is written down at the first start and held to."""

    id: str = Field(min_length=1, max_length=64)
    unit: Literal["user_id", "request_id"] = "user_id"
    arms: dict[str, ServedArmConfig] = Field(min_length=2)
    baseline: str
    decision: DecisionConfig = DecisionConfig()

    @model_validator(mode="after")
    def _whole(self) -> ServedExperimentConfig:
        if self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is no arm")
        if abs(sum(a.share for a in self.arms.values()) - 1.0) > 1e-9:
            raise ValueError("the arms' shares must sum to 1")
        return self


class RetrieveConfig(Strict):
    """Where candidates come from, unless the request brings its own."""

    k: int = Field(500, ge=1, le=10_000, description="candidates that the model scores")
    index: Path | None = Field(None, description="index over content vectors (recsys index): candidates near to the "
                                                 "user's history; default: all eligible ads, highest bids first")
    content: Path | None = Field(None, description="content store the index was made of (recsys embed)")
    towers: Path | None = Field(None, description="instead: a two-tower retriever, EXPERIMENT/retrievers/NAME")
    history: str = Field("history", description="user feature that lists the ads a user engaged with, latest last")
    latest: int = Field(20, ge=1, description="ads of the history that count")

    @model_validator(mode="after")
    def _both(self) -> RetrieveConfig:
        if (self.index is None) != (self.content is None):
            raise ValueError("index and content belong together")
        if self.towers is not None and self.index is not None:
            raise ValueError("either towers, or index and content")
        return self


class UsersConfig(Strict):
    """Where features of users come from: a Parquet snapshot, or Redis (filled by ``recsys load-users``)."""

    parquet: Path | None = None
    redis: str | None = Field(None, description="redis://HOST:PORT/DB")
    prefix: str = Field("recsys", description="of the keys in Redis")
    timeout_ms: float = Field(20.0, gt=0, description="after which a request goes on without the user's features")
    fallback: dict[str, int | float | str] = Field({}, description=(
        "column -> what stands there for a user who is not known, or has no value; default: null, missing. Columns "
        "that hold rows of their table (id_rows) need one"))

    @model_validator(mode="after")
    def _one(self) -> UsersConfig:
        if (self.parquet is None) == (self.redis is None):
            raise ValueError("either parquet or redis")
        return self


class PacingConfig(Strict):
    """Budgets (column ``budget`` of the ads) spread over a period by multiplicative pacing."""

    period_seconds: float = Field(86_400.0, gt=0)
    blocks: int = Field(288, ge=1, description="how often multipliers change in a period")
    step: float = Field(0.5, gt=0, description="how fast")
    share: float = Field(1.0, gt=0, le=1, description="of each budget that this process may spend: 1 / workers")


class ServedLogConfig(Strict):
    """Where served impressions and their feedback are written."""

    folder: str = Field(description="folder, or s3://, gs:// or abfs:// address, of the Parquet files")
    state: Path | None = Field(None, description="local folder of what is not published yet; default FOLDER/_state")
    rotate_bytes: int = Field(64 << 20, ge=1)
    rotate_seconds: float = Field(300.0, gt=0)
    sync_seconds: float = Field(0.2, ge=0, description="longest time between a decision and its fsync")
    queue: int = Field(10_000, ge=1, description="decisions that may wait for the disk; beyond, requests are refused")

    @model_validator(mode="after")
    def _state_is_local(self) -> ServedLogConfig:
        if "://" in self.folder and self.state is None:
            raise ValueError("state: a local folder, where the log itself goes to an object store")
        return self


class RankingConfig(Strict):
    """Everything behind ``/v1/rank``."""

    model: str | None = Field(None, description="model folder, or name in the service")
    ads: Path = Field(description="ads.parquet: ids, bids, ad features, columns to filter on")
    ads_poll_seconds: float = Field(10.0, ge=0, description="how often the file is looked at for a new version, as "
                                                            "budgets change; 0: never")
    users: UsersConfig | None = None
    context: dict[str, ContextType] = Field({}, description="columns that every request brings, and their types")
    filters: tuple[str, ...] = Field((), description="what makes an ad eligible: COLUMN=VALUE as in recsys search; "
                                                     "{surface} and {a string of the context} stand for the request's")
    retrieve: RetrieveConfig = RetrieveConfig()
    policy: ServedPolicyConfig = ServedPolicyConfig()
    pacing: PacingConfig | None = None
    experiment: ServedExperimentConfig | None = None
    log: ServedLogConfig | None = Field(None, description="default: nothing is logged, and nothing can be evaluated")
    currency: str = "USD"
    max_slots: int = Field(3, ge=1, le=50, description="most slots of a request; beyond 3 the temperature must be 0")

    @model_validator(mode="after")
    def _marginals_are_known(self) -> RankingConfig:
        arms = self.experiment.arms.values() if self.experiment else ()
        policies = [self.policy, *(a.policy for a in arms if a.policy is not None)]
        if self.max_slots > 3 and any(p.temperature > 0 for p in policies):
            raise ValueError("max_slots above 3 needs temperature 0: a softmax has exact propensities for three")
        return self
