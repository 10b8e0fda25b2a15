from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import IndexConfig
from recsys.content import ContentVectors
from recsys.retrieval import LiveIndex, build_index
from recsys.retrieval.retriever import HistoryRetriever, Query

N = 60
RNG = np.random.default_rng(5)
# Three well separated topics away from the origin, so that centring matters.
CENTRES = 3.0 * np.eye(3, 12) + 2.0
MATRIX = (CENTRES[np.arange(N) % 3] + 0.3 * RNG.normal(size=(N, 12))).astype(np.float32)
ADS = pa.table({"ad_id": [f"a{i}" for i in range(N)], "content_hash": [f"h{i}" for i in range(N)],
                "surface": ["feed" if i % 2 else "discovery" for i in range(N)]})


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index(ContentVectors([f"h{i}" for i in range(N)], MATRIX, {}), folder, ADS,
                config=IndexConfig(factory="Flat", k=5))
    return HistoryRetriever(LiveIndex(folder), (ADS["ad_id"].to_pylist(), MATRIX), length=3)


def test_what_is_near_to_the_latest_of_the_history(retriever):
    # The old history is of topic 1; only the latest three, of topic 2, count.
    found = retriever.retrieve(Query("u", {"history": ["a1", "a4", "a7", "a2", "a5", "a8"]}), 15)
    assert {int(ad[1:]) % 3 for ad in found.ad_ids} == {2}
    assert len(set(found.ad_ids)) == 15
    assert (np.diff(found.scores) <= 0).all()
    mean, centred = MATRIX[[2, 5, 8]].mean(axis=0) - MATRIX.mean(axis=0), MATRIX - MATRIX.mean(axis=0)
    cosine = centred @ mean / np.linalg.norm(centred, axis=1) / np.linalg.norm(mean)
    assert found.ad_ids == [f"a{i}" for i in np.argsort(-cosine)[:15]]
    np.testing.assert_allclose(found.scores, np.sort(cosine)[::-1][:15], rtol=1e-5)


def test_the_filter_holds_and_unknown_ads_are_passed_over(retriever):
    found = retriever.retrieve(Query("u", {"history": ["gone", "a0"]}), N, "surface=feed")
    assert sorted(found.ad_ids) == sorted(ADS.filter(pa.compute.equal(ADS["surface"], "feed"))["ad_id"].to_pylist())


@pytest.mark.parametrize("features", [{}, {"history": None}, {"history": []}, {"history": ["gone"]}])
def test_nothing_for_a_user_without_a_history(retriever, features):
    assert retriever.retrieve(Query(None, features), 5).ad_ids == []
