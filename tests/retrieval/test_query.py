"""Search by text: the encoder that made the index encodes the query, too."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from recsys.config import EncoderConfig
from recsys.content import embed_texts, load_vectors
from recsys.datasets.text import content_hash
from recsys.errors import InputError
from recsys.retrieval import build_index, search_text

TITLES = ["Trail running shoes", "Cast iron skillet", "Noise cancelling headphones", "Trail running socks",
          "Retirement savings plan"]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    ads = pa.table({"ad_id": [f"a{i}" for i in range(len(TITLES))], "title": TITLES,
                    "content_hash": [content_hash(t) for t in TITLES]})
    embed_texts(ads, EncoderConfig(kind="hashed", dim=512), tmp_path / "store")
    build_index(tmp_path / "store", tmp_path / "index", ads)
    return tmp_path / "store", tmp_path / "index"


def test_an_ads_own_title_finds_it_first_and_its_likes_next(folders: tuple[Path, Path]):
    found = search_text(folders[1], "Trail running shoes", 2)
    assert [r["ad_id"] for r in found] == ["a0", "a3"]
    assert found[0]["score"] > found[1]["score"]


def test_a_filter_narrows_what_is_found(folders: tuple[Path, Path]):
    assert search_text(folders[1], "Trail running shoes", 2, "ad_id!=a0")[0]["ad_id"] == "a3"
    found = search_text(folders[1], "Trail running shoes", 9, ["ad_id=a1,a2", "ad_id!=a2"])
    assert [r["ad_id"] for r in found] == ["a1"]


def test_an_index_of_bare_vectors_cannot_be_searched_by_text(folders: tuple[Path, Path], tmp_path: Path):
    build_index(load_vectors(folders[0]), tmp_path / "bare")
    with pytest.raises(InputError, match="which encoder"):
        search_text(tmp_path / "bare", "shoes", 1)
