"""The model folder: model.json, model.safetensors, vocabulary.parquet and content.safetensors. No pickle.

A bundle (``recsys export``) is a model folder whose tables are packed for scoring; it loads in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

from recsys.config import ModelConfig, Strict, parse_model
from recsys.content.semantic_ids import ResidualQuantiser, prefix_features
from recsys.content.vectors import CorpusTransform
from recsys.contracts import read_parquet
from recsys.errors import InputError
from recsys.features.encoders import FeatureEncoder
from recsys.features.vocabulary import Vocabulary
from recsys.models.build import build_model
from recsys.models.calibration import Calibration
from recsys.models.embeddings import SparseOptions
from recsys.models.ranker import Ranker
from recsys.models.scoring import Scoring, has_bfloat16, packed_weights, scoring_ranker
from recsys.models.trained import Trained
from recsys.stage import read_manifest, sha256_file, write_json

FORMAT = 2  # 1: a DLRM's dot products stood in another order


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
    save_file(weights, folder / "model.safetensors")
    pq.write_table(encoder.vocabulary_table(), folder / "vocabulary.parquet", compression="zstd")
    if content is not None:
        arrays = {"vectors": np.ascontiguousarray(content, np.float32)}
        if transform is not None:
            arrays |= {n: np.ascontiguousarray(a) for n, a in transform.tensors().items()}
        if quantiser is not None:
            arrays |= {f"quantiser.{n}": a for n, a in quantiser.tensors().items()}
        arrays |= {f"of_content.{n}": np.ascontiguousarray(a) for n, a in encoder.of_content.items()}
        save_numpy(arrays, folder / "content.safetensors")
    part = "model" if isinstance(config, ModelConfig) else "retriever"
    write_json(folder / "model.json", {
        "format": FORMAT, "name": name, "model_id": f"{name}-{sha256_file(folder / 'model.safetensors')[:12]}",
        "members": len(models), part: config.model_dump(mode="json"), "features": encoder.to_json(),
        "has_content": content is not None, "versions": _versions(), **(facts or {}),
        **({} if scoring is None else {"scoring": scoring.to_json()}),
    })


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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
    folder, at = Path(folder), pick_device(device)
    _check_files(folder)
    parts = read_parts(folder)
    spec = parts.spec
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
            raise InputError("weights do not fit model.json", file=folder / "model.safetensors", got=str(error),
                             expected="the file that was saved with it") from None
        model.eval().requires_grad_(False)
        models.append(model)
    return Bundle(models=tuple(models), heads=config.heads, device=at,
                  calibration=Calibration() if scoring is None else scoring.calibration,
                  bfloat16=scoring is not None and has_bfloat16(scoring, at), **parts.loaded)


@dataclass(frozen=True)
class Parts:
    """What a model folder holds: model.json, the weights, and the fields of :class:`Loaded` but the device."""

    spec: dict[str, Any]
    weights: dict[str, torch.Tensor]
    loaded: dict[str, Any]


def read_parts(folder: Path) -> Parts:
    """Read the files of a model folder; raises InputError where one is missing or damaged."""
    file = folder / "model.json"
    if not file.is_file():
        raise InputError("no such file", file=file, expected="a model folder (recsys train FILE --out FOLDER)")
    try:
        spec = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("damaged file", file=file, got=str(error), expected="JSON") from None
    if not isinstance(spec, dict):
        raise InputError("damaged file", file=file, got=spec, expected="an object")
    if spec.get("format") not in (1, FORMAT):
        raise InputError("unknown format", file=file, column="format", got=spec.get("format"), expected=str(FORMAT))
    if missing := [k for k in ("features", "has_content", "model_id") if k not in spec]:
        raise InputError("damaged file", file=file, column=missing[0], got=sorted(spec), expected="this key")
    vocabulary = folder / "vocabulary.parquet"
    has_values = any(v["rows"] > 1 for v in spec["features"]["tables"].values() if v["kind"] == "vocabulary")
    table = read_parquet(vocabulary) if has_values or spec["has_content"] else pq.read_table(vocabulary)
    arrays = _tensors(folder / "content.safetensors", load_numpy) if spec["has_content"] else {}
    encoder = FeatureEncoder.from_json(spec["features"], table, vocabulary, _under("of_content.", arrays))
    content = arrays.get("vectors")
    weights = _tensors(folder / "model.safetensors", load_file)
    transform = quantiser = None
    if "mean" in arrays:
        transform = CorpusTransform(arrays["mean"], arrays["components"], arrays["scale"], "l2")
    if found := _under("quantiser.", arrays):
        quantiser = ResidualQuantiser.from_tensors(found)
    return Parts(spec, weights, {"encoder": encoder, "model_id": spec["model_id"], "content": content,
                                 "transform": transform, "quantiser": quantiser})


def _check_files(folder: Path) -> None:
    manifest = read_manifest(folder)
    for name, sha in (manifest or {}).get("facts", {}).get("files", {}).items():
        if name.endswith((".safetensors", ".json", ".parquet")) and sha256_file(folder / name) != sha:
            raise InputError("damaged file", file=folder / name, expected="the checksum of the bundle's manifest")


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _tensors(path: Path, load: Any) -> Any:
    if not path.is_file():
        raise InputError("no such file", file=path, expected="a complete model folder")
    try:
        return load(path)
    except (SafetensorError, OSError) as error:
        raise InputError("damaged file", file=path, got=str(error), expected="safetensors") from None
