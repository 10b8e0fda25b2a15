from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import IndexConfig, RankingConfig, parse_model
from recsys.errors import InputError
from recsys.models.towers import load_towers
from recsys.retrieval.live import LiveIndex
from recsys.retrieval.retriever import Query
from recsys.serving.candidates import CandidateSource
from recsys.serving.counts import Counts
from recsys.serving.rank_requests import parse_rank
from recsys.serving.two_tower import TwoTowerRetriever, publish_ads
from recsys.training.towers import train_towers
from tests.training.test_towers import CONFIG
from tests.training.toy import toy_content, toy_split, toy_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("retriever")
    train_towers(toy_split(out / "split", 1500), CONFIG, out / "model", content=toy_content())
    ids = toy_content()[0]
    ads = pa.table({"ad_id": ids, "language": ["en" if i % 2 else "de" for i in range(len(ids))]})
    towers = load_towers(out / "model")
    publish_ads(towers, ads, out / "index", IndexConfig(k=5), towers.user_vectors(toy_table(100, 7)))
    return out


def _query(row: int = 0) -> Query:
    one = toy_table(20, 3).select(["user_id", "history", "price", "surface"]).to_pylist()[row]
    return Query(one.pop("user_id"), one, one.pop("surface"))


def test_the_best_ads_of_all_by_inner_product(folder: Path) -> None:
    retriever, table, ids = TwoTowerRetriever.load(folder), toy_table(20, 3), toy_content()[0]
    scores = retriever.towers.user_vectors(table) @ retriever.towers.ad_vectors(pa.table({"ad_id": ids})).T
    found, cosines = retriever.search(table, 5)
    np.testing.assert_array_equal(found, np.array(ids, object)[np.argsort(-scores, axis=1)[:, :5]])
    np.testing.assert_allclose(cosines, -np.sort(-scores, axis=1)[:, :5], rtol=1e-4)
    one = retriever.retrieve(_query(), 5)
    assert one.ad_ids == found[0].tolist()
    assert one.source == "two_tower"


def test_filters_and_somebody_unknown(folder: Path) -> None:
    retriever = TwoTowerRetriever.load(folder)
    found = retriever.retrieve(_query(), 8, "language=en").ad_ids
    assert len(found) == 8
    assert all(int(a.removeprefix("ad")) % 2 for a in found)
    assert retriever.retrieve(Query(None, {}, "feed"), 8).ad_ids == []
    assert len(retriever.retrieve(Query("nobody", {}, "feed"), 8).ad_ids) == 8


def test_a_new_ad_is_found_by_its_content(folder: Path) -> None:
    retriever = TwoTowerRetriever.load(folder)
    ids, vectors = toy_content()
    best = retriever.retrieve(_query(), 1).ad_ids[0]
    retriever.upsert(pa.table({"ad_id": ["new"], "language": ["en"]}), vectors[[ids.index(best)]])
    assert "new" in retriever.retrieve(_query(), 5).ad_ids


def test_an_index_of_other_towers_is_refused(folder: Path, tmp_path: Path) -> None:
    from recsys.content.vectors import ContentVectors
    from recsys.retrieval import build_index

    build_index(ContentVectors(["a", "b"], np.eye(2, 8, dtype=np.float32), {}), tmp_path / "index")
    with pytest.raises(InputError, match="made by another model"):
        TwoTowerRetriever(load_towers(folder / "model"), LiveIndex(tmp_path / "index"))


def test_the_ranking_service_takes_its_candidates_from_it(folder: Path, tmp_path: Path) -> None:
    ids = toy_content()[0]
    pq.write_table(pa.table({"ad_id": ids, "language": ["en" if i % 2 else "de" for i in range(len(ids))],
                             "bid": [1.0] * len(ids)}), tmp_path / "ads.parquet")
    made = CandidateSource(parse_model(RankingConfig, {
        "ads": tmp_path / "ads.parquet", "context": {"price": "number"}, "filters": ["language=en"],
        "retrieve": {"towers": folder}}, "test"), Counts())
    request = parse_rank({"surface": "feed", "k": 1, "user_id": "nobody", "context": {"price": 1.0}},
                         {"price": "number"}, 3)
    rows, source, _ = made.candidates(made.inventory.ads, request, made.side(request)[0], 8)
    found = TwoTowerRetriever.load(folder).retrieve(Query("nobody", {"price": 1.0}, "feed"), 8, "language=en")
    assert source == "two_tower"
    assert sorted(ids[row] for row in rows) == sorted(found.ad_ids)
