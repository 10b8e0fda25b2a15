"""Candidates near to a user's history, and the fall back to all ads."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import EncoderConfig, IndexConfig, RankingConfig, parse_model
from recsys.content import embed_texts
from recsys.errors import InputError
from recsys.retrieval import build_index
from recsys.serving.candidates import CandidateSource
from recsys.serving.counts import Counts
from recsys.serving.rank_requests import parse_rank

WORDS = {"run": "trail running shoes for mountain paths", "bake": "bread oven with stone plate for baking",
         "song": "guitar lessons with songs for beginners"}
N = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("ads")
    kinds = [list(WORDS)[i % 3] for i in range(N)]
    ads = pa.table({
        "ad_id": [f"a{i}" for i in range(N)], "title": [f"{WORDS[k]} number {i}" for i, k in enumerate(kinds)],
        "body": [""] * N, "kind": kinds, "bid": [1.0 + 0.01 * i for i in range(N)], "open": [i != 3 for i in range(N)]})
    from recsys.datasets.text import content_hashes

    ads = ads.append_column("content_hash", content_hashes(ads["title"], ads["body"]))
    pq.write_table(ads, at / "ads.parquet")
    pq.write_table(pa.table({"user_id": ["runner", "new"], "history": [["a0", "a3"], []]}), at / "users.parquet")
    embed_texts(ads, EncoderConfig(kind="hashed", dim=256), at / "content")
    build_index(at / "content", at / "index", ads, config=IndexConfig(factory="Flat", k=5))
    return at


def source(folder: Path, **more) -> CandidateSource:
    return CandidateSource(parse_model(RankingConfig, {
        "ads": folder / "ads.parquet", "users": {"parquet": folder / "users.parquet"}, "filters": ["open=true"],
        "retrieve": {"index": folder / "index", "content": folder / "content"}, **more}, "test"), Counts())


def ask(made: CandidateSource, user: str, k: int = 8, **more):
    request = parse_rank({"surface": "feed", "k": 1, "user_id": user, **more}, {}, 3)
    rows, name, scores = made.candidates(made.inventory.ads, request, made.side(request)[0], k)
    return made.inventory.ads.table.take(pa.array(rows)), name, scores


def test_near_to_the_history_within_the_filters(folder):
    made = source(folder)
    table, name, scores = ask(made, "runner")
    assert name == "history"
    assert set(table["kind"].to_pylist()) == {"run"}
    assert "a3" not in table["ad_id"].to_pylist()
    assert len(scores) == 8
    other, _, _ = ask(made, "runner", where=["kind=bake"])
    assert set(other["kind"].to_pylist()) == {"bake"}


def test_all_ads_by_bid_for_a_user_without_a_history(folder):
    made = source(folder)
    table, name, scores = ask(made, "new")
    assert name == "all"
    assert table["ad_id"].to_pylist() == [f"a{i}" for i in range(22, 30)]
    assert scores.tolist() == table["bid"].to_pylist()
    assert made._counts["retrieved_nothing"] == 1


def test_a_new_version_of_the_ads_is_served_and_a_damaged_one_is_not(folder, tmp_path):
    ads = pq.read_table(folder / "ads.parquet")
    pq.write_table(ads, tmp_path / "ads.parquet")
    made = source(folder, ads=tmp_path / "ads.parquet", ads_poll_seconds=0.01)
    ending = threading.Event()
    watcher = threading.Thread(target=made.watch, args=(ending,))
    watcher.start()

    def publish(write) -> None:
        write(tmp_path / ".new")
        (tmp_path / ".new").replace(tmp_path / "ads.parquet")

    def until(name: str) -> None:
        for _ in range(2000):
            if made._counts[name]:
                return
            threading.Event().wait(0.01)
        raise AssertionError(name)

    try:
        publish(lambda path: pq.write_table(ads.slice(0, 5), path))
        until("ads_read")
        assert len(made.inventory.ads) == 5
        publish(lambda path: path.write_bytes(b"PAR1"))
        until("ads_refused")
        assert len(made.inventory.ads) == 5
    finally:
        ending.set()
        watcher.join()


def test_index_and_content_belong_together(folder):
    with pytest.raises(InputError, match="index and content belong together"):
        source(folder, retrieve={"index": folder / "index"})
