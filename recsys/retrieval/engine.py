"""FAISS behind one door: which index type for how many vectors, tuned to a recall, searched under a filter.

What FAISS does silently is decided here, once: search parameters always carry nprobe (a selector alone resets it to 1),
a refining index always re-ranks (a factor of 1 does nothing), ids are row numbers (an IDMap2 over a refining index
answers nothing under a selector), nothing is ever removed from an index (``remove_ids`` is a full pass, and graphs and
refining indexes refuse it), and a process forked after FAISS was used is refused (it would hang).
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from recsys.config import IndexConfig
from recsys.errors import InputError, RecsysError, Refused

SUBSET_BELOW = 0.05  # share of the vectors under which a filter is answered exactly on what it leaves
REFINE_FACTOR = 8  # candidates a refining index re-ranks, in multiples of k
TIE = 1e-5  # float32 sums in another order differ in the last digits; duplicates tie


def factory_for(n: int, dim: int, config: IndexConfig) -> str:
    """The FAISS factory string of the rung that ``n`` vectors of length ``dim`` stand on."""
    if config.factory is not None:
        return config.factory
    lists = 2 ** round(math.log2(4 * math.sqrt(n)))
    if n <= config.flat_up_to:
        return "Flat"
    if n <= config.ivf_up_to:
        return f"IVF{lists},SQ8"
    lists = min(4 * lists, 65_536)
    if n <= config.hnsw_up_to:
        return f"IVF{lists}_HNSW32,SQ8"
    return f"IVF{lists}_HNSW32,PQ{max(dim // 2, 1)}x4fs,Refine(SQ8)"


def bytes_per_vector(factory: str, dim: int) -> float:
    """Bytes that one more vector takes in an index of :func:`factory_for`, id included; centroids are left out.

    Raises:
        InputError: a factory string of another kind.
    """
    pq = re.search(r"PQ(\d+)x4fs", factory)
    if factory == "Flat":
        return 4.0 * dim
    if "SQ8" not in factory or (pq is None) != ("Refine" not in factory):
        raise InputError("an index whose size is not known", column="factory", got=factory,
                         expected="Flat, or IVF... with SQ8")
    return dim + 8.0 + (int(pq.group(1)) / 2 if pq else 0.0)


@dataclass(frozen=True)
class Allowed:
    """Which rows a search may return: bool [N]."""

    mask: np.ndarray

    @cached_property
    def rows(self) -> np.ndarray:
        """Allowed row numbers, int64, ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def bits(self) -> np.ndarray:
        """The mask as FAISS reads it, one bit a row."""
        return np.packbits(self.mask, bitorder="little")

    @cached_property
    def count(self) -> int:
        """How many rows are allowed."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Engine:
    """A FAISS index over unit vectors whose ids are row numbers, and the nprobe that reaches its recall.

    Read-only: any number of threads may search it at once.
    """

    index: Any
    nprobe: int = 1
    process: int = field(default_factory=os.getpid)

    @classmethod
    def build(cls, unit: np.ndarray, factory: str) -> Engine:
        """Train and fill an index.

        Args:
            unit: float32 [N, d], rows of length 1.
            factory: FAISS factory string.

        Raises:
            InputError: a factory string that FAISS refuses, or one whose index cannot be searched under a filter.
        """
        import faiss

        try:
            index = faiss.index_factory(unit.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise InputError("FAISS refuses the index factory", column="factory", got=factory,
                             expected=str(error).splitlines()[-1][-60:]) from None
        made = cls(index)
        if made.ivf is None and not isinstance(index, faiss.IndexFlat):
            raise InputError("an index type that loses answers under a filter", column="factory", got=factory,
                             expected="Flat, or IVF... (a graph only as its coarse quantiser)")
        if made.ivf is not None:
            lists = made.ivf.nlist
            made.ivf.cp.max_points_per_centroid, made.ivf.cp.min_points_per_centroid = 64, 1
            if len(unit) < lists:
                raise InputError("more lists than vectors", column="factory", got=factory,
                                 expected=f"at most {len(unit)} lists")
            if hasattr(faiss, "index_cpu_to_all_gpus") and faiss.get_num_gpus() > 0:  # k-means is most of the build
                made.ivf.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(unit.shape[1]))
            rows = np.random.default_rng(0).permutation(len(unit))[: 64 * max(lists, 256)]
            index.train(np.ascontiguousarray(unit[np.sort(rows)]))
        index.add(np.ascontiguousarray(unit))
        return cls(index)

    @property
    def n(self) -> int:
        """Vectors in the index."""
        return int(self.index.ntotal)

    @cached_property
    def ivf(self) -> Any:
        """The inverted lists inside the index, or None for a flat one."""
        import faiss

        return faiss.try_extract_index_ivf(self.index)

    @cached_property
    def reads(self) -> Any:
        """The index, able to give back single vectors."""
        if self.ivf is not None and self.ivf.direct_map.no():
            self.ivf.make_direct_map()
        return self.index

    def nearest(self, unit: np.ndarray, k: int, allowed: Allowed | None = None,
                nprobe: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows of each query, by inner product, nearest first.

        Under a filter that leaves less than SUBSET_BELOW, what it leaves is searched exactly; else the lists are
        probed ``nprobe / share`` deep, and a query that finds too few is answered exactly.

        Args:
            unit: float32 [q, d].
            k: at least 1; cut to how many rows are allowed.
            allowed: None for all.
            nprobe: instead of the tuned one.

        Returns:
            rows, int64 [q, k], and inner products, float32 [q, k].
        """
        if os.getpid() != self.process:
            raise RecsysError("the index was opened before this process was forked, and FAISS would hang here: start "
                              "workers with spawn, or open the index in each")
        unit = np.ascontiguousarray(unit, np.float32)
        count = self.n if allowed is None else allowed.count
        k = min(k, count)
        if k == 0 or len(unit) == 0:
            return np.empty((len(unit), k), np.int64), np.empty((len(unit), k), np.float32)
        if allowed is None or count == self.n:
            scores, rows = self.index.search(unit, k, params=self._params(nprobe or self.nprobe, None))
        elif count < SUBSET_BELOW * self.n:
            return self._exact(unit, k, allowed)
        else:
            deeper = math.ceil((nprobe or self.nprobe) * self.n / count)
            scores, rows = self.index.search(unit, k, params=self._params(deeper, allowed))
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            rows[short], scores[short] = self._exact(unit[short], k, allowed or Allowed(np.ones(self.n, bool)))
        return rows, scores

    def _exact(self, unit: np.ndarray, k: int, allowed: Allowed) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        scores, at = faiss.knn(unit, self.reads.reconstruct_batch(allowed.rows), k, metric=faiss.METRIC_INNER_PRODUCT)
        return allowed.rows[at], scores

    def _params(self, nprobe: int, allowed: Allowed | None) -> Any:
        import faiss as module

        faiss: Any = module  # its stubs do not know the keyword arguments of search parameters
        chosen: dict[str, Any] = {} if allowed is None else {"sel": faiss.IDSelectorBitmap(allowed.bits)}
        if self.ivf is None:
            return faiss.SearchParameters(**chosen) if chosen else None
        nprobe = min(nprobe, self.ivf.nlist)
        coarse = faiss.downcast_index(self.ivf.quantizer)
        if isinstance(coarse, faiss.IndexHNSW):
            chosen["quantizer_params"] = faiss.SearchParametersHNSW(efSearch=max(64, 2 * nprobe))
        params = (faiss.IVFPQSearchParameters if isinstance(self.ivf, faiss.IndexIVFPQ)
                  else faiss.SearchParametersIVF)(nprobe=nprobe, **chosen)
        if isinstance(self.index, faiss.IndexRefine):
            return faiss.IndexRefineSearchParameters(k_factor=REFINE_FACTOR, base_index_params=params)
        return params


