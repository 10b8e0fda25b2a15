from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.config import ModelConfig, SemanticIdConfig, TrainingConfig
from recsys.content.semantic_ids import ResidualQuantiser
from recsys.errors import InputError
from recsys.models.bundle import load_bundle
from recsys.serving.scorer import Scorer
from recsys.training.trainer import train_model
from tests.training.toy import toy_content, toy_split, toy_table


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scorer")
    train_model(toy_split(folder / "split"), ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), content_dim=8),
                TrainingConfig(epochs=1, batch_size=128), folder / "model", content=toy_content())
    return folder / "model"


def test_scores_are_probabilities_and_match_the_metrics(model_dir: Path) -> None:
    import json

    scorer = Scorer.load(model_dir)
    table = toy_table(1000, 2)  # the test part
    p = scorer.score(table)["click"]
    assert p.dtype == np.float64
    assert p.shape == (1000,)
    y = table["click"].to_numpy()
    loss = -(y * np.log(p) + (1 - y) * np.log1p(-p)).mean()
    assert loss == pytest.approx(json.loads((model_dir / "metrics.json").read_text())["test"]["log_loss"], abs=1e-6)
    assert scorer.heads == ["click"]
    assert scorer.columns == ["price", "ad_id", "user_id", "surface", "history"]
    assert scorer.model_id.startswith("model-")


def test_result_does_not_depend_on_the_batch(model_dir: Path) -> None:
    scorer, table = Scorer.load(model_dir), toy_table(300, 4)
    whole = scorer.score(table)["click"]
    parts = np.concatenate([scorer.score(table.slice(a, 7))["click"] for a in range(0, 300, 7)])
    np.testing.assert_allclose(parts, whole, atol=1e-6, rtol=0)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_allclose(scorer.score(table.take(pa.array(order)))["click"], whole[order], atol=1e-6, rtol=0)


def test_rows_never_seen_in_training_score(model_dir: Path) -> None:
    scorer = Scorer.load(model_dir)
    table = pa.table({"price": pa.array([1.0, None]), "ad_id": ["new ad", "ad1"], "user_id": ["new user", None],
                      "surface": ["new surface", "feed"], "history": pa.array([["gone"], None], pa.list_(pa.string()))})
    p = scorer.score(table)["click"]
    assert ((p > 0) & (p < 1)).all()


def test_no_rows_give_no_scores(model_dir: Path) -> None:
    assert Scorer.load(model_dir).score(toy_table(5, 1).slice(5))["click"].shape == (0,)


def test_numbers_beyond_float32_are_refused_in_every_form(model_dir: Path) -> None:
    scorer, table = Scorer.load(model_dir), toy_table(4, 1)
    at = table.column_names.index("price")

    def with_price(*values: float | None) -> pa.Table:
        return table.set_column(at, "price", pa.array(values))

    assert np.isfinite(scorer.score(with_price(3.4e38, -3.4e38, None, 1e-320))["click"]).all()
    for value in (1e308, -3.5e38, float("inf")):
        rows = with_price(1.0, None, value, -value)
        with pytest.raises(InputError, match=r"column price, row 2: value not allowed.*float32"):
            scorer.score(rows)
        with pytest.raises(InputError, match=r"column price, row 2: value not allowed.*float32"):
            scorer.score_arrays({n: rows[n].to_pylist() for n in scorer.columns})


def test_missing_column_is_named(model_dir: Path) -> None:
    with pytest.raises(InputError, match=r"in\.parquet, column surface: missing column"):
        Scorer.load(model_dir).score(toy_table(5, 1).drop_columns(["surface"]), "in.parquet")


@pytest.mark.parametrize(("name", "message"), [
    ("model.json", "damaged file"), ("model.safetensors", "damaged file"), ("content.safetensors", "damaged file"),
    ("vocabulary.parquet", "not a readable Parquet file"),
])
def test_damaged_folder_is_refused(model_dir: Path, tmp_path: Path, name: str, message: str) -> None:
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() if file.name != name else file.read_bytes()[:50])
    with pytest.raises(InputError, match=message):
        Scorer.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match="no such file"):
        Scorer.load(tmp_path)


