"""The whole experiment file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from recsys.config.base import Strict
from recsys.config.content import ContentConfig, EncoderConfig, IndexConfig
from recsys.config.data import DataConfig, SplitConfig
from recsys.config.evaluation import DecisionConfig, EvaluationConfig, MoneyConfig
from recsys.config.model import ModelConfig
from recsys.config.retrieval import ArmRetrievalConfig, RetrieverConfig
from recsys.config.scale import ScaleConfig
from recsys.config.training import ParallelConfig, TrainingConfig


class ArmConfig(ContentConfig):
    """One arm of the experiment: a ranker with or without a content encoder, or a fixed policy."""

    policy: Literal["ranker", "uniform"] = "ranker"
    retrieval: ArmRetrievalConfig | None = Field(
        None, description="a retriever first: only what it keeps of a request's candidates can be shown"
    )


class ExperimentConfig(Strict):
    """The whole experiment file."""

    name: str
    seed: int = 0
    data: DataConfig
    split: SplitConfig
    encoders: dict[str, EncoderConfig] = Field(default_factory=dict)
    retrievers: dict[str, RetrieverConfig] = Field(default_factory=dict)
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
        readers: dict[str, ContentConfig] = {f"arms.{n}": a for n, a in self.arms.items()}
        for name, reader in (readers | {f"retrievers.{n}": r for n, r in self.retrievers.items()}).items():
            for content in reader.encoders:
                if content not in self.encoders:
                    known = sorted(self.encoders)
                    raise ValueError(f"{name}.content: {content!r} is not one of the encoders {known}")
            ridge = self.model.kind == "ridge" and isinstance(reader, ArmConfig)
            if reader.semantic_ids is not None and (ridge or not reader.encoders):
                raise ValueError(f"{name}.semantic_ids: content to make them of, and a ranker other than ridge")
        for name, arm in self.arms.items():
            if arm.retrieval is not None and arm.retrieval.retriever not in self.retrievers:
                raise ValueError(f"arms.{name}.retrieval.retriever: {arm.retrieval.retriever!r} is not one of the "
                                 f"retrievers {sorted(self.retrievers)}")
            if arm.retrieval is not None and self.evaluation.method != "offpolicy":
                raise ValueError(f"arms.{name}.retrieval: requests with candidates (evaluation.method: offpolicy)")
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
