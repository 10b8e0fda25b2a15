from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.config import ModelConfig, TrainingConfig
from recsys.training.data import load_training_data
from recsys.training.share import pack, share_training_data, unpack
from recsys.training.world import World
from tests.training.toy import toy_content, toy_split


@pytest.mark.parametrize("history", ["mean", "attention"])
def test_what_is_told_encodes_as_what_was_fitted(tmp_path: Path, history: str) -> None:
    split = toy_split(tmp_path / "split", n=900)
    model = ModelConfig(embedding_dim=4, history=history, history_length=3)
    training = TrainingConfig(validation_share=0.2, negative_keep=0.5)
    data = load_training_data(split, model, training, toy_content()[0])
    told = pack(data)
    assert b"pickle" not in told
    assert told[8:9] == b"{"  # safetensors: a JSON header
    again = unpack(told, split, model, training)
    assert again.keys == data.keys
    assert (again.base_rates, again.failure_keep) == (data.base_rates, data.failure_keep)
    for part in ("train", "validation", "test"):
        one, two = getattr(data, part), getattr(again, part)
        np.testing.assert_array_equal(one.counts, two.counts)
        for group in range(len(one.counts)):
            a, b = one.read(group), two.read(group)
            for name in ("dense", "sparse", "content_row", "trials", "successes"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            np.testing.assert_array_equal(a.sequences[0].values, b.sequences[0].values)
            assert (a.user is None) == (b.user is None)


def test_alone_nothing_is_packed(tmp_path: Path) -> None:
    model, training = ModelConfig(embedding_dim=4), TrainingConfig()
    data = load_training_data(toy_split(tmp_path / "split", n=200), model, training)
    assert share_training_data(World.single(), lambda: data, tmp_path, model, training) is data
