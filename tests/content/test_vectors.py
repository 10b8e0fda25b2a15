from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import PCA

from recsys.content import ContentVectors, CorpusTransform, for_ads
from recsys.errors import InputError

rng = np.random.default_rng(0)
CORPUS = (rng.normal(size=(200, 12)) * np.linspace(5, 0.1, 12) + 3).astype(np.float32)


def test_for_ads_aligns_rows_and_names_the_missing():
    vectors = ContentVectors(["x", "y", "z"], np.arange(6, dtype=np.float32).reshape(3, 2), {})
    ads = pa.table({"ad_id": ["1", "2", "3", "4"], "content_hash": ["z", "x", "z", "y"]})
    ids, matrix = for_ads(vectors, ads)
    assert ids == ["1", "2", "3", "4"]
    assert matrix.tolist() == [[4, 5], [0, 1], [4, 5], [2, 3]]
    with pytest.raises(InputError, match=r"column content_hash, row 1.*'w'"):
        for_ads(vectors, pa.table({"ad_id": ["1", "2"], "content_hash": ["z", "w"]}))


@pytest.mark.parametrize("normalisation", ["l2", "variance", "none"])
def test_projection_is_pca(normalisation):
    transform = CorpusTransform.fit(CORPUS, 5, normalisation)
    reference = PCA(5).fit(CORPUS.astype(np.float64))
    projected = reference.transform(CORPUS.astype(np.float64))
    signs = np.sign((transform.components * reference.components_.T).sum(0))
    want = projected * signs
    if normalisation == "l2":
        want = want / np.linalg.norm(want, axis=1, keepdims=True)
    elif normalisation == "variance":
        want = want / want.std(axis=0)
    assert np.allclose(transform.transform(CORPUS), want, atol=1e-4)
    assert transform.dim == 5
    assert transform.transform(CORPUS).dtype == np.float32


def test_without_projection_it_is_centring():
    out = CorpusTransform.fit(CORPUS, None, "none").transform(CORPUS)
    assert np.allclose(out, CORPUS - CORPUS.mean(0), atol=1e-4)
    assert np.allclose(np.linalg.norm(CorpusTransform.fit(CORPUS).transform(CORPUS), axis=1), 1, atol=1e-5)


def test_edges_few_rows_constant_columns_the_mean_itself():
    few = CorpusTransform.fit(CORPUS[:3], 8)
    assert few.dim == 3
    flat = CorpusTransform.fit(np.ones((4, 3), np.float32), None, "variance")
    assert not flat.transform(np.ones((2, 3), np.float32)).any()
    transform = CorpusTransform.fit(CORPUS)
    assert np.abs(transform.transform(transform.mean[None]).sum()) == 0
    with pytest.raises(InputError, match="another length"):
        transform.transform(CORPUS[:, :5])
    with pytest.raises(InputError, match="0 rows"):
        CorpusTransform.fit(CORPUS[:0])


@pytest.mark.parametrize("dim", [None, 4])
def test_save_and_load_round_trip(tmp_path, dim):
    transform = CorpusTransform.fit(CORPUS, dim, "variance")
    transform.save(tmp_path / "transform.safetensors")
    again = CorpusTransform.load(tmp_path / "transform.safetensors")
    assert np.array_equal(again.transform(CORPUS), transform.transform(CORPUS))
    assert again.normalisation == "variance"
    (tmp_path / "bad").write_bytes(b"not safetensors at all")
    for name in ("bad", "nowhere"):
        with pytest.raises(InputError, match=name):
            CorpusTransform.load(tmp_path / name)
