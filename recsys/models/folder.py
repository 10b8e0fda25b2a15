"""The files of a model folder: the definition (model.json, vocabulary.parquet, content.safetensors) and the weights.

A definition is everything but the weights. A training run writes one beside its checkpoints, which hold nothing else
but weights and what training needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file

from recsys.config import ModelConfig, Strict
from recsys.content.semantic_ids import ResidualQuantiser
from recsys.content.vectors import CorpusTransform
from recsys.contracts import open_parquet, read_parquet
from recsys.errors import InputError
from recsys.features.encoders import FeatureEncoder
from recsys.stage import read_manifest, sha256_file, write_json

FORMAT = 2  # 1: a DLRM's dot products stood in another order
SPEC, WEIGHTS, CONTENT, VOCABULARY = "model.json", "model.safetensors", "content.safetensors", "vocabulary.parquet"


@dataclass(frozen=True)
class Parts:
    """What a model is made of.

    Attributes:
        spec: model.json.
        weights: by ``MEMBER.NAME``.
        loaded: the fields of :class:`recsys.models.bundle.Loaded` but the device.
        folder: of the definition.
        source: where the weights are from.
    """

    spec: dict[str, Any]
    weights: dict[str, torch.Tensor]
    loaded: dict[str, Any]
    folder: Path
    source: Path


def write_definition(folder: Path, encoder: FeatureEncoder, config: Strict, name: str, content: np.ndarray | None,
                     transform: CorpusTransform | None, quantiser: ResidualQuantiser | None,
                     facts: dict[str, Any]) -> None:
    """Write a definition, model.json last; arguments as of :func:`recsys.models.bundle.save_bundle`."""
    pq.write_table(encoder.vocabulary_table(), folder / VOCABULARY, compression="zstd")
    if content is not None:
        arrays = {"vectors": np.ascontiguousarray(content, np.float32)}
        if transform is not None:
            arrays |= {n: np.ascontiguousarray(a) for n, a in transform.tensors().items()}
        if quantiser is not None:
            arrays |= {f"quantiser.{n}": a for n, a in quantiser.tensors().items()}
        arrays |= {f"of_content.{n}": np.ascontiguousarray(a) for n, a in encoder.of_content.items()}
        save_numpy(arrays, folder / CONTENT)
    part = "model" if isinstance(config, ModelConfig) else "retriever"
    write_json(folder / SPEC, {
        "format": FORMAT, "name": name, part: config.model_dump(mode="json"), "features": encoder.to_json(),
        "has_content": content is not None, "versions": _versions(), **facts})


def read_definition(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """model.json, and the fields of :class:`recsys.models.bundle.Loaded` but ``model_id`` and the device.

    Raises:
        InputError: a file is missing or damaged.
    """
    file = folder / SPEC
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
    if missing := [k for k in ("features", "has_content") if k not in spec]:
        raise InputError("damaged file", file=file, column=missing[0], got=sorted(spec), expected="this key")
    vocabulary = folder / VOCABULARY
    has_values = any(v["rows"] > 1 for v in spec["features"]["tables"].values() if v["kind"] == "vocabulary")
    table = read_parquet(vocabulary) if has_values or spec["has_content"] else open_parquet(vocabulary).read()
    arrays = _tensors(folder / CONTENT, load_numpy) if spec["has_content"] else {}
    encoder = FeatureEncoder.from_json(spec["features"], table, vocabulary, _under("of_content.", arrays))
    transform = quantiser = None
    if "mean" in arrays:
        transform = CorpusTransform(arrays["mean"], arrays["components"], arrays["scale"], "l2")
    if found := _under("quantiser.", arrays):
        quantiser = ResidualQuantiser.from_tensors(found)
    return spec, {"encoder": encoder, "content": arrays.get("vectors"), "transform": transform,
                  "quantiser": quantiser}


def read_parts(folder: Path) -> Parts:
    """Read the files of a model folder; raises InputError where one is missing or damaged."""
    spec, loaded = read_definition(folder)
    if "model_id" not in spec:
        raise InputError("damaged file", file=folder / SPEC, column="model_id", got=sorted(spec), expected="this key")
    return Parts(spec, _tensors(folder / WEIGHTS, load_file), {**loaded, "model_id": spec["model_id"]}, folder,
                 folder / WEIGHTS)


def check_files(folder: Path) -> None:
    """Compare a folder's files with the checksums of its manifest, where it has them.

    Raises:
        InputError: a file that is missing or another.
    """
    manifest = read_manifest(folder)
    for name, sha in (manifest or {}).get("facts", {}).get("files", {}).items():
        if name.endswith((".safetensors", ".json", ".parquet")) and sha256_file(folder / name) != sha:
            raise InputError("damaged file", file=folder / name, expected="the checksum of the folder's manifest")


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _tensors(path: Path, load: Any) -> Any:
    if not path.is_file():
        raise InputError("no such file", file=path, expected="a complete model folder")
    try:
        return load(path)
    except (SafetensorError, OSError) as error:
        raise InputError("damaged file", file=path, got=str(error), expected="safetensors") from None
