"""Encoders of content, semantic ids, the index over content vectors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from recsys.config.base import Strict

Pooling = Literal["mean", "mean_all", "last"]


class AdaptConfig(Strict):
    """Low-rank adaptation (LoRA) of an open model's last layers to the training part's clicks.

    Headline tests: the encoder learns which text of a test draws more clicks. User-ad logs: to bring ads together that
    the same user clicked one after the other.
    """

    layers: int = Field(2, ge=1, description="adapted, counted back from the deepest layer that is pooled")
    rank: int = Field(8, ge=1, description="of each weight's update")
    alpha: int = Field(16, ge=1, description="an update counts alpha / rank times")
    learning_rate: float = Field(1e-4, gt=0)
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(64, ge=2, description="texts a step (whole tests), or pairs of ads")
    validation_share: float = Field(
        0.15, gt=0, lt=1, description="of stories or users; the best of all epochs by it is kept, or none of them"
    )
    temperature: float = Field(0.1, gt=0, description="user-ad logs: of the softmax over the batch's ads")
    pairs: int = Field(20_000, ge=1, description="user-ad logs: most pairs an epoch")


class EncoderConfig(Strict):
    """How an ad's text becomes a vector. ``kind`` decides which of the other keys count."""

    kind: Literal["llama", "sentence", "hashed", "length", "endpoint"]
    model: str | None = Field(
        None, description="folder, GGUF file, hub id, or a shipped name: smollm2-135m | minilm; "
                          "endpoint: the model's name on the server"
    )
    revision: str | None = None
    pooling: Pooling | tuple[Pooling, ...] = Field(
        "mean", description="mean over the text's tokens (over its last reading, where the prompt says "
                            "it twice); mean_all: over all its readings; last: the last token; a list: each, side by "
                            "side, from one reading"
    )
    adapter: str | None = Field(None, description="llama: folder of a LoRA adapter in peft's format, safetensors")
    adapt: AdaptConfig | None = Field(None, description="llama: make that adapter from the training part first")
    layer: int | tuple[int, ...] = Field(
        -1, description="hidden layer, counted as Python counts; -1 is the last; a list: each, side by side"
    )
    prompt: str | None = Field(None, description="template with {text}; default: the text alone")
    max_tokens: int = Field(64, ge=1, le=8192)
    batch_tokens: int | None = Field(
        None, ge=1, description="padded tokens a batch; default 512 on a CPU (they stay in its cache), 16384 on a GPU"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    dim: int = Field(1024, ge=8, le=1 << 20, description="hashed: number of buckets; endpoint: length of its vectors")
    ngrams: tuple[int, int] = Field((1, 2), description="hashed: shortest and longest word n-gram")
    characters: tuple[int, int] | None = Field(
        None, description="hashed: also character n-grams inside words, of these lengths; half of the buckets each"
    )
    url: str | None = Field(None, description="endpoint: base URL of an OpenAI-compatible server, ending in /v1")
    key_env: str | None = Field(None, description="endpoint: environment variable that holds the key; null: no key")
    price: str | None = Field(None, description="endpoint: the price card's row for a million tokens")
    batch_size: int = Field(64, ge=1, le=2048, description="endpoint: texts a request")
    concurrency: int = Field(4, ge=1, le=64, description="endpoint: requests at a time")
    retries: int = Field(6, ge=0, description="endpoint: further tries of a request that may yet succeed")
    backoff_seconds: float = Field(1.0, gt=0, description="endpoint: pause before the second try; doubles each time")
    timeout_seconds: float = Field(60.0, gt=0, description="endpoint: longest silence of the server")


    @field_validator("pooling", "layer")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == () or (isinstance(value, tuple) and len(set(value)) < len(value)):
            raise ValueError("a list needs at least one entry, and none twice")
        return value

    @model_validator(mode="after")
    def _adapted(self) -> EncoderConfig:
        if self.kind != "llama" and (self.adapter or self.adapt):
            raise ValueError("adapter, adapt: only of kind llama")
        if self.adapter and self.adapt:
            raise ValueError("adapter, adapt: a finished adapter, or one to be made")
        return self

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """``pooling`` as a tuple."""
        return (self.pooling,) if isinstance(self.pooling, str) else self.pooling

    @property
    def layers(self) -> tuple[int, ...]:
        """``layer`` as a tuple."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer


    @property
    def blocks(self) -> int:
        """Equally long parts of a vector that come from different layers or poolings."""
        return len(self.layers) * len(self.poolings) if self.kind in ("llama", "sentence") else 1


class SemanticIdConfig(Strict):
    """Codes of a residual quantiser over the arm's content vectors; their prefixes become sparse features."""

    levels: int = Field(3, ge=1, le=8)
    codebook: int = Field(64, ge=2, le=1 << 16, description="entries of each level's codebook; a power of two")
    dim: int = Field(64, ge=1, description="principal components that are quantised")

    @model_validator(mode="after")
    def _power_of_two(self) -> SemanticIdConfig:
        if self.codebook & (self.codebook - 1):
            raise ValueError(f"codebook: a power of two, not {self.codebook}")
        return self


class ContentConfig(Strict):
    """What reads content: which encoders, and whether semantic ids are made of it."""

    content: str | tuple[str, ...] | None = Field(
        None, description="an encoder, or several whose vectors are joined; null: ids and dense features only"
    )
    semantic_ids: SemanticIdConfig | None = Field(
        None, description="also read semantic ids of the content, for ads that training never saw"
    )

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, none for ids only."""
        return (self.content,) if isinstance(self.content, str) else self.content or ()


class IndexConfig(Strict):
    """Which FAISS index holds the content vectors, and the recall that it is tuned to."""

    recall: float = Field(0.95, gt=0, le=1, description="recall@k against exact search that the index is tuned to")
    k: int = Field(100, ge=1, description="neighbours that recall counts")
    queries: int = Field(256, ge=1, description="the corpus's own vectors to tune on, and as many more to measure on")
    factory: str | None = Field(None, description="FAISS factory string; default: by the number of ads")
    flat_up_to: int = Field(50_000, ge=0, description="most ads of an exact index (Flat)")
    ivf_up_to: int = Field(1_000_000, ge=0, description="most ads of IVF...,SQ8")
    hnsw_up_to: int = Field(10_000_000, ge=0, description="most ads of IVF..._HNSW32,SQ8; beyond: PQ with refinement")