@pytest.fixture(scope="module")
def with_semantic_ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on 40 ads whose click content decides; every ad has a semantic id, none is a known ad_id."""
    torch.set_num_threads(1)
    folder, (ids, vectors) = tmp_path_factory.mktemp("semantic"), toy_content()
    split = toy_split(folder / "split", sparse=["user_id", "surface"], ad_features=[])
    quantiser = ResidualQuantiser.fit(vectors, SemanticIdConfig(levels=2, codebook=4, dim=8))
    train_model(split, ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), content_dim=8),
                TrainingConfig(epochs=1, batch_size=128), folder / "model", content=(ids, vectors),
                semantic=(quantiser, quantiser.encode(vectors)))
    return folder / "model"


def test_semantic_ids_travel_with_the_model(with_semantic_ids: Path) -> None:
    scorer, bundle = Scorer.load(with_semantic_ids), load_bundle(with_semantic_ids)
    assert scorer.columns == ["price", "user_id", "surface", "history", "ad_id"]  # the ids follow from the ad
    assert bundle.encoder.sparse == ("user_id", "surface", "semantic_id_1", "semantic_id_2")
    assert {"semantic_id_1", "semantic_id_2"} <= bundle.encoder.tables.keys()
    assert bundle.quantiser is not None
    codes = bundle.quantiser.encode(toy_content()[1])
    encoded = bundle.encoder.encode(toy_table(50, 3))
    ad = np.array([int(a[2:]) for a in toy_table(50, 3)["ad_id"].to_pylist()])
    for level in (1, 2):
        listed = ["-".join(map(str, c[:level])) for c in codes]
        rows = bundle.encoder.tables[f"semantic_id_{level}"].encode(pa.array(listed), "x")
        np.testing.assert_array_equal(encoded.sparse[:, 1 + level], rows[ad])
        assert rows.min() > 0
    weights = bundle.models[0].weights()
    assert weights["table.semantic_id_1"].shape == (5, 4)


def test_an_ad_made_after_training_scores_as_its_twin(with_semantic_ids: Path) -> None:
    scorer, (_, vectors) = Scorer.load(with_semantic_ids), toy_content()
    table = toy_table(200, 9)
    renamed = table.set_column(table.column_names.index("ad_id"), "ad_id",
                               pa.array([f"new {a}" for a in table["ad_id"].to_pylist()]))
    before, unknown = scorer.score(table)["click"], scorer.score(renamed)["click"]
    grown = scorer.with_ads([f"new ad{i}" for i in range(len(vectors))], vectors)
    np.testing.assert_allclose(grown.score(renamed)["click"], before, atol=1e-6)  # same content: same score
    np.testing.assert_allclose(grown.score(table)["click"], before, atol=1e-7)
    np.testing.assert_array_equal(scorer.score(renamed)["click"], unknown)  # the first one did not change
    assert np.abs(unknown - before).max() > 1e-3
    swapped = scorer.with_ads(["ad0"], vectors[1:2])  # a new text under an old id
    rows = toy_table(200, 9)
    as_first, as_second = (rows.set_column(2, "ad_id", pa.array([a] * 200)) for a in ("ad0", "ad1"))
    empty = pa.array([[]] * 200, pa.list_(pa.string()))
    as_first, as_second = (t.set_column(6, "history", empty) for t in (as_first, as_second))
    np.testing.assert_allclose(swapped.score(as_first)["click"], scorer.score(as_second)["click"], atol=1e-6)


@pytest.mark.parametrize(("ids", "vectors", "words"), [
    (["a", "a"], np.ones((2, 8)), "do not fit"), (["a"], np.ones((2, 8)), "do not fit"),
    (["a"], np.ones((1, 7)), "another length"), (["a"], np.full((1, 8), np.nan), "not finite"),
])
def test_bad_new_ads_are_refused(with_semantic_ids: Path, ids: list[str], vectors: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Scorer.load(with_semantic_ids).with_ads(ids, vectors)


def test_arrays_score_as_their_table(model_dir: Path) -> None:
    scorer, table = Scorer.load(model_dir), toy_table(30, 4)
    arrays = {n: table[n].to_numpy(zero_copy_only=False) for n in scorer.columns if n not in scorer.lists}
    arrays |= {n: table[n].to_pylist() for n in scorer.lists}
    want = scorer.score(table)["click"]
    np.testing.assert_allclose(scorer.score_arrays(arrays)["click"], want, atol=1e-7)
    np.testing.assert_allclose(scorer.score_encoded(scorer.encoder.encode(table))["click"], want, atol=0)
    with pytest.raises(InputError, match="missing column"):
        scorer.score_arrays({n: a for n, a in arrays.items() if n != "price"})
    with pytest.raises(InputError, match="different lengths"):
        scorer.score_arrays({**arrays, "price": arrays["price"][:-1]})
    with pytest.raises(InputError, match="list features"):
        scorer.score_block(np.zeros((1, 1)), np.zeros((1, 3), np.int64))


def test_threads_share_a_scorer(model_dir: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    scorer, tables = Scorer.load(model_dir), [toy_table(200, seed) for seed in range(8)]
    want = [scorer.score(t)["click"] for t in tables]
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(want, pool.map(lambda t: scorer.score(t)["click"], tables), strict=True):
            np.testing.assert_array_equal(a, b)
