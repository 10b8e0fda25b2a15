"""Reading content vectors, aligning them to ads, and the corpus transform that makes them comparable.

    vectors = load_vectors("work/content/minilm")
    ad_ids, matrix = for_ads(vectors, ads)                     # row i belongs to ads row i
    transform = CorpusTransform.fit(matrix[train_rows], dim=64)
    features = transform.transform(matrix)                     # float32 [n, 64]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from recsys.content.parts import read_store
from recsys.errors import InputError
from recsys.stage import read_manifest

Normalisation = Literal["l2", "variance", "none"]


@dataclass(frozen=True)
class ContentVectors:
    """Vectors by content hash.

    Args:
        hashes: N distinct content hashes.
        matrix: float32 [N, d].
        identity: ``model_id``, ``model_revision``, ``pooling`` of the encoder; empty for vectors of other origin.
    """

    hashes: list[str]
    matrix: np.ndarray
    identity: dict[str, str]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Content hash -> row."""
        return {key: row for row, key in enumerate(self.hashes)}


def load_vectors(store: str | Path) -> ContentVectors:
    """Read a content store.

    Raises:
        InputError: no store there, a damaged one, or one of several encoders.
    """
    path = Path(store) / "content.parquet"
    table = read_store(path)
    if table is None:
        raise InputError("not a content store", file=path, got="no such file", expected="a folder made by recsys embed")
    identity = {}
    for name in ("model_id", "model_revision", "pooling"):
        values = table[name].unique().to_pylist()
        if len(values) != 1:
            raise InputError("vectors of several encoders in one store", file=path, column=name, got=values,
                             expected="one value")
        identity[name] = values[0]
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix = flat.astype(np.float32).reshape(table.num_rows, -1)
    return ContentVectors(table["content_hash"].to_pylist(), matrix, identity)


def for_ads(vectors: ContentVectors, ads: pa.Table) -> tuple[list[str], np.ndarray]:
    """Vectors aligned to the rows of an ads table.

    Args:
        vectors: of a store that covers the ads.
        ads: needs ``ad_id`` and ``content_hash``.

    Returns:
        ad_ids, length n, and float32 [n, d]; row i belongs to row i of ``ads``.

    Raises:
        InputError: an ad's text has no vector (it was not embedded).
    """
    keys = ads["content_hash"].to_pylist()
    for row, key in enumerate(keys):
        if key not in vectors.rows:
            raise InputError("this ad's text has no vector in the content store", file="ads", column="content_hash",
                             row=row, got=key, expected="a store that recsys embed made from these ads")
    return ads["ad_id"].to_pylist(), vectors.matrix[[vectors.rows[key] for key in keys]]


def joined_for_ads(stores: Sequence[str | Path], ads: pa.Table) -> tuple[list[str], np.ndarray]:
    """Vectors of one or several stores side by side, aligned to the rows of an ads table.

    Where there are several, each block is divided by its root mean square distance from its mean: encoders differ a
    hundredfold in scale, and the larger would drown the other in every sum of squares.

    Returns:
        ad_ids, length n, and float32 [n, sum of d].

    Raises:
        InputError: as :func:`load_vectors` and :func:`for_ads`.
    """
    blocks = []
    for store in stores:
        ids, matrix = for_ads(load_vectors(store), ads)
        if len(stores) > 1:
            matrix = matrix / max(float(np.sqrt(matrix.var(axis=0).sum())), 1e-12)
        blocks.append(matrix)
    return ids, np.concatenate(blocks, axis=1)


