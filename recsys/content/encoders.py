"""The one protocol behind which every content encoder stands, and the factory that makes one from its settings.

    encoder = make_encoder(EncoderConfig(kind="llama", layer=-3))
    batch = encoder.encode(["a headline", "another"])     # batch.vectors: float32 [2, 576]

An encoder's identity (``model_id``, ``revision``, ``pooling``, ``dim``) is known without loading its weights, so that
a store that already holds every vector never loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recsys.config import EncoderConfig


@dataclass(frozen=True)
class EncodedBatch:
    """What encoding n texts gives.

    Args:
        vectors: float32 [n, dim], in the order of the texts.
        tokens: int32 [n], tokens the model read for each text (prompt and special tokens included, padding not).
        positions: token positions that were computed for them, padding included; None where nothing is padded.
    """

    vectors: np.ndarray
    tokens: np.ndarray
    positions: int | None = None


class Encoder(Protocol):
    """Turns texts into vectors; deterministic, and a text's vector does not depend on what else is in the batch."""

    @property
    def model_id(self) -> str:
        """Name of the model: hub id, shipped name or folder name."""

    @property
    def revision(self) -> str:
        """Commit of a hub model, or a hash of the weights."""

    @property
    def pooling(self) -> str:
        """Everything else that decides the vector: prompt, hidden layer, pooling, token limit, dtype."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def device(self) -> str:
        """``cpu``, ``cuda``, or ``remote`` for a server elsewhere."""

    @property
    def dtype(self) -> str:
        """Number format the model computes in: ``float32`` or ``bfloat16``."""

    @property
    def parameters(self) -> int:
        """Parameters multiplied per token: of the layers computed, embedding tables (look-ups) left out.

        Encoding t tokens costs 2 * parameters * t floating-point operations, attention scores aside
        (Kaplan et al. 2020, Scaling Laws for Neural Language Models, section 2.1). 0 where no network is run.
        Loads the weights.
        """

    def encode(self, texts: list[str]) -> EncodedBatch:
        """Encode texts, in order; an empty text has a vector too."""


def make_encoder(config: EncoderConfig, device: str = "auto") -> Encoder:
    """The encoder that the settings describe.

    Args:
        config: one entry of an experiment's ``encoders``.
        device: ``auto`` (the GPU where there is one) | ``cpu`` | ``cuda``; only networks use it.

    Raises:
        InputError: the model cannot be found or is of another architecture, or a setting does not fit it.
    """
    if config.kind == "llama":
        from recsys.content.llama import LlamaEncoder

        return LlamaEncoder(config, device)
    if config.kind == "sentence":
        from recsys.content.sentence import SentenceEncoder

        return SentenceEncoder(config, device)
    if config.kind == "endpoint":
        from recsys.content.endpoint import EndpointEncoder

        return EndpointEncoder(config)
    from recsys.content.hashed import HashedEncoder, LengthEncoder

    return HashedEncoder(config) if config.kind == "hashed" else LengthEncoder()
