from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import load_config
from recsys.errors import InputError
from recsys.training.space import Choices, Range, configured, draw, load_space, override

CONFIG = load_config("criteo_attribution")


def _space(folder: Path, text: str) -> dict:
    (folder / "space.yaml").write_text(text)
    return dict(load_space(folder / "space.yaml", CONFIG))


def test_the_shipped_space_fits_every_shipped_experiment() -> None:
    for name in ("criteo_attribution", "marketplace"):
        config = load_config(name)
        space = load_space(None, config)
        for number in range(20):
            configured(config, draw(space, 0, number))


def test_entries_are_ranges_and_choices(tmp_path: Path) -> None:
    space = _space(tmp_path, "training.sparse_lr: {low: 0.01, high: 1.0, log: true}\n"
                             "training.epochs: {low: 1, high: 3}\nmodel.top: [[64], [32, 16]]")
    assert space == {"training.sparse_lr": Range(0.01, 1.0, True), "training.epochs": Range(1, 3),
                     "model.top": Choices(([64], [32, 16]))}


@pytest.mark.parametrize(("text", "words"), [
    ("training.sparse_lr: {low: 1.0, high: 0.1}", "column training.sparse_lr: malformed range"),
    ("training.sparse_lr: {low: 0.0, high: 0.1, log: true}", "malformed range"),
    ("training.sparse_lr: {low: .nan, high: 0.1}", "malformed range"),
    ("training.sparse_lr: {low: true, high: 2}", "malformed range"),
    ("training.sparse_lr: {lower: 1, high: 2}", "malformed range"),
    ("training.sparse_lr: []", "malformed range"),
    ("training.sparse_lrr: [0.1]", "did you mean 'sparse_lr'"),
    ("model.dropout: {low: 0.5, high: 1.5}", r"column model.dropout: bad value; got 1.5"),
    ("model.embedding_dim: [16, 10]", "multiple of 4, not 10"),
    ("seed: [1, 2]", "not a key to search"),
    ("split.test_share: [0.1]", "not a key to search"),
    ("training.validation_share: [0.1, 0.5]", "not a key to search"),
    ("{}", "nothing to search"),
])
def test_bad_spaces_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        _space(tmp_path, text)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_space(tmp_path / "absent.yaml", CONFIG)


def test_draws_depend_on_seed_number_and_key_alone() -> None:
    space = {"training.sparse_lr": Range(0.01, 1.0, True), "training.epochs": Range(1, 30)}
    draws = [draw(space, 0, n) for n in range(50)]
    assert draws[7] == draw(space, 0, 7)
    assert draw({**space, "model.dropout": Range(0.0, 0.5)}, 0, 7)["training.epochs"] == draws[7]["training.epochs"]
    assert draws[7] != draw(space, 1, 7)
    assert len({d["training.sparse_lr"] for d in draws}) == 50


def test_draws_fill_their_ranges_evenly() -> None:
    space = {"a": Range(0.001, 1.0, True), "b": Range(1, 4), "c": Range(0.0, 2.0), "d": Choices((1, 2)),
             "e": Range(1, 100, True)}
    draws = [draw(space, 3, n) for n in range(4000)]
    column = {k: np.array([d[k] for d in draws]) for k in space}
    assert np.median(column["a"]) == pytest.approx(0.0316, rel=0.15)
    assert np.bincount(column["b"], minlength=5)[1:].min() > 850
    assert column["c"].mean() == pytest.approx(1, abs=0.05)
    assert (column["d"] == 1).mean() == pytest.approx(0.5, abs=0.04)
    assert (column["e"].min(), column["e"].max()) == (1, 100)
    assert np.median(column["e"]) == pytest.approx(10, abs=3)


@given(st.floats(1e-12, 1e12) | st.integers(1, 10**9))
def test_numbers_survive_set(value: float) -> None:
    import yaml

    assert yaml.safe_load(override("k", value).removeprefix("k=")) == value


def test_settings_reach_the_configuration_whatever_their_kind() -> None:
    found = configured(CONFIG, {"training.weight_decay": 1e-6, "model.top": [32, 16], "training.clip_norm": None})
    assert found.training.weight_decay == 1e-6
    assert found.model.top == (32, 16)
    assert found.training.clip_norm is None
    assert found.split == CONFIG.split