def block_widths(stores: Sequence[str | Path]) -> tuple[int, ...]:
    """Lengths of the blocks that :func:`joined_for_ads` puts side by side: of each layer, pooling and store."""
    found: list[int] = []
    for store in stores:
        facts = (read_manifest(Path(store)) or {}).get("facts", {})
        blocks = facts.get("blocks", 1)
        found += [facts["dim"] // blocks] * blocks
    return tuple(found)


@dataclass(frozen=True)
class CorpusTransform:
    """Mean-centring, projection on the first principal components, and normalisation, fitted on a corpus.

    Vectors of one model crowd into a narrow cone around their common mean (Ethayarajh 2019, How Contextual are
    Contextualized Word Representations?); taking the mean away is the cheapest large win there is (Mu & Viswanath 2018,
    All-but-the-Top). Fit it on the training ads only, and store it with whatever was trained on its output.

    Args:
        mean: float32 [d].
        components: float32 [d, k], orthonormal columns by falling variance; [d, 0] for no projection.
        scale: float32 [k or d], standard deviation of each output column over the corpus; 1 where it is 0.
        normalisation: ``l2`` divides each vector by its length, ``variance`` each column by ``scale``.
    """

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray
    normalisation: Normalisation
    version: int = 1

    @classmethod
    def fit(cls, matrix: np.ndarray, dim: int | None = None, normalisation: Normalisation = "l2") -> CorpusTransform:
        """Fit on a corpus.

        Args:
            matrix: [n, d], the training ads' vectors, one row per distinct text.
            dim: principal components kept, at most min(n, d) of them; None: no projection.
            normalisation: ``l2`` for cosine and retrieval, ``variance`` for the inputs of a network, or ``none``.

        Raises:
            InputError: no rows.
        """
        if len(matrix) == 0:
            raise InputError("no vectors to fit the transform on", got="0 rows", expected="at least one")
        wide = np.asarray(matrix, np.float64)
        mean = wide.mean(axis=0)
        components = np.zeros((wide.shape[1], 0))
        if dim is not None:
            # Eigenvectors of the covariance: d x d however many the texts. The sign is fixed, so refits agree.
            _, vectors = np.linalg.eigh((wide - mean).T @ (wide - mean))
            components = vectors[:, ::-1][:, : min(dim, *wide.shape)]
            largest = np.abs(components).argmax(axis=0)
            components = components * np.where(components[largest, np.arange(components.shape[1])] < 0, -1.0, 1.0)
        projected = (wide - mean) @ components if components.shape[1] else wide - mean
        scale = projected.std(axis=0)
        return cls(mean.astype(np.float32), components.astype(np.float32),
                   np.where(scale > 1e-9, scale, 1.0).astype(np.float32), normalisation)

    @property
    def dim(self) -> int:
        """Length of a transformed vector."""
        return len(self.scale)

    def transform(self, matrix: np.ndarray) -> np.ndarray:
        """Transform float [n, d] into float32 [n, dim]; a vector equal to the mean becomes zero."""
        if matrix.ndim != 2 or matrix.shape[1] != len(self.mean):
            raise InputError("vectors of another length than the transform was fitted on", got=tuple(matrix.shape),
                             expected=f"[n, {len(self.mean)}]")
        out = np.asarray(matrix, np.float32) - self.mean
        if self.components.shape[1]:
            out = out @ self.components
        if self.normalisation == "l2":
            return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
        return out / self.scale if self.normalisation == "variance" else out

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays, for writing them into another file's safetensors."""
        return {"mean": self.mean, "components": self.components, "scale": self.scale}

    def save(self, path: str | Path) -> None:
        """Write as safetensors; normalisation and version stand in its metadata."""
        from safetensors.numpy import save

        from recsys.stage import write_atomic

        told = {"recsys.transform": json.dumps({"version": self.version, "normalisation": self.normalisation})}
        write_atomic(path, save({k: np.ascontiguousarray(v) for k, v in self.tensors().items()}, told))

    @classmethod
    def load(cls, path: str | Path) -> CorpusTransform:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: missing, damaged, or of a later version.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise InputError("no such file", file=path, expected="a saved corpus transform")
        try:
            with safe_open(str(path), "np") as file:
                told = json.loads((file.metadata() or {})["recsys.transform"])
                arrays = {name: file.get_tensor(name) for name in ("mean", "components", "scale")}
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError("not a corpus transform", file=path, got=f"{type(error).__name__}: {error}",
                             expected="a file written by CorpusTransform.save") from None
        if told["version"] != 1:
            raise InputError("a corpus transform of another version", file=path, got=told["version"], expected="1")
        return cls(**arrays, normalisation=told["normalisation"])
