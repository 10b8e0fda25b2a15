"""LoRA over a reading made once: the same numbers as the whole model, before training, after it, and from the file."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from recsys.config import AdaptConfig, EncoderConfig
from recsys.content import make_encoder
from recsys.content.adaptable import AdaptableLlama
from recsys.errors import InputError

TEXTS = ["the quick brown fox", "", "save $5 on foxes " * 9, "🎉 مرحبا", "x" * 300, "the lazy dog"]


def config(folder, **settings) -> EncoderConfig:
    return EncoderConfig(kind="llama", model=str(folder), dtype="float32", **settings)


def adaptable(folder, layers: int = 1, **settings) -> AdaptableLlama:
    model = AdaptableLlama(config(folder, **settings), AdaptConfig(layers=layers, rank=2), device="cpu")
    model._products = "float32"
    model.read(TEXTS)
    return model


@pytest.mark.parametrize("settings", [{}, {"layer": (1, 2), "pooling": ("mean", "last")}, {"layer": (2, 3)},
                                      {"prompt": "{text}\n{text}", "pooling": ("mean_all",)}])
def test_what_is_saved_gives_the_vectors_that_were_trained(tiny_llama, tmp_path, settings):
    model = adaptable(tiny_llama, **settings)
    want = make_encoder(config(tiny_llama, **settings), device="cpu").encode(TEXTS).vectors[:, -model.dim :]
    order = np.array([5, 2, 0, 1, 4, 3])
    np.testing.assert_allclose(model.pooled(order).detach().numpy(), want[order], atol=1e-5)
    with torch.no_grad():
        for parameter in model.trainable():
            parameter += torch.randn_like(parameter) * 0.2
    trained = model.pooled(order).detach().numpy()
    assert np.abs(trained - want[order]).max() > 0.01
    model.save(tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["adapter_config.json",
                                                                        "adapter_model.safetensors"]
    plain = make_encoder(config(tiny_llama, **settings), device="cpu")
    loaded = make_encoder(config(tiny_llama, adapter=str(tmp_path / "adapter"), **settings), device="cpu")
    got = loaded.encode(TEXTS).vectors
    np.testing.assert_allclose(got[order, -model.dim :], trained, atol=1e-4)
    assert got.shape[1] == plain.dim
    np.testing.assert_allclose(got[:, : -model.dim], plain.encode(TEXTS).vectors[:, : -model.dim], atol=1e-5)
    assert loaded.revision != plain.revision
    assert loaded.parameters == plain.parameters  # the updates were added to the weights


def test_only_the_updates_of_the_last_layers_learn(tiny_llama):
    model = adaptable(tiny_llama, layers=2)
    assert model.start == 1
    names = {n for n, p in model._model.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in n and ("layers.1." in n or "layers.2." in n) for n in names)
    model.pooled(np.arange(3)).square().sum().backward()
    assert all(p.grad is not None for p in model.trainable())
    assert not any(row.requires_grad for row in model._rows)


def test_bad_adapters_are_refused_in_one_line(tiny_llama, tmp_path):
    with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
        make_encoder(config(tiny_llama, adapter=str(tmp_path)))
    model = adaptable(tiny_llama)
    model.save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "torn")
    weights = tmp_path / "torn" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="adapter does not fit"):
        make_encoder(config(tiny_llama, adapter=str(tmp_path / "torn")), device="cpu").encode(["a"])
    with pytest.raises(InputError, match=r"adapt\.layers"):
        AdaptableLlama(config(tiny_llama, layer=1), AdaptConfig(layers=2))
    with pytest.raises(ValueError, match="only of kind llama"):
        EncoderConfig(kind="sentence", adapter="a")
