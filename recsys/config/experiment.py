"""The whole experiment file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from recsys.config.base import Strict
from recsys.config.content import EncoderConfig, IndexConfig, SemanticIdConfig
from recsys.config.data import DataConfig, SplitConfig
from recsys.config.evaluation import DecisionConfig, EvaluationConfig, MoneyConfig
from recsys.config.model import ModelConfig
from recsys.config.scale import ScaleConfig
from recsys.config.training import ParallelConfig, TrainingConfig


class ArmConfig(Strict):
    """One arm of the experiment: a ranker with or without a content encoder, or a fixed policy."""

    content: str | tuple[str, ...] | None = Field(
        None, description="an encoder, or several whose vectors are joined; null: ids and dense features only"
    )
    semantic_ids: SemanticIdConfig | None = Field(
        None, description="also feed the ranker (dlrm) semantic ids of the content, for ads that training never saw"
    )
    policy: Literal["ranker", "uniform"] = "ranker"

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the arm's encoders, none for ids only."""
        return (self.content,) if isinstance(self.content, str) else self.content or ()


class ExperimentConfig(Strict):
    """The whole experiment file."""

    name: str
    seed: int = 0
    data: DataConfig
    split: SplitConfig
    encoders: dict[str, EncoderConfig] = Field(default_factory=dict)
    arms: dict[str, ArmConfig] = Field(default_factory=lambda: {"ids_only": ArmConfig()})
    baseline: str | None = Field(None, description="the arm that lifts are measured against; default: the first")
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    index: IndexConfig = IndexConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    decision: DecisionConfig = DecisionConfig()
    money: MoneyConfig = MoneyConfig()
    scale: ScaleConfig | None = Field(None, description="how large the job is in production: for recsys plan alone")

    @model_validator(mode="after")
    def _names_exist(self) -> ExperimentConfig:
        if not self.arms:
            raise ValueError("arms: at least one arm is needed")
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline: {self.baseline!r} is not one of the arms {sorted(self.arms)}")
        for name, arm in self.arms.items():
            for content in arm.encoders:
                if content not in self.encoders:
                    known = sorted(self.encoders)
                    raise ValueError(f"arms.{name}.content: {content!r} is not one of the encoders {known}")
            if arm.semantic_ids is not None and (self.model.kind == "ridge" or not arm.encoders):
                raise ValueError(f"arms.{name}.semantic_ids: content to make them of, and a ranker other than ridge")
        for key in ("goal", "confidence"):
            wanted, measured = getattr(self.decision, key), getattr(self.evaluation, key)
            if wanted is not None and wanted != measured:
                raise ValueError(f"decision.{key} is {wanted!r} but evaluation.{key} is {measured!r}: one of the two")
        return self

    @model_validator(mode="after")
    def _scale_is_of_this(self) -> ExperimentConfig:
        for name in () if self.scale is None else self.scale.parameters:
            if name not in self.encoders:
                raise ValueError(f"scale.parameters: {name!r} is not one of the encoders {sorted(self.encoders)}")
        return self

    @model_validator(mode="after")
    def _sharding_has_shards(self) -> ExperimentConfig:
        """What only sharded tables heed is refused where another backend is asked for by name, not ignored."""
        if self.model.embeddings in ("fused", "dense"):
            default = ParallelConfig()
            for key in ("sharding", "communication", "uvm_caching"):
                if getattr(self.training.parallel, key) != getattr(default, key):
                    raise ValueError(f"training.parallel.{key}: needs model.embeddings sharded or auto, not "
                                     f"{self.model.embeddings}")
            for name, table in self.training.tables.items():
                if table.sharding is not None:
                    raise ValueError(f"training.tables.{name}.sharding: needs model.embeddings sharded or auto, not "
                                     f"{self.model.embeddings}")
        return self

    @property
    def baseline_arm(self) -> str:
        """Name of the arm that lifts are measured against."""
        return self.baseline or next(iter(self.arms))

    def resolved(self) -> dict[str, Any]:
        """The configuration with every default filled in, as plain JSON-able values."""
        return self.model_dump(mode="json")
