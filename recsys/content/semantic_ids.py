"""Semantic ids: a few codes that texts of like meaning share from the front, so that a new ad has known ids.

A residual quantiser (Chen, Guan, Wang 2010, Approximate Nearest Neighbor Search by Residual Vector Quantization) is
fitted on the training ads' content vectors. Codes are taken greedily, level by level: the first says the broad theme,
each next one refines what is left. The prefixes of an id (first code, first two, ...) are sparse features of the
ranker with tables of their own (Singh et al. 2024, Better Generalization with Semantic IDs; Zheng et al. 2025,
Enhancing Embedding Representation Stability in Recommendation Systems with Semantic ID).

    folder = make_semantic_ids([store], ads, training_ads, SemanticIdConfig(), out)
    ids = SemanticIds.load(out)
    codes = ids.for_ads(ads)                     # int32 [n, levels]
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import SemanticIdConfig
from recsys.content.vectors import CorpusTransform, joined_for_ads, load_vectors
from recsys.contracts import read_parquet
from recsys.errors import InputError
from recsys.log import log
from recsys.stage import Stage, read_manifest, run_stage, sha256_file, sha256_json

QUANTISER_FILE, CODES_FILE = "quantiser.safetensors", "codes.parquet"
_ROWS = 4096  # vectors coded at a time, so that distances to a codebook stay small


@dataclass(frozen=True)
class ResidualQuantiser:
    """Centred and projected vectors to codes.

    Args:
        transform: from raw content vectors [n, d] to [n, k].
        codebooks: float32 [levels, codebook, k].
    """

    transform: CorpusTransform
    codebooks: np.ndarray

    @classmethod
    def fit(cls, matrix: np.ndarray, config: SemanticIdConfig) -> ResidualQuantiser:
        """Fit on the training ads' vectors, one row per distinct text, float [n, d].

        Raises:
            InputError: fewer vectors than a codebook has entries.
        """
        import faiss

        if len(matrix) < config.codebook:
            raise InputError("a codebook larger than the training corpus", file="experiment",
                             column="semantic_ids.codebook", got=config.codebook,
                             expected=f"at most the {len(matrix)} distinct texts of the training ads")
        transform = CorpusTransform.fit(matrix, config.dim, "l2")
        quantiser = faiss.ResidualQuantizer(transform.dim, config.levels, config.codebook.bit_length() - 1)
        quantiser.train_type = faiss.ResidualQuantizer.Train_default
        quantiser.max_beam_size = 1  # greedy: a prefix depends on nothing that follows it
        quantiser.cp.min_points_per_centroid = 1
        quantiser.train(np.ascontiguousarray(transform.transform(matrix)))
        shape = (config.levels, config.codebook, transform.dim)
        return cls(transform, faiss.vector_to_array(quantiser.codebooks).reshape(shape))

    @property
    def levels(self) -> int:
        """Codes an id has."""
        return len(self.codebooks)

    def encode(self, matrix: np.ndarray) -> np.ndarray:
        """Raw content vectors float [n, d] -> int32 [n, levels]."""
        codes = np.zeros((len(matrix), self.levels), np.int32)
        for start in range(0, len(matrix), _ROWS):
            rest = self.transform.transform(matrix[start : start + _ROWS]).astype(np.float64)
            for level, book in enumerate(self.codebooks.astype(np.float64)):
                nearest = ((book**2).sum(1) - 2 * rest @ book.T).argmin(1)
                codes[start : start + _ROWS, level] = nearest
                rest -= book[nearest]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int32 [n, l], l <= levels -> the transformed vectors float32 [n, k] that the codes stand for."""
        return np.asarray(sum(self.codebooks[level][codes[:, level]] for level in range(codes.shape[1])), np.float32)

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays, for writing them into a safetensors file."""
        return {"codebooks": np.ascontiguousarray(self.codebooks),
                **{f"transform.{n}": np.ascontiguousarray(a) for n, a in self.transform.tensors().items()}}

    @classmethod
    def from_tensors(cls, arrays: dict[str, np.ndarray]) -> ResidualQuantiser:
        """From what :meth:`tensors` gave; other arrays are left alone."""
        mean, components, scale = (arrays[f"transform.{n}"] for n in ("mean", "components", "scale"))
        return cls(CorpusTransform(mean, components, scale, "l2"), arrays["codebooks"])


def prefix_features(codes: np.ndarray) -> dict[str, pa.Array]:
    """The prefixes of ids as categorical columns ``semantic_id_1`` ("7"), ``semantic_id_2`` ("7-3"), ...

    Args:
        codes: int32 [n, levels].

    Returns:
        One string array [n] per level.
    """
    features, value = {}, None
    for level in range(codes.shape[1]):
        text = codes[:, level].astype(str)
        value = text if value is None else np.char.add(np.char.add(value, "-"), text)
        features[f"semantic_id_{level + 1}"] = pa.array(value.tolist(), pa.string())
    return features


def collisions(codes: np.ndarray) -> dict[str, Any]:
    """How far ids tell distinct texts apart.

    Args:
        codes: int32 [n, levels], a row per distinct text.

    Returns:
        texts; ids (distinct); collision_share (of texts whose whole id another text has too); largest (texts that
        share the most frequent id); prefixes (distinct ones, by length).
    """
    _, sizes = np.unique(codes, axis=0, return_counts=True)
    prefixes = [len(np.unique(codes[:, : level + 1], axis=0)) for level in range(codes.shape[1])]
    return {"texts": len(codes), "ids": len(sizes), "collision_share": float(sizes[sizes > 1].sum() / len(codes)),
            "largest": int(sizes.max()), "prefixes": prefixes}


@dataclass(frozen=True)
class SemanticIds:
    """Ids by content hash, and the quantiser that makes those of new texts.

    Args:
        quantiser: fitted once, then kept.
        hashes: N distinct content hashes.
        codes: int32 [N, levels].
        fitted: bool [N], texts that the quantiser was fitted on.
    """

    quantiser: ResidualQuantiser
    hashes: list[str]
    codes: np.ndarray
    fitted: np.ndarray

    @cached_property
    def rows(self) -> dict[str, int]:
        """Content hash -> row."""
        return {key: row for row, key in enumerate(self.hashes)}

    def for_ads(self, ads: pa.Table) -> np.ndarray:
        """int32 [n, levels]; row i belongs to row i of ``ads`` (needs ``content_hash``).

        Raises:
            InputError: an ad's text has no id.
        """
        keys = ads["content_hash"].to_pylist()
        for row, key in enumerate(keys):
            if key not in self.rows:
                raise InputError("this ad's text has no semantic id", file="ads", column="content_hash", row=row,
                                 got=key, expected="an ad of the experiment")
        return self.codes[[self.rows[key] for key in keys]]

    def refreshed(self, hashes: list[str], matrix: np.ndarray) -> SemanticIds:
        """With ids for the texts that have none yet; every other text keeps the id it has.

        Args:
            hashes: n content hashes.
            matrix: float [n, d], their raw content vectors.
        """
        first = {key: row for row, key in reversed(list(enumerate(hashes))) if key not in self.rows}
        new = sorted(first, key=lambda key: first[key])
        if not new:
            return self
        codes = self.quantiser.encode(matrix[[first[key] for key in new]])
        return SemanticIds(self.quantiser, self.hashes + new, np.concatenate([self.codes, codes]),
                           np.concatenate([self.fitted, np.zeros(len(new), bool)]))

    def save(self, folder: Path) -> dict[str, str]:
        """Write into an existing folder; returns file name -> SHA-256."""
        from safetensors.numpy import save_file

        save_file(self.quantiser.tensors(), folder / QUANTISER_FILE)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(self.codes.reshape(-1)), self.codes.shape[1])
        table = pa.table({"content_hash": pa.array(self.hashes, pa.string()), "codes": flat,
                          "fitted": pa.array(self.fitted)})
        pq.write_table(table, folder / CODES_FILE, compression="zstd")
        return {name: sha256_file(folder / name) for name in (QUANTISER_FILE, CODES_FILE)}

    @staticmethod
    def load(folder: str | Path) -> SemanticIds:
        """Read what :func:`make_semantic_ids` wrote.

        Raises:
            InputError: not such a folder, or a file is not the one that its manifest names.
        """
        from safetensors.numpy import load_file

        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None or manifest.get("stage") != "semantic_ids":
            raise InputError("no semantic ids", file=folder, expected="a folder that an experiment wrote")
        for name, digest in manifest["facts"]["sha256"].items():
            if (got := sha256_file(folder / name)) != digest:
                raise InputError("the file is not the one that was written", file=folder / name, column="sha256",
                                 got=got[:16], expected=digest[:16])
        table = read_parquet(folder / CODES_FILE)
        codes = table["codes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return SemanticIds(ResidualQuantiser.from_tensors(load_file(folder / QUANTISER_FILE)),
                           table["content_hash"].to_pylist(), codes.reshape(table.num_rows, -1),
                           table["fitted"].to_numpy(zero_copy_only=False))


def make_semantic_ids(stores: Sequence[str | Path], ads: pa.Table, training_ads: set[str], config: SemanticIdConfig,
                      out: str | Path) -> dict[str, Any]:
    """Give every text of the ads an id, keeping those of an earlier run.

    The quantiser is fitted once. Later runs into the same folder keep it and every id, and code new texts with it: an
    ad's id changes when its text does. It is fitted anew where ids would mean something else (other settings or
    encoders) and where a text that it was fitted on is now held out.

    Args:
        stores: content stores of the ads, joined as :func:`joined_for_ads` does.
        ads: ``ad_id`` and ``content_hash``, of training and test part.
        training_ads: ids of the ads that occur in the training part; only these are fitted on.
        config: levels and codebook.
        out: folder to write ``quantiser.safetensors`` and ``codes.parquet`` to.

    Returns:
        The manifest; ``facts`` has the checksums, :func:`collisions`, ``explained`` (share of the training vectors'
        squared length that the first 1, 2, ... codes give back), ``kept`` (ids of an earlier run) and ``seconds``.

    Raises:
        InputError: a text without a vector, or fewer training texts than a codebook has entries.
    """
    out = Path(out)
    ids, hashes = ads["ad_id"].to_pylist(), ads["content_hash"].to_pylist()
    training = {h for i, h in zip(ids, hashes, strict=True) if i in training_ads}
    meaning: dict[str, Any] = {"settings": config.model_dump(mode="json"),
                               "encoders": [load_vectors(s).identity for s in stores]}
    facts: dict[str, Any] = {}

    def build(stage: Stage) -> None:
        began = time.perf_counter()
        _, matrix = joined_for_ads(stores, ads)
        found, kept = _earlier(out, meaning, set(hashes) - training), 0
        if found is None:
            rows = list({h: row for row, h in enumerate(hashes) if h in training}.values())
            quantiser = ResidualQuantiser.fit(matrix[rows], config)
            fitted = [hashes[row] for row in rows]
            found = SemanticIds(quantiser, fitted, quantiser.encode(matrix[rows]), np.ones(len(rows), bool))
        else:
            kept = len(found.hashes)
        found = found.refreshed(hashes, matrix)
        known = [row for row, h in enumerate(hashes) if h in training]
        aimed, codes = found.quantiser.transform.transform(matrix[known]), found.for_ads(ads.take(known))
        left = [((aimed - found.quantiser.decode(codes[:, : n + 1])) ** 2).sum() for n in range(config.levels)]
        stage.facts = {"sha256": found.save(stage.folder), **collisions(found.codes), "kept": kept,
                       "explained": [float(1 - rest / max((aimed**2).sum(), 1e-12)) for rest in left],
                       "meaning": meaning, "seconds": time.perf_counter() - began,
                       "model_id": " + ".join(e["model_id"] for e in meaning["encoders"])}
        stage.rows = {"codes": len(found.hashes)}
        facts.update(stage.facts)

    parts = {"hashes": sha256_json(sorted(set(hashes))), "training": sha256_json(sorted(training))}
    manifest = run_stage("semantic_ids", out, config={**meaning, **parts}, inputs={}, build=build)
    if facts:
        log.info("semantic ids: %d texts, %d distinct ids, %.1f %% of texts share theirs, %d kept of an earlier run",
                 facts["texts"], facts["ids"], 100 * facts["collision_share"], facts["kept"])
    return manifest


def _earlier(out: Path, meaning: dict[str, Any], held_out: set[str]) -> SemanticIds | None:
    """Ids of an earlier run that still mean the same, or None."""
    manifest = read_manifest(out)
    if manifest is None or manifest.get("stage") != "semantic_ids":
        return None
    if json.loads(json.dumps(meaning)) != manifest["facts"]["meaning"]:
        log.info("semantic ids: settings or encoders changed, so every id is made anew (%s)", out)
        return None
    found = SemanticIds.load(out)
    if any(h in held_out for h, fitted in zip(found.hashes, found.fitted, strict=True) if fitted):
        log.info("semantic ids: a text that they were fitted on is held out now, so every id is made anew (%s)", out)
        return None
    return found
