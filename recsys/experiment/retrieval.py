"""The retrievers of an experiment: trained, indexed, measured; and what each would leave of a request's candidates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import ExperimentConfig, RetrieverConfig
from recsys.content.vectors import CorpusTransform
from recsys.contracts import IMPRESSIONS, read_parquet
from recsys.datasets import load_dataset_info
from recsys.errors import InputError
from recsys.evaluation.recall import click_recall
from recsys.experiment.content import content_of_arm, semantic_of_arm
from recsys.features.vocabulary import stable_hash
from recsys.log import log
from recsys.stage import write_json
from recsys.training.data import training_ad_ids

KS = (10, 50, 100)
_TUNING_USERS = 4096  # requests of the training part whose users the index is tuned on
_RANDOM_DIM = 16


class Vectors(Protocol):
    """Users and ads as vectors: a retriever's scores are their inner products."""

    def users(self, requests: pa.Table) -> np.ndarray:
        """float32 [n, D] of n requests."""

    @property
    def ads(self) -> np.ndarray:
        """float32 [N, D], in the order of ads.parquet."""


def folder_of(name: str, out: Path) -> Path:
    """Where a retriever lies in an experiment's folder."""
    return out / "retrievers" / name


def train_retriever(config: ExperimentConfig, name: str, out: Path) -> dict[str, Any]:
    """Train a retriever and index the ads by it, into ``out/retrievers/NAME/{model,index}``, and measure it.

    Args:
        config: the experiment.
        name: among its retrievers.
        out: its folder, already split, content and semantic ids already made.

    Returns:
        What is also written to ``out/retrievers/NAME/recall.json``; see :func:`measure`.
    """
    own, folder = config.retrievers[name], folder_of(name, out)
    if own.kind == "two_tower":
        from recsys.serving.two_tower import publish_ads
        from recsys.training.towers import train_towers

        train_towers(out / "split", own, folder / "model", seed=config.seed, content=content_of_arm(own, out),
                     semantic=semantic_of_arm(own, f"retriever.{name}", out), name=f"{config.name}/{name}")
        found = open_vectors(config, name, out)
        assert isinstance(found, TowerVectors)
        publish_ads(found.towers, read_parquet(out / "split" / "ads.parquet"), folder / "index", own.index,
                    found.users(_first_of_requests(read_parquet(out / "split" / "train.parquet"))[:_TUNING_USERS]))
    measured = measure(config, name, out)
    write_json(folder / "recall.json", measured)
    return measured


def measure(config: ExperimentConfig, name: str, out: Path) -> dict[str, Any]:
    """Recall of the test part's clicks among all ads, beside what needs no training, and of the index.

    Returns:
        {"clicks", "cold_clicks" (of ads without a click in the training part), "ads", "recall": {k: of all clicks},
        "cold_recall": {k: ...}, "popularity", "history" (where it reads content), "random": {"recall", "cold_recall"},
        "index": its recall against exact search, for users of the training part; two towers only}.
    """
    info = load_dataset_info(out / "split")
    test, ads = read_parquet(out / "split" / "test.parquet", IMPRESSIONS), read_parquet(out / "split" / "ads.parquet")
    label = info.label["click"]
    clicks = test.filter(pc.greater(test[str(label.column or label.successes)], 0))
    at = pc.index_in(clicks["ad_id"].cast(pa.string()), value_set=ads["ad_id"].combine_chunks().cast(pa.string()))
    clicked = pc.fill_null(at, -1).to_numpy().astype(np.int64)
    if (clicked < 0).any():
        raise InputError("a clicked ad is not among the ads", file=out / "split" / "ads.parquet", column="ad_id",
                         got=clicks["ad_id"][int(np.argmin(clicked))].as_py(), expected="every ad of the log")
    cold = _clicks_of_ads(out, ads)[clicked] == 0
    own = config.retrievers[name]
    others = {"popularity": RetrieverConfig(kind="popularity"), "random": RetrieverConfig(kind="random")}
    if own.encoders and info.sequence:
        others["history"] = RetrieverConfig(kind="history", content=own.content)

    def recalls(found: Vectors) -> dict[str, Any]:
        users = found.users(clicks)
        return {"recall": click_recall(users, found.ads, clicked, KS),
                "cold_recall": click_recall(users[cold], found.ads, clicked[cold], KS) if cold.any() else None}

    measured: dict[str, Any] = {"clicks": len(clicked), "cold_clicks": int(cold.sum()), "ads": ads.num_rows,
                                **recalls(open_vectors(config, name, out))}
    measured |= {n: recalls(_open(o, config, n, out)) for n, o in others.items() if o.kind != own.kind}
    if own.kind == "two_tower":
        from recsys.retrieval import served_manifest

        facts = served_manifest(folder_of(name, out) / "index")["facts"]
        measured["index"] = {"factory": facts["factory"], "dim": facts["dim"], **facts["recall"]}
    k = KS[0]
    log.info("%s: recall@%d of %s test clicks among %s ads %.4f (%s)", name, k, f"{len(clicked):,}",
             f"{ads.num_rows:,}", measured["recall"][k],
             ", ".join(f"{n} {measured[n]['recall'][k]:.4f}" for n in others if n in measured))
    return measured


