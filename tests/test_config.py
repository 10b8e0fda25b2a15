"""The experiment file: defaults, overrides, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recsys.config import ExperimentConfig, load_config, parse_model
from recsys.errors import InputError

MINIMAL = {"name": "x", "data": {"recipe": "upworthy"}, "split": {"kind": "story"}}


def write(folder: Path, value: dict) -> Path:
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


@pytest.mark.parametrize("name", ["marketplace", "upworthy", "criteo_attribution"])
def test_shipped_experiments_load_by_name(name: str):
    assert load_config(name).name == name


def test_resolved_config_round_trips(tmp_path: Path):
    config = load_config("marketplace")
    assert ExperimentConfig.model_validate(config.resolved()) == config
    assert load_config(write(tmp_path, config.resolved())) == config


def test_overrides_are_yaml_and_reach_deep(tmp_path: Path):
    config = load_config(write(tmp_path, MINIMAL), ["training.epochs=3", "model.top=[8, 4]", "seed=9",
                                                    "split={kind: files, test: b.parquet}"])
    assert (config.training.epochs, config.model.top, config.seed) == (3, (8, 4), 9)
    assert config.split.kind == "files"


@pytest.mark.parametrize(("change", "words"), [
    ({"trainig": {}}, "did you mean 'training'"),
    ({"training": {"epoch": 3}}, "did you mean 'epochs'"),
    ({"training": {"epochs": "many"}}, "training.epochs"),
    ({"split": {"kind": "coin"}}, "split"),
    ({"arms": {"a": {"content": "nothing"}}}, "arms.a.content"),
    ({"baseline": "b"}, "baseline"),
    ({"model": {"embedding_dim": 10}}, "multiple of 4"),
])
def test_a_bad_key_or_value_is_one_line_that_names_it(tmp_path: Path, change: dict, words: str):
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, MINIMAL | change))
    assert words in str(caught.value)
    assert "x.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_malformed_and_empty_files(tmp_path: Path):
    with pytest.raises(InputError, match="marketplace"):  # the shipped names are listed
        load_config(tmp_path / "absent.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1,\nb: 2")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config(bad)
    bad.write_text("")
    with pytest.raises(InputError, match="not a mapping"):
        load_config(bad)


@pytest.mark.parametrize("item", ["training.epochs", "=3", "name.deep=1"])
def test_malformed_overrides(tmp_path: Path, item: str):
    with pytest.raises(InputError, match="--set"):
        load_config(write(tmp_path, MINIMAL), [item])


def test_semantic_ids_without_content_are_refused_in_every_arm_not_only_the_last():
    arms = {"ids": {"semantic_ids": {}}, "text": {"content": "words"}}
    value = {"name": "x", "data": {"recipe": "marketplace"}, "split": {"kind": "time"},
             "encoders": {"words": {"kind": "hashed"}}, "arms": arms}
    with pytest.raises(InputError, match=r"arms\.ids\.semantic_ids"):
        parse_model(ExperimentConfig, value, "x.yaml")


@pytest.mark.parametrize("setting", [{"parallel": {"sharding": "row_wise"}}, {"parallel": {"communication": "float16"}},
                                     {"tables": {"ad_id": {"sharding": "row_wise"}}}])
def test_settings_of_sharded_tables_are_refused_where_another_backend_is_named(setting: dict):
    value = {"name": "x", "data": {"recipe": "marketplace"}, "split": {"kind": "time"}, "training": setting}
    for backend in ("fused", "dense"):
        with pytest.raises(InputError, match="embeddings"):
            parse_model(ExperimentConfig, {**value, "model": {"embeddings": backend}}, "x.yaml")
    for backend in ("auto", "sharded"):
        parse_model(ExperimentConfig, {**value, "model": {"embeddings": backend}}, "x.yaml")
