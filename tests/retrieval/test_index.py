from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import EncoderConfig
from recsys.content import ContentVectors, CorpusTransform, embed_texts, make_encoder
from recsys.errors import InputError
from recsys.retrieval import Index, build_index
from recsys.retrieval.versions import current

rng = np.random.default_rng(0)
MATRIX = (rng.normal(size=(300, 24)) + 2).astype(np.float32)
VECTORS = ContentVectors([f"h{i}" for i in range(300)], MATRIX, {"model_id": "m"})
ADS = pa.table({"ad_id": [f"ad-{i}" for i in range(400)], "content_hash": [f"h{i % 300}" for i in range(400)]})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval") / "index"
    build_index(VECTORS, folder, ADS)
    return folder


def test_search_is_exact_cosine_after_centring(built):
    index = Index.open(built)
    queries = (rng.normal(size=(20, 24)) + 2).astype(np.float32)
    ids, scores = index.search(queries, 7)
    assert ids.shape == scores.shape == (20, 7)
    assert scores.dtype == np.float32
    centre = VECTORS.matrix.astype(np.float64).mean(0)
    base = VECTORS.matrix[np.arange(400) % 300] - centre
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    exact = unit(queries - centre) @ unit(base).T
    assert np.allclose(scores, -np.sort(-exact, axis=1)[:, :7], atol=1e-5)
    rows = np.array([[int(ad.removeprefix("ad-")) for ad in row] for row in ids])
    assert np.allclose(np.take_along_axis(exact, rows, 1), scores, atol=1e-5)
    assert index.manifest["facts"]["recall"]["recall"] == 1.0


def test_an_ad_finds_itself_and_its_duplicate(built):
    ids, scores = Index.open(built).search(VECTORS.matrix[[5, 250]], 2)
    assert set(ids[0]) == {"ad-5", "ad-305"}
    assert ids[1, 0] == "ad-250"
    assert np.allclose(scores[0], 1, atol=1e-5)


def test_k_is_cut_to_what_there_is_and_edges(built):
    index = Index.open(built)
    assert index.search(VECTORS.matrix[:1], 10_000)[0].shape == (1, 400)
    assert index.search(VECTORS.matrix[:0], 3)[0].shape == (0, 3)
    assert np.isfinite(index.search(index.transform.mean[None], 3)[1]).all()
    for queries, k, word in ((VECTORS.matrix[:1], 0, "k >= 1"), (VECTORS.matrix[:1, :5], 1, "another length"),
                             (np.full((1, 24), np.nan), 1, "not finite")):
        with pytest.raises(InputError, match=word):
            index.search(queries, k)


@pytest.mark.parametrize("name", ["index.faiss", "ads.parquet", "transform.safetensors", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "missing", "truncated"])
def test_a_tampered_file_is_refused_before_faiss_reads_it(built, tmp_path, name, how, monkeypatch):
    import faiss

    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("FAISS was handed an unverified file"))
    shutil.copytree(built, tmp_path / "copy")
    file = tmp_path / "copy" / current(built)["version"] / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data) if how == "flip" else file.write_bytes(data[:-9]) if how == "truncated" else file.unlink()
    with pytest.raises(InputError, match=name):
        Index.open(tmp_path / "copy")


@pytest.mark.parametrize("said", [None, "{}", "[", '{"version": "../../etc", "previous": null, "manifests": {}}',
                                  '{"version": "0123456789ab", "previous": null, "manifests": {}}'])
def test_not_an_index_is_refused(tmp_path, said):
    if said:
        (tmp_path / "CURRENT.json").write_text(said)
    with pytest.raises(InputError, match="not an index" if said is None else "damaged list"):
        Index.open(tmp_path)


def test_the_vectors_kept_for_compaction_are_checked_when_they_are_read(built, tmp_path):
    shutil.copytree(built, tmp_path / "copy")
    index = Index.open(tmp_path / "copy")
    assert index.vectors().shape == (400, 24)
    with (index.folder / "vectors.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    with pytest.raises(InputError, match=r"vectors\.npy"):
        index.vectors()


def test_a_folder_of_something_else_is_not_built_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("all I have")
    with pytest.raises(InputError, match="not an index"):
        build_index(VECTORS, tmp_path, ADS)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_building_twice_does_nothing_and_other_inputs_build_anew(tmp_path):
    first = build_index(VECTORS, tmp_path / "index", ADS)
    assert first["facts"]["factory"] == "Flat"
    assert first["facts"]["n"] == 400
    assert build_index(VECTORS, tmp_path / "index", ADS)["cached"] is True
    fewer = build_index(VECTORS, tmp_path / "index", ADS.slice(0, 10))
    assert fewer["cached"] is False
    assert len(Index.open(tmp_path / "index")) == 10
    projected = build_index(VECTORS, tmp_path / "index", None, CorpusTransform.fit(VECTORS.matrix, 8))
    assert projected["facts"]["dim"] == 8
    assert set(Index.open(tmp_path / "index").ads["ad_id"].to_pylist()) == set(VECTORS.hashes)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize(("make", "words"), [
    (lambda out: build_index(VECTORS, out, pa.concat_tables([ADS, ADS.slice(2, 1)])), ["row 400", "ad-2", "twice"]),
    (lambda out: build_index(VECTORS, out, ADS.slice(0, 0)), ["no ads"]),
    (lambda out: build_index(VECTORS, out, pa.table({"ad_id": ["a"], "content_hash": ["?"]})), ["row 0", "no vector"]),
    (lambda out: build_index(VECTORS, out, ADS, CorpusTransform.fit(VECTORS.matrix, 4, "variance")), ["l2"]),
])
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, make, words):
    with pytest.raises(InputError) as error:
        make(tmp_path / "index")
    assert all(w in str(error.value) for w in words)
    assert list(tmp_path.iterdir()) == []


def test_from_texts_to_ads(tmp_path):
    titles = ["cheap flights to paris", "learn to knit a scarf", "fast laptops on sale", "flights to rome, cheap"]
    ads = pa.table({"ad_id": list("abcd"), "title": titles, "content_hash": [f"h{i}" for i in range(4)]})
    config = EncoderConfig(kind="hashed", dim=512)
    embed_texts(ads, config, tmp_path / "store")
    build_index(tmp_path / "store", tmp_path / "index", ads)
    index = Index.open(tmp_path / "index")
    ids, _ = index.search(make_encoder(config).encode(["knit scarf", "cheap flights"]).vectors, 2)
    assert ids[0, 0] == "b"
    assert set(ids[1]) == {"a", "d"}
    assert index.manifest["facts"]["model_id"] == "hashed-ngrams"