def kth_best(unit: np.ndarray, queries: np.ndarray, k: int, allowed: Allowed | None = None) -> np.ndarray:
    """Inner product of each query with its exact ``k``-th nearest, float32 [q]; arguments as of :func:`recall`."""
    import faiss

    base = unit if allowed is None else unit[allowed.rows]
    exact, _ = faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(base), min(k, len(base)),
                         metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(exact[:, -1])


def recall(unit: np.ndarray, queries: np.ndarray, found: np.ndarray, k: int, allowed: Allowed | None = None,
           least: np.ndarray | None = None) -> np.ndarray:
    """Share of the exact ``k`` nearest that was found, per query: float64 [q].

    A row that ties with the k-th exact score counts as found, so that duplicates do not look like misses.

    Args:
        unit: float32 [N, d], the vectors as they were before any quantisation.
        queries: float32 [q, d].
        found: int64 [q, k], rows; -1 for none.
        k: neighbours.
        allowed: the filter under which they were searched.
        least: what :func:`kth_best` gives, where it is known already: it is a flat search of everything.
    """
    k = min(k, len(unit) if allowed is None else allowed.count)
    least = kth_best(unit, queries, k, allowed) if least is None else least
    hits = np.empty(len(queries))
    for at, row in enumerate(found):
        rows = np.unique(row[row >= 0])
        rows = rows if allowed is None else rows[allowed.mask[rows]]
        hits[at] = np.count_nonzero(unit[rows] @ queries[at] >= least[at] - TIE)
    return np.minimum(hits, k) / k


def tune(engine: Engine, unit: np.ndarray, config: IndexConfig, queries: np.ndarray | None = None
         ) -> tuple[Engine, dict[str, Any]]:
    """Choose the smallest nprobe that reaches the recall on a sample of the queries, and measure it on another.

    It must reach it by 1.645 standard errors, so that the held-out recall falls short one time in twenty, not in two.

    Args:
        engine: of ``unit``, float32 [N, d].
        config: recall, k, and how many queries.
        queries: float32 [q, d], unit vectors such as will be asked for; None: the corpus stands in for them.

    Returns:
        The engine with its nprobe, and {"k", "queries", "recall", "target", "nprobe"}, recall of the held-out sample.

    Raises:
        Refused: the index type cannot reach it however deep it probes.
    """
    asked = unit if queries is None else queries
    sample = np.random.default_rng(0).permutation(len(asked))[: 2 * config.queries]
    chosen, held = (asked[sample[: len(sample) // 2]], asked[sample[len(sample) // 2:]])
    k = min(config.k, engine.n)
    least = kth_best(unit, chosen, k) if engine.ivf is not None and len(chosen) else None

    def reached(nprobe: int) -> float:
        shares = recall(unit, chosen, engine.nearest(chosen, k, nprobe=nprobe)[0], k, least=least)
        return float(shares.mean() - 1.645 * shares.std() / math.sqrt(len(shares)))

    nprobe = 1
    if engine.ivf is not None and len(chosen):
        low, high = 0, 1
        while reached(high) < config.recall:
            if high >= engine.ivf.nlist:
                raise Refused(f"this index type reaches a recall of {reached(high):.4f} at most, not {config.recall}: "
                              "ask for less, or name a finer factory (IVF...,Flat)")
            low, high = high, min(2 * high, engine.ivf.nlist)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle) >= config.recall else (middle, high)
        nprobe = high
    tuned = Engine(engine.index, nprobe)
    got = float(recall(unit, held, tuned.nearest(held, k)[0], k).mean())
    return tuned, {"k": k, "queries": len(held), "recall": got, "target": config.recall, "nprobe": nprobe}