def open_vectors(config: ExperimentConfig, name: str, out: Path) -> Vectors:
    """The users' and ads' vectors of a retriever that :func:`train_retriever` made."""
    return _open(config.retrievers[name], config, name, out)


def _open(own: RetrieverConfig, config: ExperimentConfig, name: str, out: Path) -> Vectors:
    ads = read_parquet(out / "split" / "ads.parquet")
    if own.kind == "two_tower":
        return TowerVectors(folder_of(name, out) / "model", ads)
    if own.kind == "popularity":
        return PopularityVectors(_clicks_of_ads(out, ads))
    if own.kind == "random":
        return RandomVectors(ads.num_rows, config.seed)
    info = load_dataset_info(out / "split")
    if not info.sequence:
        raise InputError("a data set without histories", file=out / "split" / "dataset.json", column="sequence",
                         got="none", expected="a list feature of ad ids, for a retriever of kind history")
    ids, vectors = content_of_arm(own, out)
    known = training_ad_ids(out / "split")
    transform = CorpusTransform.fit(vectors[[i for i, ad in enumerate(ids) if ad in known]], own.content_dim)
    return HistoryVectors(ids, transform.transform(vectors), info.sequence[0])


class TowerVectors:
    """Of two trained towers."""

    def __init__(self, model: Path, ads: pa.Table) -> None:
        from recsys.models.towers import load_towers

        self.towers, self._ads = load_towers(model), ads

    def users(self, requests: pa.Table) -> np.ndarray:
        """See :class:`Vectors`."""
        return self.towers.user_vectors(requests)

    @cached_property
    def ads(self) -> np.ndarray:
        """See :class:`Vectors`."""
        return self.towers.ad_vectors(self._ads)


@dataclass(frozen=True)
class HistoryVectors:
    """Content: an ad's own, and the mean of the user's history, ``column``; ``ids`` and ``ads`` row by row."""

    ids: list[str]
    ads: np.ndarray
    column: str

    def users(self, requests: pa.Table) -> np.ndarray:
        """See :class:`Vectors`."""
        lists = requests[self.column].combine_chunks()
        parent = pc.list_parent_indices(lists).to_numpy()
        rows = pc.fill_null(pc.index_in(pc.list_flatten(lists).cast(pa.string()), value_set=pa.array(self.ids)), -1)
        at = rows.to_numpy()
        sums = np.zeros((requests.num_rows, self.ads.shape[1]), np.float32)
        np.add.at(sums, parent[at >= 0], self.ads[at[at >= 0]])
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class PopularityVectors:
    """The same for everybody: clicks of the training part, float [N]."""

    clicks: np.ndarray

    def users(self, requests: pa.Table) -> np.ndarray:
        """See :class:`Vectors`."""
        return np.ones((requests.num_rows, 1), np.float32)

    @property
    def ads(self) -> np.ndarray:
        """See :class:`Vectors`."""
        return self.clicks.astype(np.float32)[:, None]


@dataclass(frozen=True)
class RandomVectors:
    """Of no meaning; a request's are always the same."""

    count: int
    seed: int

    def users(self, requests: pa.Table) -> np.ndarray:
        """See :class:`Vectors`."""
        ids, code = np.unique(stable_hash(requests["request_id"].combine_chunks().cast(pa.string())),
                              return_inverse=True)
        drawn = [np.random.default_rng([self.seed, i]).normal(size=_RANDOM_DIM) for i in ids.tolist()]
        return np.array(drawn, np.float32).reshape(-1, _RANDOM_DIM)[code]

    @property
    def ads(self) -> np.ndarray:
        """See :class:`Vectors`."""
        return np.random.default_rng(self.seed).normal(size=(self.count, _RANDOM_DIM)).astype(np.float32)


