"""The model folder: model.json, model.safetensors, vocabulary.parquet and content.safetensors. No pickle.

A bundle (``recsys export``) is a model folder whose tables are packed for scoring; it loads in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from recsys.config import ModelConfig, Strict, parse_model
from recsys.content.semantic_ids import ResidualQuantiser, prefix_features
from recsys.content.vectors import CorpusTransform
from recsys.errors import InputError
from recsys.features.encoders import FeatureEncoder
from recsys.features.vocabulary import Vocabulary
from recsys.models.build import build_model
from recsys.models.calibration import Calibration
from recsys.models.embeddings import SparseOptions
from recsys.models.folder import WEIGHTS, Parts, check_files, read_parts, write_definition
from recsys.models.ranker import Ranker
from recsys.models.scoring import Scoring, has_bfloat16, packed_weights, scoring_ranker
from recsys.models.trained import Trained
from recsys.stage import sha256_file


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a model that was read from its folder has, whatever it is.

    Attributes:
        encoder: columns to numbers.
        model_id: name and the first 12 digits of the weights' SHA-256.
        device: where the model is.
        content: float32 [N + 1, C], the frozen content matrix, or None.
        transform: what made it from raw content vectors.
        quantiser: what makes semantic ids from raw content vectors, where the model has them.
    """

    encoder: FeatureEncoder
    model_id: str
    device: torch.device
    content: np.ndarray | None = None
    transform: CorpusTransform | None = None
    quantiser: ResidualQuantiser | None = None

    def grown(self, ids: list[str], vectors: np.ndarray) -> tuple[FeatureEncoder, np.ndarray]:
        """Encoder and content matrix with further ads: arguments and errors as of :meth:`Bundle.with_ads`."""
        if self.content is None or self.transform is None or self.encoder.content is None:
            raise InputError("this model takes no content", file=self.model_id, expected="an arm with content")
        if len(set(ids)) != len(ids) or len(ids) != len(vectors):
            raise InputError("content vectors do not fit the ads", got=f"{len(vectors)} vectors of {len(set(ids))} ads",
                             expected="one vector an ad")
        if not np.isfinite(vectors).all():
            raise InputError("content vector is not finite", row=int(np.argmin(np.isfinite(vectors).all(axis=1))))
        known = self.encoder.content.values.to_pylist()
        rows = dict(zip(known, range(1, len(known) + 1), strict=True))
        for ad in ids:
            rows.setdefault(ad, len(rows) + 1)
        at = np.array([rows[ad] for ad in ids], np.int64)

        def written(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            out = np.zeros((len(rows) + 1, *old.shape[1:]), old.dtype)
            out[: len(old)] = old
            out[at] = new
            return out

        unit = self.transform.transform(vectors)
        content = written(self.content, unit * np.float32(np.sqrt(unit.shape[1])))
        of_content = {}
        if self.quantiser is not None:
            features = prefix_features(self.quantiser.encode(vectors))
            of_content = {n: written(old, self.encoder.tables[n].encode(features[n], n))
                          for n, old in self.encoder.of_content.items()}
        listed = Vocabulary(self.encoder.content.name, "vocabulary", len(rows) + 1, pa.array(list(rows), pa.string()))
        encoder = replace(self.encoder, content=listed, of_content=of_content)
        return encoder, content


@dataclass(frozen=True, kw_only=True)
class Bundle(Loaded):
    """A ranker ready to score.

    Attributes:
        models: the ensemble's members, in evaluation mode.
        heads: names of the outputs.
        calibration: what becomes of the log odds; the identity for what ``recsys train`` wrote.
        bfloat16: matrix products are of bfloat16 (under autocast).
    """

    models: tuple[Ranker, ...]
    heads: tuple[str, ...]
    calibration: Calibration = field(default_factory=Calibration)
    bfloat16: bool = False

    def with_ads(self, ids: list[str], vectors: np.ndarray) -> Bundle:
        """The same ranker with the content of further ads: made since training, or with a new text.

        Other ads keep their rows, so their scores do not change; this bundle stays as it is.

        Args:
            ids: n distinct ad ids.
            vectors: [n, d], their raw content vectors by the encoder that the ranker was trained with.

        Raises:
            InputError: a ranker without content, vectors of another length, one that is not finite, an id twice.
        """
        encoder, content = self.grown(ids, vectors)
        tensor = torch.from_numpy(content).to(self.device)
        models = tuple(model.with_content(tensor) for model in self.models)
        return replace(self, models=models, encoder=encoder, content=content)


def pick_device(device: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU.

    Raises:
        InputError: a GPU is asked for and none is there, or the name is unknown.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        return torch.device("cpu")
    if device.split(":")[0] == "cuda" and torch.cuda.is_available():
        return torch.device("cuda:0" if device == "cuda" else device)
    raise InputError("no such device", got=device, expected="auto, cpu, or cuda where a GPU is present")


def save_bundle(folder: Path, models: Sequence[Trained], encoder: FeatureEncoder, config: Strict, name: str,
                content: np.ndarray | None = None, transform: CorpusTransform | None = None,
                quantiser: ResidualQuantiser | None = None, facts: dict[str, Any] | None = None,
                writes: bool = True, scoring: Scoring | None = None) -> None:
    """Write the model folder.

    Args:
        folder: exists; its files of the same names are replaced.
        config: what the models are built by; in model.json it is called ``model``, that of towers ``retriever``.
        content: the frozen content matrix [N + 1, C].
        transform: what made it from raw vectors; kept so that new ads can be brought in.
        quantiser: likewise, of semantic ids.
        facts: what else model.json should say.
        writes: False on all ranks but the first, which only hand it their part of sharded tables.
        scoring: write a folder that is only scored from: tables packed, and how its numbers are made.
    """
    weights = packed_weights(cast(Sequence[Ranker], models), scoring.tables) if scoring is not None else \
        {f"{i}.{n}": t for i, model in enumerate(models) for n, t in model.weights().items()}
    if not writes:
        return
    save_file(weights, folder / WEIGHTS)
    write_definition(folder, encoder, config, name, content, transform, quantiser, {
        "model_id": f"{name}-{sha256_file(folder / WEIGHTS)[:12]}", "members": len(models), **(facts or {}),
        **({} if scoring is None else {"scoring": scoring.to_json()})})


def load_bundle(folder: str | Path, device: str = "auto", precision: Literal["float32"] | None = None) -> Bundle:
    """Read a model folder or a bundle.

    A bundle's files are first compared with the checksums of its manifest. Weights are mapped, not read: processes that
    load the same bundle share its tables' memory.

    Args:
        folder: of ``recsys train`` or ``recsys export``.
        device: auto | cpu | cuda.
        precision: of a bundle's matrix products instead of its own.

    Raises:
        InputError: a file is missing or damaged, or they do not fit each other.
    """
    folder = Path(folder)
    check_files(folder)
    return bundle_of(read_parts(folder), device, precision)


def bundle_of(parts: Parts, device: str = "auto", precision: Literal["float32"] | None = None) -> Bundle:
    """The ranker that is made of these parts; else as :func:`load_bundle`."""
    spec, folder, at = parts.spec, parts.folder, pick_device(device)
    if "model" not in spec:
        raise InputError("not a ranker", file=folder / "model.json", got=sorted(spec), expected="a ranker's folder")
    # Ranks are a matter of training: a ranker whose tables were sharded is served from one device.
    config = parse_model(ModelConfig, spec["model"], folder / "model.json")
    if config.embeddings == "sharded":
        config = config.model_copy(update={"embeddings": "fused"})
    models: list[Ranker] = []
    scoring = None if spec.get("scoring") is None else Scoring.from_json(spec["scoring"])
    if scoring is not None:
        scoring = scoring if precision is None else replace(scoring, precision=precision)
    encoder, content = parts.loaded["encoder"], parts.loaded["content"]
    # However the tables were spread while training, they are whole here.
    local = config if config.embeddings == "dense" else config.model_copy(update={"embeddings": "fused"})
    for member in range(spec["members"]):
        own = {n.partition(".")[2]: t for n, t in parts.weights.items() if n.startswith(f"{member}.")}
        try:
            if scoring is not None:
                model = scoring_ranker(encoder, local, content, own, scoring, at)
            else:
                model = build_model(encoder, local, content, SparseOptions(), at)
                model.load_weights(model.from_format_1(own) if spec["format"] == 1 else own)
        except (KeyError, RuntimeError) as error:
            raise InputError("weights do not fit model.json", file=parts.source, got=str(error),
                             expected="the weights that were saved with it") from None
        model.eval().requires_grad_(False)
        models.append(model)
    return Bundle(models=tuple(models), heads=config.heads, device=at,
                  calibration=Calibration() if scoring is None else scoring.calibration,
                  bfloat16=scoring is not None and has_bfloat16(scoring, at), **parts.loaded)
