from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.config import ModelConfig, TrainingConfig
from recsys.content.vectors import ContentVectors, CorpusTransform
from recsys.errors import InputError
from recsys.models.bundle import Bundle, load_bundle
from recsys.retrieval import build_index, rollback
from recsys.retrieval.versions import current
from recsys.serving.export import Bounds, export_bundle
from recsys.serving.index_fit import check_index
from recsys.stage import read_manifest
from recsys.training.trainer import train_model
from tests.training.toy import toy_content, toy_split

LOOSE = Bounds(max_dp=0.1, mean_dp=0.02, auc=0.02)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return toy_split(tmp_path_factory.mktemp("index-fit") / "split", n=600)


def train(split: Path, name: str, content: bool, **settings: object) -> Path:
    config = ModelConfig(embedding_dim=4, bottom=(8,), top=(8,), content_dim=6, min_count=1, **settings)
    train_model(split, config, TrainingConfig(epochs=1, batch_size=256), split.parent / name,
                content=toy_content() if content else None)
    return split.parent / name


@pytest.fixture(scope="module")
def model(split: Path) -> Path:
    return train(split, "model", True)


@pytest.fixture(scope="module")
def with_content(model: Path) -> Bundle:
    return load_bundle(model)


@pytest.fixture(scope="module")
def ids_only(split: Path) -> Bundle:
    return load_bundle(train(split, "ids", False))


def index(folder: Path, ids: list[str], vectors: np.ndarray, transform: CorpusTransform | None = None) -> Path:
    ads = pa.table({"ad_id": ids, "content_hash": [f"h{i}" for i in ids]})
    build_index(ContentVectors(ads["content_hash"].to_pylist(), vectors, {"model_id": "toy"}), folder, ads, transform)
    return folder


def test_the_same_content_fits_whatever_each_was_centred_on(with_content: Bundle, tmp_path: Path) -> None:
    ids, vectors = toy_content()
    more = np.random.default_rng(1).normal(3.0, 1.0, (30, 8)).astype(np.float32)  # ads of later, far from the mean
    apart = {"whole": check_index(index(tmp_path / "a", ids, vectors), with_content),
             "grown": check_index(index(tmp_path / "b", [*ids, *(f"new{i}" for i in range(30))],
                                        np.concatenate([vectors, more])), with_content),
             "alike": check_index(index(tmp_path / "c", ids, vectors, CorpusTransform(
                 with_content.transform.mean, np.zeros((8, 0), np.float32), np.ones(8, np.float32), "l2")),
                 with_content)}
    assert {n: (f["ads"], f["known"]) for n, f in apart.items()} == {
        "whole": (40, 40), "grown": (70, 40), "alike": (40, 40)}
    assert max(f["apart"] for f in apart.values()) < 1e-3


def test_other_content_and_other_ads_are_refused(with_content: Bundle, ids_only: Bundle, tmp_path: Path) -> None:
    ids, vectors = toy_content()
    with pytest.raises(InputError, match="an index of other content"):  # the right vectors, at the wrong ads
        check_index(index(tmp_path / "a", ids, vectors[::-1].copy()), with_content)
    with pytest.raises(InputError, match="an index of other content"):
        check_index(index(tmp_path / "b", ids, -vectors), with_content)
    foreign = index(tmp_path / "c", [f"x{i}" for i in ids], vectors)
    for model in (with_content, ids_only):
        with pytest.raises(InputError, match=r"an index of other ads.*40 ads that the model never saw, as 'xad0'"):
            check_index(foreign, model)


def test_what_cannot_be_compared_is_said_to_be_so(with_content: Bundle, ids_only: Bundle, split: Path,
                                                  tmp_path: Path) -> None:
    ids, vectors = toy_content()
    found = check_index(index(tmp_path / "a", ids, vectors), ids_only)
    assert (found["known"], found["apart"]) == (40, None)
    wide = index(tmp_path / "b", ids, np.concatenate([vectors, vectors], axis=1))
    assert check_index(wide, with_content)["apart"] is None
    hashed = load_bundle(train(split, "hashed", False, hash_buckets=8))
    assert hashed.encoder.tables["ad_id"].kind == "hash"
    assert check_index(wide, hashed)["known"] is None


def test_a_bundle_names_the_version_that_is_served(model: Path, split: Path, tmp_path: Path) -> None:
    ids, vectors = toy_content()
    folder = index(tmp_path / "index", ids, vectors)
    first = current(folder)["version"]
    index(folder, ids[:30], vectors[:30])

    def export(to: str) -> dict:
        export_bundle(model, tmp_path / to, data=split, index=folder, bounds=LOOSE, program=False)
        return read_manifest(tmp_path / to)["facts"]["index"]

    now = export("bundle")
    assert now["version"] == current(folder)["version"] != first
    assert now["key"] == read_manifest(folder / now["version"])["key"]
    assert now["config"]["model_id"] == "toy"
    assert (now["ads"], now["known"]) == (30, 30)
    rollback(folder)
    again = export("bundle")  # another version is served: another bundle
    assert (again["version"], again["ads"]) == (first, 40)

    index(folder, ids, vectors[::-1].copy())
    with pytest.raises(InputError, match="an index of other content"):
        export("refused")
    assert not (tmp_path / "refused").exists()
    assert read_manifest(tmp_path / "bundle")["facts"]["index"]["version"] == first
    with pytest.raises(InputError, match="not an index"):
        export_bundle(model, tmp_path / "refused", data=split, index=tmp_path, bounds=LOOSE)
    vectors_file = folder / current(folder)["version"] / "vectors.npy"
    vectors_file.write_bytes(vectors_file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"vectors\.npy"):
        export("refused")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "index"]
