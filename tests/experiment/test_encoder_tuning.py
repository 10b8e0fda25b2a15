"""The encoder's search finds the layer that says something, and the test part has no say in it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recsys.cli import app
from recsys.config import load_config
from recsys.errors import InputError
from recsys.experiment.encoder_tuning import tune_encoder
from tests.content.conftest import make_llama

WORDS = ["fox", "dog", "cat", "car", "home", "boots", "loan", "pet", "win", "save"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Raw packages of headline tests: a headline with "dog" draws half as many clicks again."""
    folder, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    rows = []
    for test in range(90):
        for _ in range(3):
            words = rng.choice(WORDS, 3)
            rate = 0.02 * (1.5 if "dog" in words else 1.0)
            rows.append((f"t{test}", f"{' '.join(words)} {test} {len(rows)}", "image", 201440, 4000,
                         int(rng.binomial(4000, rate))))
    names = ["clickability_test_id", "headline", "eyecatcher_id", "test_week", "impressions", "clicks"]
    (folder / "upworthy").mkdir()
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))),
                   folder / "upworthy" / "packages.parquet")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


def experiment(tiny):
    return load_config("upworthy", [f"encoders.mine={{kind: llama, model: {tiny}, dtype: float32, layer: 0}}",
                                    "arms={uniform: {policy: uniform}, mine: {content: mine}}", "model.gammas=[0]"])


def test_layers_are_added_while_the_error_falls(home, tiny, tmp_path):
    found = tune_encoder(experiment(tiny), tmp_path / "out", home, layers=(0, 1, 2, -1), poolings=("mean", "last"),
                         prompts=("{text}", "{text} again: {text}"), most=2)
    assert found["best"]["error"] == min(one["error"] for one in found["tried"])
    assert found["best"]["error"] < 0.9
    singles = [one for one in found["tried"] if len(one["layer"]) == 1]
    assert {(one["prompt"], one["pooling"], one["layer"][0]) for one in singles} == {
        (p, q, n) for p in ("{text}", "{text} again: {text}") for q in ("mean", "last") for n in (0, 1, 2, 3)}
    assert max(len(one["layer"]) for one in found["tried"]) == 2
    assert json.loads((tmp_path / "out" / "encoder.json").read_text()) == found
    again = load_config("upworthy", [f"encoders.mine={{kind: llama, model: {tiny}, dtype: float32}}",
                                     "arms.mine={content: mine}", *found["set"]]).encoders["mine"]
    assert list(again.layers) == found["best"]["layer"]
    assert again.pooling == found["best"]["pooling"]
    assert again.prompt == found["best"]["prompt"]


def test_the_test_part_has_no_say(home, tiny, tmp_path):
    def search(name: str) -> dict:
        return tune_encoder(experiment(tiny), tmp_path / name, home, layers=(1, 2), most=1)

    before = search("one")
    split = tmp_path / "one" / "split"
    ads = pq.read_table(tmp_path / "one" / "content" / "mine-0" / "content.parquet").num_rows
    assert ads == pq.read_table(split / "train.parquet")["ad_id"].combine_chunks().unique().__len__()
    test = pq.read_table(split / "test.parquet")
    pq.write_table(test.slice(0, 0), split / "test.parquet")
    assert search("one") == before


def test_what_cannot_be_searched_is_refused(home, tiny, tmp_path):
    with pytest.raises(InputError, match="one encoder of kind llama"):
        tune_encoder(load_config("upworthy"), tmp_path / "a", home, arm="hashed_text")
    with pytest.raises(InputError, match="no such layer"):
        tune_encoder(experiment(tiny), tmp_path / "b", home, layers=(9,))


def test_the_command_prints_what_to_set(home, tiny, tmp_path):
    result = CliRunner().invoke(app, [
        "tune-encoder", "upworthy", "--out", str(tmp_path / "out"), "--data-home", str(home), "--arm", "mine",
        "--layer", "1", "--most", "1", "--set", f"encoders.mine={{kind: llama, model: {tiny}, dtype: float32}}",
        "--set", "arms.mine={content: mine}"])
    assert result.exit_code == 0, result.output
    assert "--set 'encoders.mine.layer=[1]'" in result.output
