"""A freshly initialised ranker from an experiment's settings and its encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recsys.config import ModelConfig
from recsys.config.training import ParallelConfig
from recsys.errors import InputError
from recsys.features.encoders import FeatureEncoder
from recsys.models.dcnv2 import DCNv2
from recsys.models.dlrm import DLRM
from recsys.models.embeddings import SparseOptions, Table, make_embeddings
from recsys.models.finalmlp import FinalMLP
from recsys.models.ranker import Inputs, Ranker

if TYPE_CHECKING:
    from recsys.training.world import World

KINDS: dict[str, type[Ranker]] = {"dlrm": DLRM, "dcnv2": DCNv2, "finalmlp": FinalMLP}


def build_model(encoder: FeatureEncoder, config: ModelConfig, content: np.ndarray | None, options: SparseOptions,
                device: torch.device, world: World | None = None, parallel: ParallelConfig | None = None) -> Ranker:
    """A freshly initialised ranker of the kind ``config.kind`` for an encoder's features.

    Args:
        content: float32 [N + 1, C], or None.
        options: optimizers of the embedding tables (they live in the backend).
        world, parallel: the ranks and how tables are spread over them; None: this process alone.

    Raises:
        InputError: a kind that is no ranker of user-ad logs.
    """
    tables, embeddings = tables_of(encoder), None
    if tables and config.kind in KINDS:
        embeddings = make_embeddings(config.embeddings, tables, config.embedding_dim, options, device, world,
                                     parallel)
    return assemble(encoder, config, content, embeddings).to(device)


def tables_of(encoder: FeatureEncoder) -> list[Table]:
    """The embedding tables of an encoder's features."""
    return [Table(name, encoder.tables[name].rows, features, bool({*features} & {*encoder.sequence}))
            for name, features in encoder.features.items()]


def assemble(encoder: FeatureEncoder, config: ModelConfig, content: np.ndarray | None, embeddings: Any) -> Ranker:
    """A ranker around embeddings that are there already.

    Raises:
        InputError: a kind that is no ranker of user-ad logs.
    """
    if config.kind not in KINDS:
        raise InputError("not a ranker of impressions", column="model.kind", got=config.kind,
                         expected=" or ".join(KINDS))
    matrix = None if content is None else torch.from_numpy(np.ascontiguousarray(content, np.float32))
    features = tuple(f for table in tables_of(encoder) for f in table.features)
    return KINDS[config.kind](Inputs(embeddings, features, encoder.dense_width, matrix, bool(encoder.sequence)), config)
