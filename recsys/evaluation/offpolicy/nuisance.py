"""Cross-fitted outcome models: what is a shown ad expected to earn in its context?

A row is never predicted by a model that saw its unit: folds are cut by a hash of the unit. Models are scikit-learn's;
features are columns of the log, the ad's id and the slot.

References:
    Chernozhukov et al. (2018). Double/debiased machine learning. The Econometrics Journal 21(1).
    Farajtabar, Chow, Ghavamzadeh (2018). More robust doubly robust off-policy evaluation. ICML.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.contracts import IMPRESSIONS
from recsys.errors import InputError
from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy.stream import column_hash

Kind = Literal["logistic", "boosting"]
CATEGORIES = 254  # kept per column, by count; the rest are one category (255 is what boosting allows)
LEAF_CLICKS = 10.0  # a leaf of a tree is as large as to expect this many
CHUNK = 500_000
TRAIN_ROWS = 400_000
_KNOWN = {c.name for c in IMPRESSIONS.columns} | {"propensity_source"}


def context_columns(schema: pa.Schema) -> list[str]:
    """The log's own feature columns: those outside the contract that are strings, booleans or numbers."""
    return [f.name for f in schema if f.name not in _KNOWN and _usable(f.type)]


def _usable(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind)
                or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_dictionary(kind))


def folds_of(unit: pa.ChunkedArray, folds: int) -> NDArray[np.int64]:
    """Fold of each row, 0..folds-1, by its unit; other bits than those that cut files and make buckets."""
    return ((column_hash(unit) >> np.uint64(40)) % np.uint64(folds)).astype(np.int64)


@dataclass(frozen=True)
class _Column:
    """One feature: categories (codes 1.., 0 is any other) or a number (standardised, missing is the mean)."""

    name: str
    categories: pa.Array | None
    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def learn(cls, name: str, column: pa.ChunkedArray) -> _Column:
        if pa.types.is_floating(column.type):
            x = pc.drop_null(column).to_numpy()
            x = x[np.isfinite(x)]
            return cls(name, None, float(x.mean()) if len(x) else 0.0, float(x.std()) or 1.0 if len(x) else 1.0)
        counts = pc.value_counts(column.cast(pa.string()).combine_chunks())
        order = pc.sort_indices(counts.field(1), sort_keys=[("", "descending")])
        kept = counts.field(0).take(order.slice(0, CATEGORIES + 1))
        return cls(name, pc.drop_null(kept).slice(0, CATEGORIES))

    def values(self, column: pa.ChunkedArray) -> Floats:
        """float64[n]: the code or the standardised number."""
        if self.categories is not None:
            at = pc.index_in(column.cast(pa.string()), value_set=self.categories)
            made: Floats = pc.add(pc.fill_null(at, -1), 1).to_numpy().astype(np.float64)
            return made
        x = pc.fill_null(column.cast(pa.float64()), self.mean).to_numpy()
        return np.nan_to_num((x - self.mean) / self.scale, nan=0.0, posinf=0.0, neginf=0.0)

    @property
    def width(self) -> int:
        return 1 if self.categories is None else len(self.categories) + 1


class _Logistic:
    """Ridge logistic regression on one-hot codes; scores add up per feature, so predicting is a few look-ups."""

    def __init__(self, columns: list[_Column], seed: int) -> None:
        from sklearn.linear_model import LogisticRegression

        self.columns, self.model = columns, LogisticRegression(C=1.0, max_iter=1000, random_state=seed)

    def fit(self, x: Floats, y: Floats, weight: Floats | None) -> None:
        from scipy.sparse import csr_matrix

        n, k = x.shape
        start = np.cumsum([0] + [c.width for c in self.columns])
        coded = np.array([c.categories is not None for c in self.columns])
        index = (start[:-1] + np.where(coded, x, 0.0)).astype(np.int64)
        self.model.fit(csr_matrix((np.where(coded, 1.0, x).ravel(), index.ravel(), np.arange(n + 1) * k),
                                  shape=(n, int(start[-1]))), y, weight)
        self.parts = np.split(self.model.coef_[0], start[1:-1])

    def predict(self, x: Floats) -> Floats:
        score = np.full(len(x), float(self.model.intercept_[0]))
        for at, (column, part) in enumerate(zip(self.columns, self.parts, strict=True)):
            score += x[:, at] * part[0] if column.categories is None else part[x[:, at].astype(np.int64)]
        return 1.0 / (1.0 + np.exp(-score))


