"""Adapting an encoder to clicks: it learns what the frozen states hide, and never looks at the test part."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import AdaptConfig, EncoderConfig, load_config
from recsys.errors import InputError
from recsys.experiment.content import embed_arm
from recsys.ledger import book, load_card
from recsys.training.adapt import adapt_encoder, pairwise_loss
from tests.content.conftest import make_llama

WORDS = ["fox", "dog", "cat", "car", "home", "boots", "loan", "pet", "win", "save"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


def headline_split(folder, tests: int = 120):
    """Tests of three headlines; a headline with as many different words as "dog"s draws more clicks."""
    rng = np.random.default_rng(0)
    titles, rows = [], []
    for test in range(tests):
        for _ in range(3):
            words = rng.choice(WORDS, 4)
            good = ("dog" in words) != ("win" in words)
            rows.append((f"t{test}", len(titles), int(rng.binomial(3000, 0.02 * (1.8 if good else 1.0)))))
            titles.append(" ".join(words))
    ids = [f"a{r[1]}" for r in rows]
    table = pa.table({"impression_id": [f"i{k}" for k in range(len(rows))], "request_id": [r[0] for r in rows],
                      "ad_id": ids, "group_id": [r[0] for r in rows], "trials": pa.array([3000] * len(rows)),
                      "successes": pa.array([r[2] for r in rows])})
    folder.mkdir()
    pq.write_table(table, folder / "train.parquet")
    pq.write_table(pa.table({"ad_id": ids, "title": titles, "content_hash": ids}), folder / "ads.parquet")
    return folder


def encoder(tiny, **adapt) -> EncoderConfig:
    settings = {"layers": 2, "epochs": 3, "learning_rate": 3e-3, "rank": 4, "batch_size": 48} | adapt
    return EncoderConfig(kind="llama", model=str(tiny), dtype="float32", layer=2, adapt=AdaptConfig(**settings))


def test_the_loss_is_that_of_all_pairs_of_a_test():
    rng = np.random.default_rng(0)
    test = np.repeat([0, 1, 2], [4, 1, 3])
    score, target, weight = rng.normal(size=8), rng.normal(size=8), rng.uniform(1, 9, 8)
    pairs = 0.0
    for t in range(3):
        rows = np.flatnonzero(test == t)
        pairs += sum(weight[i] * weight[j] / weight[rows].sum()
                     * ((target[i] - target[j]) - (score[i] - score[j])) ** 2
                     for k, i in enumerate(rows) for j in rows[k + 1 :])
    got = pairwise_loss(*(torch.from_numpy(v) for v in (score, target, weight, test)))
    assert float(got) == pytest.approx(pairs / weight.sum())


def test_headline_tests_teach_and_the_best_epoch_is_kept(tiny, tmp_path):
    split = headline_split(tmp_path / "split")
    manifest = adapt_encoder(encoder(tiny), split, tmp_path / "adapter", device="cpu")
    history = manifest["facts"]["held_out"]
    assert len(history) == 4
    assert min(history) < 0.98 * history[0]
    assert manifest["facts"]["epoch"] == int(np.argmin(history))
    usage = json.loads((tmp_path / "adapter" / "usage.json").read_text())
    assert (usage["stage"], usage["device"]) == ("finetune", "cpu")
    assert usage["seconds"] > 0
    assert usage["flops"] == 6 * usage["parameters"] * usage["tokens"] > 0
    assert adapt_encoder(encoder(tiny), split, tmp_path / "adapter", device="cpu")["cached"]
    [row] = book([usage], load_card("2026-11"), "aws-c6a-large", "e", "arm").to_pylist()
    assert row["x_Stage"] == "finetune"
    assert row["EffectiveCost"] > 0


def test_an_adaptation_that_only_harms_changes_nothing(tiny, tmp_path):
    split = headline_split(tmp_path / "split", tests=30)
    manifest = adapt_encoder(encoder(tiny, learning_rate=5.0, epochs=1), split, tmp_path / "adapter", device="cpu")
    assert manifest["facts"]["epoch"] == 0
    from safetensors.numpy import load_file

    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not any(v.any() for k, v in weights.items() if "lora_B" in k)


def test_co_clicks_bring_ads_together(tiny, tmp_path):
    rng = np.random.default_rng(1)
    titles = [f"{a} {b} {rng.choice(WORDS)} {rng.choice(WORDS)}" for a in ("fox", "car") for b in WORDS]
    topic, rows = np.repeat([0, 1], 10), []
    for user in range(48):
        for step in range(3):  # a user stays with a topic
            rows.append((f"u{user}", int(rng.choice(np.flatnonzero(topic == user % 2))), step))
    folder = tmp_path / "split"
    folder.mkdir()
    pq.write_table(pa.table({
        "impression_id": [f"i{k}" for k in range(len(rows))], "request_id": [f"r{k}" for k in range(len(rows))],
        "user_id": [r[0] for r in rows], "ad_id": [f"a{r[1]}" for r in rows],
        "ts": pa.array([r[2] * 1_000_000 for r in rows], pa.timestamp("us", "UTC")),
        "click": pa.array([1] * len(rows), pa.int8())}), folder / "train.parquet")
    ids = [f"a{k}" for k in range(len(titles))]
    pq.write_table(pa.table({"ad_id": ids, "title": titles, "content_hash": ids}), folder / "ads.parquet")
    facts = adapt_encoder(encoder(tiny, temperature=0.3, epochs=4), folder, tmp_path / "adapter", device="cpu")["facts"]
    assert min(facts["held_out"]) < facts["held_out"][0] - 0.05

    def apart(**more) -> float:
        from recsys.content import make_encoder

        v = make_encoder(EncoderConfig(kind="llama", model=str(tiny), dtype="float32", layer=2, **more),
                         device="cpu").encode(titles).vectors
        v = v - v.mean(0)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        return float((v @ v.T)[:10, :10].mean() - (v @ v.T)[:10, 10:].mean())

    assert apart(adapter=str(tmp_path / "adapter")) > apart() + 0.05


def test_an_experiment_adapts_embeds_and_books(tiny, tmp_path):
    headline_split(tmp_path / "split")
    given = ", ".join(f"{k}: {v}" for k, v in {"kind": "llama", "model": tiny, "layer": 2, "dtype": "float32"}.items())
    config = load_config("upworthy", [f"encoders.mine={{{given}, adapt: {{layers: 1, epochs: 1}}}}",
                                      "arms.mine={content: mine}"])
    embed_arm(config, config.arms["mine"], tmp_path)
    manifest = json.loads((tmp_path / "content" / "mine" / "manifest.json").read_text())
    assert "+ adapter" in manifest["facts"]["model_revision"]
    assert (tmp_path / "adapters" / "mine" / "adapter_model.safetensors").is_file()


def test_nothing_to_learn_from_is_said(tiny, tmp_path):
    split = headline_split(tmp_path / "split", tests=1)
    with pytest.raises(InputError, match="stories"):
        adapt_encoder(encoder(tiny), split, tmp_path / "adapter", device="cpu")
    with pytest.raises(InputError, match="how to adapt"):
        adapt_encoder(EncoderConfig(kind="llama", model=str(tiny)), split, tmp_path / "adapter")
