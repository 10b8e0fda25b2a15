from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from recsys.config import EncoderConfig, ExperimentConfig, SemanticIdConfig
from recsys.content import embed_texts
from recsys.content.semantic_ids import (
    ResidualQuantiser,
    SemanticIds,
    collisions,
    make_semantic_ids,
    prefix_features,
)
from recsys.errors import InputError

CONFIG = SemanticIdConfig(levels=3, codebook=8, dim=16)
WORDS = ["winter boots", "summer shoes", "car insurance", "home loan", "gaming laptop", "running socks", "pet food"]


def ads(n: int, first: int = 0, change: dict[int, str] | None = None) -> pa.Table:
    titles = [(change or {}).get(i, f"{WORDS[i % len(WORDS)]} offer {i} {WORDS[i // 7 % 7]}")
              for i in range(first, first + n)]
    return pa.table({"ad_id": [f"a{i}" for i in range(first, first + n)], "title": titles,
                     "content_hash": [f"hash of {t}" for t in titles]})


def made(tmp_path, table: pa.Table, training: set[str], config: SemanticIdConfig = CONFIG):
    embed_texts(table, EncoderConfig(kind="hashed", dim=64), tmp_path / "store")
    manifest = make_semantic_ids([tmp_path / "store"], table, training, config, tmp_path / "ids")
    return SemanticIds.load(tmp_path / "ids"), manifest


def names(n: int, first: int = 0) -> set[str]:
    return {f"a{i}" for i in range(first, first + n)}


def test_codes_are_the_nearest_entries_level_by_level():
    matrix = np.random.default_rng(0).normal(size=(200, 24)).astype(np.float32)
    quantiser = ResidualQuantiser.fit(matrix, CONFIG)
    assert quantiser.codebooks.shape == (3, 8, 16)
    codes = quantiser.encode(matrix)
    rest = quantiser.transform.transform(matrix[:20])
    for level in range(3):
        distance = ((rest[:, None] - quantiser.codebooks[level][None]) ** 2).sum(2)
        assert (distance.argmin(1) == codes[:20, level]).all()
        rest = rest - quantiser.codebooks[level][codes[:20, level]]
    aimed = quantiser.transform.transform(matrix)
    left = [((aimed - quantiser.decode(codes[:, :n])) ** 2).sum() for n in (1, 2, 3)]
    assert (aimed**2).sum() > left[0] > left[1] > left[2]
    alone = np.concatenate([quantiser.encode(row[None]) for row in matrix])
    assert (alone == codes).all()
    again = ResidualQuantiser.fit(matrix, CONFIG)
    np.testing.assert_array_equal(again.codebooks, quantiser.codebooks)
    np.testing.assert_array_equal(ResidualQuantiser.from_tensors(quantiser.tensors()).encode(matrix), codes)


def test_prefixes_and_collisions_by_hand():
    codes = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 4], [1, 12, 3], [11, 2, 3]], np.int32)
    features = prefix_features(codes)
    assert list(features) == ["semantic_id_1", "semantic_id_2", "semantic_id_3"]
    assert features["semantic_id_1"].to_pylist() == ["1", "1", "1", "1", "11"]
    assert features["semantic_id_3"].to_pylist() == ["1-2-3", "1-2-3", "1-2-4", "1-12-3", "11-2-3"]
    assert collisions(codes) == {"texts": 5, "ids": 4, "collision_share": 0.4, "largest": 2, "prefixes": [2, 3, 4]}


def test_like_texts_share_a_prefix(tmp_path):
    ids, manifest = made(tmp_path, ads(210), names(150))
    codes, topic = ids.for_ads(ads(210)), np.arange(210) % 7
    same = (codes[:, None, 0] == codes[None, :, 0]) & ~np.eye(210, dtype=bool)
    alike = topic[:, None] == topic[None]
    assert same[alike].mean() > 2 * same[~alike].mean()
    facts = manifest["facts"]
    assert facts["texts"] == 210
    assert np.all(np.diff(facts["explained"]) > 0)
    assert 0 < facts["explained"][0] < 1
    assert len(ids.fitted) == 210
    assert ids.fitted.sum() == 150  # no held-out text


def test_a_refresh_keeps_every_id_whose_text_is_the_same(tmp_path):
    before, _ = made(tmp_path, ads(150), names(100))
    was = dict(zip(ads(150)["ad_id"].to_pylist(), before.for_ads(ads(150)).tolist(), strict=True))
    changed = {3: "a text about quite another thing: mortgage advice"}
    later = ads(150, 30, changed)  # 30 retired, 30 new
    later = pa.concat_tables([ads(10, 0, changed), later])
    after, manifest = made(tmp_path, later, names(100) | names(20, 150))
    now = dict(zip(later["ad_id"].to_pylist(), after.for_ads(later).tolist(), strict=True))
    assert manifest["facts"]["kept"] == 150
    assert {a for a in now if a in was and now[a] != was[a]} <= {"a3"}
    np.testing.assert_array_equal(after.quantiser.codebooks, before.quantiser.codebooks)
    assert "hash of " + changed[3] in after.rows
    cached = make_semantic_ids([tmp_path / "store"], later, names(100) | names(20, 150), CONFIG, tmp_path / "ids")
    assert cached["cached"]


def test_ids_are_made_anew_when_they_would_mean_something_else(tmp_path, caplog):
    made(tmp_path, ads(150), names(100))
    _, manifest = made(tmp_path, ads(150), names(50, 100))  # what it was fitted on is held out now
    assert manifest["facts"]["kept"] == 0
    assert SemanticIds.load(tmp_path / "ids").fitted.sum() == 50
    _, manifest = made(tmp_path, ads(150), names(50, 100), SemanticIdConfig(levels=2, codebook=8, dim=16))
    assert manifest["facts"]["kept"] == 0
    assert SemanticIds.load(tmp_path / "ids").codes.shape == (150, 2)


def test_damaged_files_and_texts_without_an_id_are_refused(tmp_path):
    ids, _ = made(tmp_path, ads(60), names(60))
    with pytest.raises(InputError, match="no semantic id"):
        ids.for_ads(ads(1, 60))
    with pytest.raises(InputError, match="no semantic ids"):
        SemanticIds.load(tmp_path)
    file = tmp_path / "ids" / "quantiser.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(InputError, match="not the one that was written"):
        SemanticIds.load(tmp_path / "ids")


def test_too_few_texts_leave_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="at most the 5 distinct texts"):
        made(tmp_path, ads(60), names(5))
    assert not (tmp_path / "ids").exists()


def test_settings_are_checked():
    with pytest.raises(ValidationError, match="power of two"):
        SemanticIdConfig(codebook=100)
    base = {"name": "x", "data": {"recipe": "r"}, "split": {"kind": "time"}, "encoders": {"h": {"kind": "hashed"}}}
    good = {"a": {"content": "h", "semantic_ids": {}}}
    assert ExperimentConfig(**base, arms=good).arms["a"].semantic_ids == SemanticIdConfig()
    with pytest.raises(ValidationError, match="content to make them of"):
        ExperimentConfig(**base, arms={"a": {"semantic_ids": {}}})
    with pytest.raises(ValidationError, match="ridge"):
        ExperimentConfig(**base, arms=good, model={"kind": "ridge"})


def test_the_manifest_is_plain_json(tmp_path):
    _, manifest = made(tmp_path, ads(60), names(60))
    assert json.loads(json.dumps(manifest))["facts"]["meaning"]["settings"] == CONFIG.model_dump()
