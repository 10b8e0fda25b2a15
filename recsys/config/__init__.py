"""The experiment file: one YAML that says data, split, encoders, arms, model, training, evaluation and money.

``load_config(path, ["training.epochs=2"])`` gives a frozen, fully resolved :class:`ExperimentConfig`;
what is not in the file has the default written here, and the resolved whole is saved with every run.
An unknown key is an error that names the key and its nearest neighbour.
"""

from recsys.config.base import Strict
from recsys.config.content import AdaptConfig, ContentConfig, EncoderConfig, IndexConfig, SemanticIdConfig
from recsys.config.data import DataConfig, FilesSplit, ShareSplit, SplitConfig
from recsys.config.evaluation import DecisionConfig, EvaluationConfig, GuardrailConfig, MoneyConfig, PolicyConfig
from recsys.config.experiment import ArmConfig, ExperimentConfig
from recsys.config.files import apply_overrides, find_resource, load_config, parse_model, read_yaml
from recsys.config.model import ModelConfig
from recsys.config.ranking import (
    PacingConfig,
    RankingConfig,
    RetrieveConfig,
    ServedArmConfig,
    ServedExperimentConfig,
    ServedLogConfig,
    ServedPolicyConfig,
    UsersConfig,
)
from recsys.config.retrieval import ArmRetrievalConfig, RetrieverConfig
from recsys.config.scale import ScaleConfig, TableSize
from recsys.config.training import ParallelConfig, ScheduleConfig, TableConfig, TrainingConfig

__all__ = [
    "AdaptConfig", "ArmConfig", "ArmRetrievalConfig", "ContentConfig", "DataConfig", "DecisionConfig", "EncoderConfig",
    "EvaluationConfig", "ExperimentConfig", "FilesSplit", "GuardrailConfig", "IndexConfig", "ModelConfig",
    "MoneyConfig", "PacingConfig", "ParallelConfig", "PolicyConfig", "RankingConfig", "RetrieveConfig",
    "RetrieverConfig", "ScaleConfig", "ScheduleConfig", "SemanticIdConfig", "ServedArmConfig", "ServedExperimentConfig",
    "ServedLogConfig", "ServedPolicyConfig", "ShareSplit", "SplitConfig", "Strict", "TableConfig", "TableSize",
    "TrainingConfig", "UsersConfig", "apply_overrides", "find_resource", "load_config", "parse_model", "read_yaml",
]
