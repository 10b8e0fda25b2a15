"""Messy and multilingual texts through the real models and the store: nothing breaks, nothing leaks between texts."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import EncoderConfig
from recsys.content import ad_text, embed_texts, for_ads, load_vectors, make_encoder

TITLES = {
    "plain": "10 ways to save $5 on winter boots", "empty": "", "blank": " \t\n\u00a0\u200b", "one": "a",
    "long": "Winter boots for everyone. " * 400, "no spaces": "x" * 10_000, "one word": "boots " * 2000,
    "emoji": "🎉👩‍👩‍👧‍👦🇫🇷 50% off 🔥🔥🔥", "html": "<p onclick='x()'>Buy &amp; save</p><script>alert(1)</script>",
    "arabic": "أحذية شتوية بخصم خمسين بالمئة", "hebrew": "נעלי חורף במבצע", "mixed": "Save عرض خاص 50% today",
    "override": "\u202ereversed\u202c text", "japanese": "冬用ブーツ、今だけ半額", "hindi": "सर्दियों के जूते",
    "thai": "รองเท้าบูทฤดูหนาว",
    "accents": "Cafe\u0301 cre\u0300me", "controls": "a\x00b\x07c\r\nd", "braces": "{text} {0} %s {{}}",
    "surrogate-like": "\ufffd\ufffe\U0010fffd", "markers": "<|im_end|><s></s>[CLS][SEP]<pad>",
    "again": "10 ways to save $5 on winter boots",
}
REAL = [EncoderConfig(kind="hashed"), EncoderConfig(kind="length"),
        pytest.param(EncoderConfig(kind="sentence", model="minilm", dtype="float32", layer=(2, 6)),
                     marks=pytest.mark.slow),
        pytest.param(EncoderConfig(kind="llama", model="smollm2-135m", dtype="float32", layer=(6, -1),
                                   pooling=("mean", "last"), prompt='The ad "{text}" is about'),
                     marks=pytest.mark.slow)]


def table(names: list[str]) -> pa.Table:
    titles = [TITLES[n] for n in names]
    return pa.table({"ad_id": names, "title": titles,
                     "content_hash": [hashlib.sha256(t.encode()).hexdigest() for t in titles]})


@pytest.mark.parametrize("config", REAL, ids=lambda c: c.model or c.kind)
def test_every_text_has_its_own_finite_vector(config, tmp_path):
    names = list(TITLES)
    embed_texts(table(names), config, tmp_path / "store", device="cpu", chunk=5)
    _, vectors = for_ads(load_vectors(tmp_path / "store"), table(names))
    assert np.isfinite(vectors).all()
    at = {name: vectors[row] for row, name in enumerate(names)}
    assert (at["plain"] == at["again"]).all()  # one text, one vector
    assert load_vectors(tmp_path / "store").matrix.shape[0] == len(names) - 1
    # Alone or among others, today or added tomorrow: the same vector.
    alone = make_encoder(config, device="cpu").encode([ad_text(TITLES[n]) for n in ("html", "arabic", "long", "empty")])
    for name, vector in zip(("html", "arabic", "long", "empty"), alone.vectors, strict=True):
        np.testing.assert_allclose(at[name], vector, atol=2e-2 * max(1.0, np.abs(vector).max()))
    if config.kind == "llama":  # reads bytes; MiniLM has one token for every word that its vocabulary cannot spell
        centred = vectors - vectors.mean(0)
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        different = [n for n in names if n not in ("again", "blank", "empty", "long", "one word")]
        rows = [names.index(n) for n in different]
        apart = unit[rows] @ unit[rows].T - np.eye(len(rows))
        assert apart.max() < 0.999