class _Boosting:
    """Histogram gradient boosting; scikit-learn's defaults, but for a fixed number of trees and larger leaves.

    Clicks are rare: a leaf of the default 20 rows has none, and a hundred such trees predict almost none anywhere.
    """

    def __init__(self, columns: list[_Column], seed: int) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        coded = [c.categories is not None for c in columns]
        self.model = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=seed,
                                                    categorical_features=coded)

    def fit(self, x: Floats, y: Floats, weight: Floats | None) -> None:
        leaf = int(np.clip(LEAF_CLICKS / y.mean(), 20, max(20, len(y) // 4)))
        self.model.set_params(min_samples_leaf=leaf).fit(x, y, weight)

    def predict(self, x: Floats) -> Floats:
        made: Floats = self.model.predict_proba(x)[:, 1]
        return made


class _Constant:
    """The (weighted) click rate: where a fold has clicks only, or none."""

    def fit(self, x: Floats, y: Floats, weight: Floats | None) -> None:
        self.rate = float(np.average(y, weights=weight)) if len(y) and (weight is None or weight.sum() > 0) else 0.0

    def predict(self, x: Floats) -> Floats:
        return np.full(len(x), self.rate)


class Nuisance:
    """One model per fold, fitted on the other folds.

    Args:
        kind: ``logistic`` or ``boosting``.
        names: context columns of the log.
        folds: number of folds.
        seed: of the models.
    """

    def __init__(self, kind: Kind, names: list[str], folds: int = 3, seed: int = 0) -> None:
        self.kind, self.names, self.folds, self.seed = kind, names, folds, seed

    def fit(self, log: pa.Table, fold: NDArray[np.int64], weight: Floats | None = None) -> Nuisance:
        """Fit on log rows with ``click``, ``ad_id``, the context columns and (where there is one) ``slot``.

        Args:
            log: n rows.
            fold: int64[n].
            weight: float64[n] importance of the rows in the fit (MRDR), or None.
        """
        for name in self.names:
            if name not in log.column_names:
                raise InputError("missing column", file="log", column=name, got=sorted(log.column_names),
                                 expected="a feature of the outcome model")
        self.columns = [_Column.learn(n, log.column(n)) for n in (*self.names, "ad_id")]
        self.columns.append(_Column.learn("slot", _slot(log)))
        x = np.stack([c.values(log.column(c.name)) for c in self.columns[:-1]] +
                     [self.columns[-1].values(_slot(log))], axis=1)
        y = log.column("click").to_numpy().astype(np.float64)
        self.models = [self._fit_one(x, y, weight, np.flatnonzero(fold != f)) for f in range(self.folds)]
        return self

    def _fit_one(self, x: Floats, y: Floats, weight: Floats | None, rows: NDArray[np.int64]) -> Any:
        if weight is not None:
            rows = rows[weight[rows] > 0]
        chosen = None if weight is None else weight[rows] / max(float(weight[rows].mean()), 1e-300)
        both = 0 < y[rows].sum() < len(rows)
        model: Any = _Constant() if not both else (_Logistic if self.kind == "logistic" else _Boosting)(
            self.columns, self.seed)
        model.fit(x[rows], y[rows], chosen)
        return model

    def predict(self, log: pa.Table, policy: pa.Table, fold: NDArray[np.int64]) -> Floats:
        """Expected click of every policy row, float64[m]; rows of requests that the log does not have get 0.

        The context is that of the request's first log row, the slot and the ad are the policy row's own.
        """
        requests = log.column("request_id").combine_chunks()
        distinct = pc.unique(requests)
        first = np.full(len(distinct), -1, dtype=np.int64)
        first[pc.index_in(requests, value_set=distinct).to_numpy()[::-1]] = np.arange(len(requests))[::-1]
        at = pc.fill_null(pc.index_in(policy.column("request_id"), value_set=distinct), -1).to_numpy()
        context = np.stack([c.values(log.column(c.name)) for c in self.columns[:-2]] or
                           [np.zeros(log.num_rows)], axis=1)[:, :len(self.columns) - 2]
        out = np.zeros(policy.num_rows)
        for start in range(0, policy.num_rows, CHUNK):
            part = policy.slice(start, CHUNK)
            row = np.where(at[start:start + CHUNK] >= 0, first[at[start:start + CHUNK]], 0)
            x = np.column_stack([context[row], self.columns[-2].values(part.column("ad_id")),
                                 self.columns[-1].values(_slot(part))])
            for f, model in enumerate(self.models):
                mine = np.flatnonzero((fold[row] == f) & (at[start:start + CHUNK] >= 0))
                if len(mine):
                    out[start + mine] = model.predict(x[mine])
        return out


def _slot(table: pa.Table) -> pa.ChunkedArray:
    if "slot" in table.column_names:
        return table.column("slot").cast(pa.string())
    return pa.chunked_array([pa.array(["0"] * table.num_rows, pa.string())])


def embedding_clusters(ads: pa.Array, vectors: Floats, clusters: int, seed: int = 0) -> pa.Table:
    """Clusters of ads with near content, for MIPS: a table of ``ad_id`` and ``cluster``.

    Args:
        ads: n ad ids.
        vectors: float[n, d] content vectors; compared by cosine.
        clusters: how many.
        seed: of k-means.
    """
    from sklearn.cluster import MiniBatchKMeans

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    code = MiniBatchKMeans(clusters, random_state=seed, n_init=3).fit_predict(unit.astype(np.float32))
    return pa.table({"ad_id": ads, "cluster": pa.array(code.astype(np.int64))})