def _clicks_of_ads(out: Path, ads: pa.Table) -> np.ndarray:
    """Clicks of each ad in the training part, float64 [N]."""
    label = load_dataset_info(out / "split").label["click"]
    column = str(label.column or label.successes)
    train = read_parquet(out / "split" / "train.parquet", columns=["ad_id", column])
    at = pc.index_in(train["ad_id"].cast(pa.string()), value_set=ads["ad_id"].combine_chunks().cast(pa.string()))
    rows = pc.fill_null(at, ads.num_rows).to_numpy()
    clicks = pc.fill_null(train[column].cast(pa.float64()), 0.0).to_numpy()
    return np.bincount(rows, clicks, ads.num_rows + 1)[: ads.num_rows]


def _first_of_requests(table: pa.Table) -> pa.Table:
    """One row a request, in the order of the table."""
    codes = table["request_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    return table.take(pa.array(np.sort(np.unique(codes, return_index=True)[1])))


def retriever_usages(config: ExperimentConfig, name: str, out: Path
                     ) -> tuple[list[dict[str, Any]], list[tuple[str, Path, str]]]:
    """A retriever's measured work, as :func:`recsys.experiment.arms.arm_usages` books it.

    Returns:
        usage rows; and of what is kept between two refreshes: what it is, where, and of which model.
    """
    own, folder, model_id = config.retrievers[name], folder_of(name, out), f"{config.name}/{name}"
    usages: list[dict[str, Any]] = []
    kept = []
    for content in own.encoders:
        kept.append(("content", out / "content" / content, content))
        embedding = json.loads((out / "content" / content / "usage.json").read_text())
        usages.append({**embedding, "price_row": config.encoders[content].price})
    if own.kind == "two_tower":
        from recsys.retrieval import served_manifest

        kept += [("model", folder / "model", model_id), ("index", folder / "index", model_id)]
        trained = json.loads((folder / "model" / "metrics.json").read_text())["usage"]
        built = served_manifest(folder / "index")["facts"]
        usages += [{**trained, "model_id": model_id},
                   {"stage": "index", "seconds": built["seconds"], "device": "cpu", "model_id": model_id}]
    return usages, kept


@dataclass(frozen=True)
class Shortlist:
    """Keeps of each request's candidates the ``k`` that a retriever scores highest.

    The log could have shown any candidate of the request, and no other ad: among them, retrieval can be evaluated by
    the log. More are kept where a request has more than k slots.

    Args:
        vectors: of the retriever.
        ads: ad ids in the order of ``vectors.ads``.
        k: candidates kept.
    """

    vectors: Vectors
    ads: pa.Array
    k: int

    def keep(self, rows: pa.Table) -> pa.Table:
        """Of expanded candidates (one row per request, slot, candidate) those that are kept, in their order."""
        coded = rows["request_id"].combine_chunks().dictionary_encode()
        request = coded.indices.to_numpy().astype(np.int64)
        first = np.unique(request, return_index=True)[1]
        users = self.vectors.users(rows.take(pa.array(first)))
        ad = pc.index_in(rows["ad_id"].combine_chunks().cast(pa.string()), value_set=self.ads).to_numpy()
        slot = rows["slot"].to_numpy() if "slot" in rows.column_names else np.zeros(len(ad), np.int64)
        once = np.flatnonzero(slot == slot[first][request])  # a request's slots have one list of candidates
        scores = np.einsum("nd,nd->n", users[request[once]], self.vectors.ads[ad[once]])
        order = np.lexsort((ad[once], -scores, request[once]))
        of = request[once][order]
        starts = np.flatnonzero(np.append(True, of[1:] != of[:-1]))
        place = np.arange(len(of)) - np.repeat(starts, np.diff(np.append(starts, len(of))))
        lists = np.bincount(request) // np.maximum(np.bincount(request[once]), 1)
        best = once[order][place < np.maximum(self.k, lists[of])]
        key = request * len(self.ads) + ad
        return rows.filter(pa.array(np.isin(key, key[best])))


def shortlist_of(config: ExperimentConfig, arm: str, out: Path) -> Shortlist | None:
    """What an arm's retrieval leaves of the candidates; None for an arm without."""
    wanted = config.arms[arm].retrieval
    if wanted is None:
        return None
    ads = read_parquet(out / "split" / "ads.parquet")["ad_id"].combine_chunks().cast(pa.string())
    return Shortlist(open_vectors(config, wanted.retriever, out), ads, wanted.k)
