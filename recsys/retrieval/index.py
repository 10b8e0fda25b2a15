"""Nearest ads by content: an exact FAISS index over centred, unit-length vectors, with checksums and string ids.

    build_index("work/content/minilm", "work/index", ads)
    index = Index.open("work/index")
    ad_ids, scores = index.search(encoder.encode(["a query"]).vectors, k=10)

FAISS starts threads on first use and hangs in a process forked after that: start workers with ``spawn``, or open the
index after the fork.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.content.vectors import ContentVectors, CorpusTransform, for_ads, load_vectors
from recsys.contracts import open_parquet
from recsys.errors import InputError
from recsys.log import log
from recsys.stage import Stage, read_manifest, run_stage, sha256_bytes, sha256_file, sha256_json

FACTORY = "IDMap2,Flat"
_INDEX, _IDS, _TRANSFORM = "index.faiss", "ids.parquet", "transform.safetensors"


def build_index(store: str | Path | ContentVectors, out: str | Path, ads: pa.Table | None = None,
                transform: CorpusTransform | None = None) -> dict[str, Any]:
    """Index content vectors for inner-product search on centred, unit-length vectors (their cosine).

    Args:
        store: a content store's folder, or vectors in memory.
        out: output folder: index.faiss, ids.parquet (``id`` int64 <-> ``ad_id`` string), transform.safetensors, and
            manifest.json with the SHA-256 of each, written last.
        ads: what search finds (``ad_id``, ``content_hash``); None: the content hashes themselves are the ids.
        transform: fitted on training ads; None: fitted here on all distinct vectors, without projection.

    Returns:
        The manifest; ``facts`` holds factory, dim, n, files, seconds and, for a store's folder, its encoder.

    Raises:
        InputError: an ad without a vector, or two rows with one ad_id.
    """
    vectors = store if isinstance(store, ContentVectors) else load_vectors(store)
    ids, matrix = (vectors.hashes, vectors.matrix) if ads is None else for_ads(vectors, ads)
    _check_ids(ids)
    made = None if isinstance(store, ContentVectors) else (read_manifest(store) or {}).get("facts", {})
    encoder = {"encoder": made["encoder"]} if made and "encoder" in made else {}
    fitted = transform or CorpusTransform.fit(vectors.matrix)
    if fitted.normalisation != "l2":
        raise InputError("inner products are cosines of unit-length vectors only", column="normalisation",
                         got=fitted.normalisation, expected="a transform with l2")

    def build(stage: Stage) -> None:
        import faiss

        started = time.perf_counter()
        unit = np.ascontiguousarray(fitted.transform(matrix), np.float32)
        index = faiss.index_factory(unit.shape[1], FACTORY, faiss.METRIC_INNER_PRODUCT)
        index.add_with_ids(unit, np.arange(len(ids), dtype=np.int64))
        faiss.write_index(index, str(stage.path(_INDEX)))
        pq.write_table(pa.table({"id": pa.array(range(len(ids)), pa.int64()), "ad_id": pa.array(ids, pa.string())}),
                       stage.path(_IDS))
        fitted.save(stage.path(_TRANSFORM))
        files = {name: sha256_file(stage.path(name)) for name in (_INDEX, _IDS, _TRANSFORM)}
        stage.rows = {"ads": len(ids)}
        stage.facts = {"factory": FACTORY, "metric": "inner_product", "dim": unit.shape[1], "n": len(ids),
                       "files": files, **vectors.identity, **encoder,
                       "seconds": time.perf_counter() - started}

    config = {"factory": FACTORY, **vectors.identity, "ids": sha256_json(ids),
              "vectors": sha256_bytes(np.ascontiguousarray(matrix).tobytes()),
              "transform": sha256_bytes(b"".join(np.ascontiguousarray(a).tobytes() for a in fitted.tensors().values()))}
    manifest = run_stage("index", out, config=config, inputs={}, build=build)
    if not manifest["cached"]:
        log.info("index: %d ads, %s (%s)", len(ids), FACTORY, out)
    return manifest


def _check_ids(ids: list[str]) -> None:
    if not ids:
        raise InputError("no ads to index", file="ads", got="0 rows", expected="at least one")
    seen: set[str] = set()
    for row, key in enumerate(ids):
        if key in seen:
            raise InputError("an id occurs twice", file="ads", column="ad_id", row=row, got=key,
                             expected="distinct ids")
        seen.add(key)


@dataclass(frozen=True)
class Index:
    """An opened index: read-only, safe to search from several threads.

    Args:
        ids: ad_id of each int64 id.
        transform: applied to every query before it meets the index.
        manifest: of the folder it came from.
    """

    ids: np.ndarray
    transform: CorpusTransform
    manifest: dict[str, Any]
    _faiss: Any

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """Open a built index.

        A FAISS file is code for its reader as much as data: checksums are verified before a byte of it is parsed.

        Raises:
            InputError: no index there, a file is missing, or a file is not the one that was built.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        files = ((manifest or {}).get("facts") or {}).get("files")
        if manifest is None or manifest.get("stage") != "index" or not isinstance(files, dict):
            raise InputError("not an index", file=folder, expected="a folder made by recsys index")
        for name in (_INDEX, _IDS, _TRANSFORM):
            got = sha256_file(folder / name)
            if got != files.get(name):
                raise InputError("the file is not the one that was built (damaged or tampered with)",
                                 file=folder / name, column="sha256", got=got, expected=str(files.get(name)))
        import faiss

        index = faiss.read_index(str(folder / _INDEX))
        table = open_parquet(folder / _IDS).read()
        ids = np.empty(table.num_rows, object)
        ids[table["id"].to_numpy()] = table["ad_id"].to_pylist()
        return cls(ids, CorpusTransform.load(folder / _TRANSFORM), manifest, index)

    def __len__(self) -> int:
        return int(self._faiss.ntotal)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` nearest ads of each query, nearest first.

        Args:
            queries: float [n, d], as the encoder gives them: centred and normalised here.
            k: at least 1; at most as many as there are ads are returned.

        Returns:
            ad_ids, object [n, k], and cosine scores, float32 [n, k], k cut to the number of ads.

        Raises:
            InputError: queries of another length, not finite, or k below 1.
        """
        if k < 1:
            raise InputError("too few neighbours asked for", column="k", got=k, expected="k >= 1")
        unit = self.transform.transform(np.asarray(queries))
        if not np.isfinite(unit).all():
            raise InputError("a query vector is not finite", row=int(np.argmin(np.isfinite(unit).all(axis=1))),
                             expected="finite numbers")
        scores, found = self._faiss.search(np.ascontiguousarray(unit, np.float32), min(k, len(self)))
        return self.ids[found], scores

    def vectors(self) -> np.ndarray:
        """The indexed vectors, float32 [N, dim], row i of id i."""
        return np.asarray(self._faiss.reconstruct_batch(np.arange(len(self), dtype=np.int64)), np.float32)


def recall_at_k(index: Index, queries: np.ndarray, k: int) -> float:
    """Share of the exact k nearest (found with numpy, not FAISS) that the index returns, over all queries.

    Ties with the k-th exact score count as found, so that duplicates do not look like misses.

    Args:
        index: an opened index.
        queries: float [n, d], n >= 1.
        k: neighbours.

    Returns:
        Recall in [0, 1].
    """
    k = min(k, len(index))
    found, _ = index.search(queries, k)
    exact = index.transform.transform(np.asarray(queries)) @ index.vectors().T
    rank = {ad: row for row, ad in enumerate(index.ids)}
    hits = 0
    for at, row in enumerate(exact):
        threshold = np.partition(row, -k)[-k] - 1e-5  # float32 sums in another order differ in the last digits
        hits += sum(row[rank[ad]] >= threshold for ad in set(found[at]))
    return hits / (k * len(exact))
