from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from safetensors.torch import load_file

from recsys.config import RetrieverConfig, SemanticIdConfig, TrainingConfig
from recsys.content.semantic_ids import ResidualQuantiser
from recsys.errors import InputError
from recsys.evaluation.recall import click_recall
from recsys.models.bundle import load_bundle
from recsys.models.towers import load_towers
from recsys.training.towers import train_towers
from tests.training.toy import toy_content, toy_split, toy_table

CONFIG = RetrieverConfig(content="toy", dim=8, embedding_dim=4, user=(16,), ad=(16,), content_dim=8, min_count=1,
                         training=TrainingConfig(epochs=4, batch_size=128, embedding_init=0.1))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_split(tmp_path_factory.mktemp("data") / "split", 4000)


@pytest.fixture(scope="module")
def model(split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("towers") / "model"
    train_towers(split, CONFIG, out, content=toy_content())
    return out


def test_the_folder_is_complete_and_made_once(split: Path, model: Path) -> None:
    assert {p.name for p in model.iterdir()} == {"manifest.json", "metrics.json", "model.json", "model.safetensors",
                                                 "vocabulary.parquet", "content.safetensors", "train.jsonl"}
    before = (model / "manifest.json").read_bytes()
    train_towers(split, CONFIG, model, content=toy_content())
    assert (model / "manifest.json").read_bytes() == before


def test_clicks_of_the_test_part_are_found_far_better_than_by_chance(split: Path, model: Path) -> None:
    towers, test = load_towers(model), pa.parquet.read_table(split / "test.parquet")
    clicks = test.filter(pc.equal(test["click"], 1))
    ids = toy_content()[0]
    users, ads = towers.user_vectors(clicks), towers.ad_vectors(pa.table({"ad_id": ids}))
    np.testing.assert_allclose(np.linalg.norm(users, axis=1), 1, rtol=1e-5)
    at = np.array([ids.index(a) for a in clicks["ad_id"].to_pylist()])
    assert click_recall(users, ads, at, (10,))[10] > 1.5 * 10 / len(ids)


def test_neither_side_sees_the_other(model: Path) -> None:
    towers, table = load_towers(model), toy_table(6, 3)
    other = toy_table(6, 4)
    assert set(towers.user_columns) == {"price", "user_id", "surface", "history"}
    assert towers.ad_columns == ["ad_id"]
    mixed = table.set_column(table.column_names.index("ad_id"), "ad_id", other["ad_id"])
    np.testing.assert_array_equal(towers.user_vectors(mixed), towers.user_vectors(table))
    np.testing.assert_array_equal(towers.ad_vectors(mixed), towers.ad_vectors(other))
    with pytest.raises(InputError, match="missing column"):
        towers.user_vectors(table.drop_columns(["history"]))


def test_a_new_ad_lies_where_its_content_says(split: Path, tmp_path: Path) -> None:
    ids, vectors = toy_content()
    quantiser = ResidualQuantiser.fit(vectors, SemanticIdConfig(levels=2, codebook=4, dim=8))
    train_towers(split, CONFIG, tmp_path / "m", content=(ids, vectors), semantic=(quantiser, quantiser.encode(vectors)))
    towers = load_towers(tmp_path / "m")
    assert towers.sides.ad == ("ad_id", "semantic_id_1", "semantic_id_2")
    grown = towers.with_ads([f"new {i}" for i in ids], vectors)
    known, new = (grown.ad_vectors(pa.table({"ad_id": names})) for names in (ids, [f"new {i}" for i in ids]))
    np.testing.assert_array_equal(known, towers.ad_vectors(pa.table({"ad_id": ids})))
    assert ((known @ new.T).argmax(axis=0) == np.arange(len(ids))).mean() > 0.8
    assert (towers.model.frequency.hits > 0).sum() > 20


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_towers(split: Path, model: Path, tmp_path: Path) -> None:
    import json

    code = ("import os, signal, sys, torch\ntorch.set_num_threads(1)\n"
            "from recsys.training import checkpoint\nfrom tests.training.test_towers import *\n"
            "wait = checkpoint.Checkpoints.wait\n"
            "def then_die(self):\n    wait(self)\n"
            "    if len(list(self._folder.glob('epoch-*/manifest.json'))) >= 2: os.kill(os.getpid(), signal.SIGKILL)\n"
            "checkpoint.Checkpoints.wait = then_die\n"
            "train_towers(Path(sys.argv[1]), CONFIG, Path(sys.argv[2]), content=toy_content())\n")
    ended = subprocess.run([sys.executable, "-c", code, str(split), str(tmp_path / "m")], check=False,
                           cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == -signal.SIGKILL
    train_towers(split, CONFIG, tmp_path / "m", content=toy_content())
    lines = [json.loads(line) for line in (tmp_path / "m/train.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "evaluation" for line in lines) == 4
    for name, tensor in load_file(model / "model.safetensors").items():
        torch.testing.assert_close(load_file(tmp_path / "m/model.safetensors")[name], tensor, rtol=0, atol=0)


def test_ids_alone_and_content_alone_are_enough_and_one_of_them_is_needed(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", 800)
    train_towers(split, CONFIG.model_copy(update={"content": None}), tmp_path / "ids")
    assert load_towers(tmp_path / "ids").content is None
    split = toy_split(tmp_path / "without", 800, sparse=["user_id", "surface"], ad_features=[])
    train_towers(split, CONFIG, tmp_path / "content", content=toy_content())
    assert load_towers(tmp_path / "content").ad_vectors(pa.table({"ad_id": ["ad1"]})).shape == (1, 8)
    with pytest.raises(InputError, match="ads without id or content"):
        train_towers(split, CONFIG.model_copy(update={"content": None}), tmp_path / "nothing")


def test_what_the_shown_ads_past_was_is_no_users_feature(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", 800, ad_past=["price"])
    train_towers(split, CONFIG, tmp_path / "m", content=toy_content())
    assert "price" not in (*load_towers(tmp_path / "m").user_columns, *load_towers(tmp_path / "m").ad_columns)


def test_each_kind_of_folder_is_refused_by_the_others_reader(model: Path) -> None:
    with pytest.raises(InputError, match="not a ranker"):
        load_bundle(model)
    with pytest.raises(InputError, match="not a retriever"):
        load_towers(Path(__file__).parents[1] / "models/data/format1")


def test_no_clicks_are_refused(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", 400)
    table = pa.parquet.read_table(split / "train.parquet")
    zero = pa.array(np.zeros(table.num_rows, np.int8))
    pa.parquet.write_table(table.set_column(table.column_names.index("click"), "click", zero), split / "train.parquet")
    with pytest.raises(InputError, match="no labelled training rows"):
        train_towers(split, CONFIG, tmp_path / "m", content=toy_content())
