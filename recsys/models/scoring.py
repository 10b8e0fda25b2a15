"""Rankers that are only scored from: packed tables, matrix products of bfloat16, calibrated log odds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from recsys.config import ModelConfig
from recsys.features.encoders import FeatureEncoder
from recsys.models.build import assemble, tables_of
from recsys.models.calibration import Calibration
from recsys.models.embeddings import write_tensor
from recsys.models.embeddings.quantised import Bits, Packed, QuantisedEmbeddings
from recsys.models.packed_linear import can_pack, pack_linears
from recsys.models.ranker import Ranker

_TABLES = "tables"


@dataclass(frozen=True)
class Scoring:
    """How a bundle's numbers are made.

    Attributes:
        tables: how rows of embedding tables are kept.
        precision: of matrix products; the heads and what follows them are float32.
        calibration: of the log odds.
    """

    tables: Bits = "int8"
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    calibration: Calibration = field(default_factory=Calibration)

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"tables": self.tables, "precision": self.precision, "calibration": self.calibration.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scoring:
        """What :meth:`to_json` wrote."""
        return cls(value["tables"], value["precision"], Calibration.from_json(value["calibration"]))


def has_bfloat16(scoring: Scoring, device: torch.device) -> bool:
    """Whether products are of bfloat16: asked for, and a processor that multiplies it (else float32 is faster)."""
    if scoring.precision != "bfloat16":
        return False
    if device.type != "cpu":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
                or (torch.backends.mkldnn.is_available() and "aarch64" in torch.__config__.show()))


def packed_weights(models: Sequence[Ranker], bits: Bits) -> dict[str, torch.Tensor]:
    """Weights of an ensemble by name, each member's tables as one block ``MEMBER.tables`` (:class:`Packed`)."""
    found: dict[str, torch.Tensor] = {}
    for i, model in enumerate(models):
        weights = model.weights()
        tables = {n.removeprefix("table."): w for n, w in weights.items() if n.startswith("table.")}
        found |= {f"{i}.{n}": w for n, w in weights.items() if not n.startswith("table.")}
        if tables:
            found[f"{i}.{_TABLES}"] = Packed.of(tables, model.dim, bits).block
    return found


def scoring_ranker(encoder: FeatureEncoder, config: ModelConfig, content: np.ndarray | None,
                   weights: Mapping[str, torch.Tensor], scoring: Scoring, device: torch.device) -> Ranker:
    """One member from :func:`packed_weights` (without its number).

    Its tables are looked up as they are packed: on a CPU in the memory that ``weights`` are in, on a GPU in a copy.

    Raises:
        KeyError, RuntimeError: a weight is missing or of another shape.
    """
    tables, narrow = tables_of(encoder), has_bfloat16(scoring, device)
    embeddings = None
    if tables:
        packed = Packed(weights[_TABLES].to(device), scoring.tables, config.embedding_dim)
        embeddings = QuantisedEmbeddings(tables, packed, torch.bfloat16 if narrow else torch.float32, config.kernels)
    model = assemble(encoder, config, content, embeddings).to(device)
    for name, target in model._dense().items():
        write_tensor(name, target, weights[name])
    if narrow:
        _narrow(model)
        if device.type == "cpu" and can_pack():
            pack_linears(model)
    return model


def _narrow(model: Ranker) -> None:
    """Keep what autocast would narrow at every call in bfloat16; the heads stay, and are applied, in float32."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "heads":
            module.to(torch.bfloat16)
    model.heads = _InFloat32(model.heads)


class _InFloat32(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x[0].device.type, enabled=False):
            return self.inner(*(t.float() for t in x))
