"""Retrievers: what proposes the ads that a ranker then ranks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config.base import Strict
from recsys.config.content import ContentConfig, IndexConfig
from recsys.config.training import TrainingConfig


class RetrieverConfig(ContentConfig):
    """A model of which ads a user would click, cheap enough for all ads: a dot product of two vectors.

    ``two_tower`` is trained; the others are what it is held against: ``history`` (content near to the mean of what the
    user clicked), ``popularity`` (clicks of the training part), ``random``.
    """

    kind: Literal["two_tower", "history", "popularity", "random"] = "two_tower"
    dim: int = Field(64, ge=1, description="length of the users' and ads' vectors, that of the index")
    embedding_dim: int = Field(16, ge=4, multiple_of=4, description="of the tables of ids")
    content_dim: int = Field(64, ge=1, description="principal components kept of a content vector")
    user: tuple[int, ...] = Field((64,), description="hidden layers of the user's tower")
    ad: tuple[int, ...] = Field((64,), description="hidden layers of the ad's tower")
    dropout: float = Field(0.0, ge=0, lt=1, description="in both towers")
    temperature: float = Field(0.1, gt=0, description="what cosines are divided by before the softmax")
    log_q: bool = Field(True, description="correct the in-batch softmax for how often an ad is drawn as a negative")
    frequency_rate: float = Field(0.01, gt=0, le=1, description="learning rate of the estimate of that frequency")
    id_dropout: float = Field(
        0.3, ge=0, lt=1, description="share of the training rows whose ad hides its id, so that the tower learns what "
                                     "to say of an ad by its content and features alone"
    )
    hard_negatives: float = Field(
        0.0, ge=0, le=1, description="share of the ads shown and not clicked that join the batches as further negatives"
    )
    min_count: int = Field(2, ge=1, description="ids with fewer clicked rows (and hard negatives) are as unknown")
    hash_buckets: int = Field(100_000, ge=2, description="rows of the table of a hashed sparse feature")
    training: TrainingConfig = TrainingConfig(epochs=20, batch_size=512, patience=3, embedding_init=0.1)
    index: IndexConfig = IndexConfig()

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> RetrieverConfig:
        if self.kind == "history" and not self.encoders:
            raise ValueError("content: a retriever by history needs an encoder")
        if self.training.negative_keep != 1 or self.training.ensemble != 1:
            raise ValueError("training: negative_keep and ensemble are a ranker's; see hard_negatives")
        return self


class ArmRetrievalConfig(Strict):
    """The first step of an arm: its ranker sees only the request's candidates that a retriever likes best."""

    retriever: str = Field(description="name among the experiment's retrievers")
    k: int = Field(ge=1, description="candidates of a request that are ranked; as many as there are slots at least")
