"""Nearest ads by content: a FAISS index over centred, unit vectors, tuned to a recall, with versions and filters.

    build_index("work/content/minilm", "work/index", ads, config=IndexConfig(recall=0.95))
    index = Index.open("work/index")
    ad_ids, scores = index.search(encoder.encode(["a query"]).vectors, k=10, where="surface=feed")

FAISS starts threads on first use and hangs in a process forked after that: start workers with ``spawn``, or open the
index after the fork. A forked search is refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import IndexConfig
from recsys.content.vectors import ContentVectors, CorpusTransform, for_ads, load_vectors
from recsys.contracts import open_parquet
from recsys.errors import InputError
from recsys.log import log
from recsys.retrieval.engine import Allowed, Engine, factory_for, tune
from recsys.retrieval.filters import Where, rows_where
from recsys.retrieval.versions import current, publish
from recsys.stage import Stage, read_manifest, sha256_bytes, sha256_file

_INDEX, _ADS, _TRANSFORM, _VECTORS = "index.faiss", "ads.parquet", "transform.safetensors", "vectors.npy"
_NOT_FILTERED = ("title", "body", "content_hash", "image_id", "landing")
_CACHED_FILTERS = 16


def build_index(store: str | Path | ContentVectors, out: str | Path, ads: pa.Table | None = None,
                transform: CorpusTransform | None = None, config: IndexConfig | None = None) -> dict[str, Any]:
    """Index content vectors for inner-product search on centred, unit-length vectors (their cosine).

    The result is a new version in ``out``, published when it is whole; the version before it is kept. The same input
    again does nothing.

    Args:
        store: a content store's folder, or vectors in memory.
        out: the index: ``CURRENT.json`` and version folders of index.faiss, ads.parquet (``ad_id`` and the columns to
            filter on; row i is id i), transform.safetensors, vectors.npy (float32 [N, dim], read by compaction only)
            and manifest.json with the SHA-256 of each, written last.
        ads: what search finds (``ad_id``, ``content_hash``, scalar columns to filter on); None: the content hashes
            themselves are the ids.
        transform: fitted on training ads; None: fitted here on all distinct vectors, without projection.
        config: recall target and sizes of the ladder.

    Returns:
        The manifest; ``facts`` holds factory, nprobe, dim, n, files, seconds, ``recall`` (k, queries, recall on a
        held-out sample of the corpus against exact search, target) and, for a store's folder, its encoder.

    Raises:
        InputError: an ad without a vector, two rows with one ad_id, or a factory that FAISS refuses.
        Refused: the index type cannot reach the recall.
    """
    vectors = store if isinstance(store, ContentVectors) else load_vectors(store)
    ids, matrix = (vectors.hashes, vectors.matrix) if ads is None else for_ads(vectors, ads)
    made = None if isinstance(store, ContentVectors) else (read_manifest(store) or {}).get("facts", {})
    encoder = {"encoder": made["encoder"]} if made and "encoder" in made else {}
    fitted = transform or CorpusTransform.fit(vectors.matrix)
    if fitted.normalisation != "l2":
        raise InputError("inner products are cosines of unit-length vectors only", column="normalisation",
                         got=fitted.normalisation, expected="a transform with l2")
    table = pa.table({"ad_id": pa.array(ids, pa.string())}) if ads is None else filter_columns(ads)
    return write_index(out, table, fitted.transform(matrix), fitted, {**vectors.identity, **encoder},
                       config or IndexConfig())


def filter_columns(ads: pa.Table) -> pa.Table:
    """``ad_id``, and the scalar columns of an ads table that are no texts: what an index can filter on."""
    names = [n for n in ads.column_names if n != "ad_id" and n not in _NOT_FILTERED
             and not pa.types.is_nested(ads[n].type)]
    return pa.table({"ad_id": ads["ad_id"].cast(pa.string()), **{n: ads[n] for n in names}})


def write_index(out: str | Path, ads: pa.Table, unit: np.ndarray, transform: CorpusTransform, origin: dict[str, Any],
                config: IndexConfig, queries: np.ndarray | None = None) -> dict[str, Any]:
    """Publish a version of vectors that are transformed already; row i of ``ads`` belongs to row i of ``unit``.

    Args:
        out, config: as of :func:`build_index`.
        ads: ``ad_id`` and the columns to filter on.
        unit: float32 [N, dim], of length 1.
        transform: of the queries that will come.
        origin: what made the vectors.
        queries: float32 [q, dim], unit vectors such as will be asked for, to tune on; None: a sample of ``unit``.
    """
    check_ids(ads["ad_id"].to_pylist())
    unit = np.ascontiguousarray(unit, np.float32)
    factory = factory_for(len(unit), unit.shape[1], config)
    started = time.perf_counter()

    def build(stage: Stage) -> None:
        import faiss

        engine = Engine.build(unit, factory)
        trained = time.perf_counter()
        engine, reached = tune(engine, unit, config, queries)
        faiss.write_index(engine.index, str(stage.path(_INDEX)))
        pq.write_table(ads, stage.path(_ADS))
        transform.save(stage.path(_TRANSFORM))
        np.save(stage.path(_VECTORS), unit)
        files = {name: sha256_file(stage.path(name)) for name in (_INDEX, _ADS, _TRANSFORM, _VECTORS)}
        stage.rows = {"ads": len(unit)}
        stage.facts = {"factory": factory, "metric": "inner_product", "dim": unit.shape[1], "n": len(unit),
                       "nprobe": engine.nprobe, "recall": reached, "config": config.model_dump(), "origin": origin,
                       "files": files, **origin, "build_seconds": trained - started,
                       "seconds": time.perf_counter() - started}

    tensors = b"".join(np.ascontiguousarray(a).tobytes() for a in transform.tensors().values())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ads.schema) as writer:
        writer.write_table(ads.combine_chunks())
    identity = {"factory": factory, "index": config.model_dump(), **origin, "ads": sha256_bytes(sink.getvalue()),
                "vectors": sha256_bytes(unit.tobytes()),
                **({} if queries is None else {"queries": sha256_bytes(np.ascontiguousarray(queries).tobytes())}),
                "transform": sha256_bytes(tensors)}
    manifest = publish(Path(out), identity, build)
    if not manifest["cached"]:
        log.info("index: %d ads, %s, nprobe %d, recall@%d %.4f (%s)", len(unit), factory, manifest["facts"]["nprobe"],
                 manifest["facts"]["recall"]["k"], manifest["facts"]["recall"]["recall"], out)
    return manifest


def check_ids(ids: list[str]) -> None:
    """Refuse no ids at all, and an id that occurs twice."""
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
    """An opened version of an index: read-only, safe to search from several threads.

    Args:
        ads: ``ad_id`` and the columns to filter on; row i is id i.
        transform: applied to every query before it meets the index.
        manifest: of the version's folder.
        folder: the version's folder.
        engine: the FAISS index and its nprobe.
    """

    ads: pa.Table
    transform: CorpusTransform
    manifest: dict[str, Any]
    folder: Path
    engine: Engine
    _filters: dict[str, Allowed] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """Open the current version of an index.

        A FAISS file is code for its reader as much as data: checksums are verified before a byte of it is parsed.

        Raises:
            InputError: no index there, a file is missing, or a file is not the one that was built.
        """
        folder = Path(folder)
        while True:
            served = current(folder)
            if served is None:
                raise InputError("not an index", file=folder, expected="a folder made by recsys index")
            try:
                return cls._open(folder / served["version"], served["manifests"][served["version"]])
            except (InputError, OSError, RuntimeError):
                if current(folder) == served:
                    raise  # else two versions were published meanwhile and this one was cleared away: open the new one

    @classmethod
    def _open(cls, version: Path, expected: str) -> Index:
        _verify(version / "manifest.json", expected)
        manifest = read_manifest(version) or {}
        for name in (_INDEX, _ADS, _TRANSFORM):
            _verify(version / name, manifest["facts"]["files"][name])
        import faiss

        engine = Engine(faiss.read_index(str(version / _INDEX)), manifest["facts"]["nprobe"])
        _ = engine.reads  # made here, not under the first filter: a search must not change what others are searching
        ads = open_parquet(version / _ADS).read().combine_chunks()
        pa.default_memory_pool().release_unused()  # what reading took: 20 bytes an ad that nothing would use again
        return cls(ads, CorpusTransform.load(version / _TRANSFORM), manifest, version, engine)

    def __len__(self) -> int:
        return self.engine.n

    def unit(self, queries: np.ndarray) -> np.ndarray:
        """Queries as the index compares them: centred, unit length, float32 [n, dim].

        Raises:
            InputError: of another length, or not finite.
        """
        unit = self.transform.transform(np.asarray(queries))
        if not np.isfinite(unit).all():
            raise InputError("a query vector is not finite", row=int(np.argmin(np.isfinite(unit).all(axis=1))),
                             expected="finite numbers")
        return unit

    def allowed(self, where: Where) -> Allowed | None:
        """The ads that pass a filter (recsys.retrieval.filters); the latest filters are remembered."""
        if where is None:
            return None
        key = str(where)
        if (found := self._filters.get(key)) is None:
            if len(self._filters) >= _CACHED_FILTERS:
                self._filters.clear()
            found = self._filters[key] = Allowed(rows_where(self.ads, where))
        return found

    def search(self, queries: np.ndarray, k: int, where: Where = None) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` nearest ads of each query, nearest first.

        Args:
            queries: float [n, d], as the encoder gives them: centred and normalised here.
            k: at least 1; at most as many as there are ads that pass the filter are returned.
            where: ``surface=feed``, a dict or a pyarrow.compute expression over the ads' columns.

        Returns:
            ad_ids, object [n, k], and cosine scores, float32 [n, k], k cut to the number of ads.

        Raises:
            InputError: queries of another length, not finite, k below 1, or a filter that does not fit the columns.
        """
        check_k(k)
        rows, scores = self.engine.nearest(self.unit(queries), k, self.allowed(where))
        return self.names(rows), scores

    def names(self, rows: np.ndarray) -> np.ndarray:
        """ad_ids of rows, object array of the same shape."""
        return self.ads["ad_id"].take(pa.array(rows.ravel())).to_numpy(zero_copy_only=False).reshape(rows.shape)

    def vectors(self) -> np.ndarray:
        """The vectors as they were before any quantisation, float32 [N, dim], mapped from disk."""
        _verify(self.folder / _VECTORS, self.manifest["facts"]["files"][_VECTORS])
        return np.asarray(np.load(self.folder / _VECTORS, mmap_mode="r", allow_pickle=False))


def check_k(k: int) -> None:
    """Refuse k below 1."""
    if k < 1:
        raise InputError("too few neighbours asked for", column="k", got=k, expected="k >= 1")


def _verify(path: Path, expected: str) -> None:
    got = sha256_file(path)
    if got != expected:
        raise InputError("the file is not the one that was built (damaged or tampered with)", file=path,
                         column="sha256", got=got, expected=expected)
