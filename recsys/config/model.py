"""The ranker's architecture."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config.base import Strict


class ModelConfig(Strict):
    """The ranker. ``dlrm``, ``dcnv2`` ``finalmlp`` for user-ad logs, ``ridge`` for tests among shared texts."""

    kind: Literal["dlrm", "dcnv2", "finalmlp", "ridge"] = "dlrm"
    embedding_dim: int = Field(16, ge=1, description="a multiple of 4 but for the dense backend")
    embeddings: Literal["auto", "fused", "dense", "sharded"] = Field(
        "auto", description="embedding backend; auto: sharded under torchrun with several ranks, else fused"
    )
    hash_buckets: int = Field(100_000, ge=2, description="rows of the table of a hashed sparse feature")
    min_count: int = Field(2, ge=1, description="vocabulary: ids seen less often share one out-of-vocabulary row")
    bottom: tuple[int, ...] = (64, 16)
    top: tuple[int, ...] = (128, 64)
    dropout: float = Field(0.0, ge=0, lt=1)
    top_input: Literal["embeddings", "dense"] = Field(
        "embeddings", description="dlrm: what stands beside the dot products at the top MLP: all vectors, or (as in "
                                  "the paper) the dense features' alone"
    )
    cross_layers: int = Field(3, ge=1, description="dcnv2: cross layers")
    cross_rank: int = Field(64, ge=0, description="dcnv2: rank of a cross layer's matrix; 0: full")
    fusion_heads: int = Field(4, ge=1, description="finalmlp: heads of the bilinear fusion of the two streams")
    streams: tuple[tuple[int, ...], tuple[int, ...]] = Field(
        ((128, 64), (128, 64)), description="finalmlp: hidden layers of each of the two streams"
    )
    gates: tuple[int, ...] = Field((64,), description="finalmlp: hidden layers of the feature gates; (): none")
    history: Literal["mean", "attention"] = Field(
        "mean", description="how what the user engaged with is pooled: mean, or attention by the shown ad (Zhou "
                            "et al. 2018, Deep Interest Network)"
    )
    history_length: int = Field(20, ge=1, description="attention: latest items of a list feature that are looked at")
    attention: tuple[int, ...] = Field((32,), description="hidden layers of the attention's scoring MLP")
    content_dim: int = Field(64, ge=1, description="principal components kept of a content vector")
    heads: tuple[Literal["click", "engage", "convert"], ...] = ("click",)
    experts: int = Field(0, ge=0, description="experts of a multi-gate mixture (MMoE); 0: one shared top")
    kernels: Literal["auto", "reference", "triton"] = Field(
        "auto", description="auto: Triton on a GPU, the fastest there is on a CPU; reference: plain PyTorch; "
                            "triton: an error where it cannot run"
    )
    penalties: tuple[float, ...] = Field(
        (3.0, 10.0, 30.0, 100.0, 300.0, 1e3),
        description="ridge: tried by cross-validation on training stories",
    )
    gammas: tuple[float, ...] = Field(
        (0.0, 1.0), min_length=1, description="ridge: Gaussian kernels tried likewise; 0: linear"
    )

    @model_validator(mode="after")
    def _kernels_take_the_dimension(self) -> ModelConfig:
        if self.embeddings != "dense" and self.embedding_dim % 4:
            raise ValueError(f"embedding_dim: the fused kernels need a multiple of 4, not {self.embedding_dim}; "
                             "embeddings: dense takes any")
        return self
