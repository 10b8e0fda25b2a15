from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.config import ModelConfig, SemanticIdConfig, TrainingConfig
from recsys.content.semantic_ids import ResidualQuantiser
from recsys.models.build import KINDS
from recsys.models.bundle import load_bundle
from recsys.serving.scorer import Scorer
from recsys.training.trainer import train_model
from tests.training.toy import toy_content, toy_split, toy_table

FORMAT1 = Path(__file__).parent / "data/format1"


def test_a_folder_of_the_first_release_scores_as_it_did() -> None:
    """Trained and scored before rankers of several kinds were there: a DLRM with content and two heads."""
    expected = json.loads((FORMAT1 / "expected.json").read_text())
    found = Scorer.load(FORMAT1).score(toy_table(20, 9))
    assert list(found) == list(expected) == ["click", "engage"]
    for head, probabilities in expected.items():
        np.testing.assert_allclose(found[head], probabilities, rtol=1e-5)


def test_new_ads_leave_the_others_scores() -> None:
    ids, vectors = toy_content()
    bundle = load_bundle(FORMAT1)
    wider = bundle.with_ads(["new"], vectors[:1] + 1)
    assert wider.content.shape[0] == bundle.content.shape[0] + 1
    assert wider.models[0].heads is bundle.models[0].heads
    rows = toy_table(20, 9)
    np.testing.assert_array_equal(Scorer(wider).score(rows)["click"], Scorer(bundle).score(rows)["click"])
    assert ids[0] in bundle.encoder.content.values.to_pylist()


@pytest.mark.parametrize(("kind", "history"), [(k, h) for k in sorted(KINDS) for h in ("mean", "attention")
                                               if (k, h) != ("dlrm", "mean")])  # that one is tests/serving's
def test_semantic_ids_and_new_ads_with_every_kind(tmp_path: Path, kind: str, history: str) -> None:
    torch.set_num_threads(1)
    ids, vectors = toy_content()
    split = toy_split(tmp_path / "split", 800, sparse=["user_id", "surface"], ad_features=[])
    quantiser = ResidualQuantiser.fit(vectors, SemanticIdConfig(levels=2, codebook=4, dim=8))
    config = ModelConfig(kind=kind, embedding_dim=4, bottom=(8,), top=(16,), streams=((16,), (16,)), content_dim=8,
                         history=history, history_length=2)
    train_model(split, config, TrainingConfig(batch_size=128), tmp_path / "model", content=(ids, vectors),
                semantic=(quantiser, quantiser.encode(vectors)))
    scorer, table = Scorer.load(tmp_path / "model"), toy_table(50, 9)
    assert load_bundle(tmp_path / "model").encoder.sparse[-2:] == ("semantic_id_1", "semantic_id_2")
    renamed = table.set_column(table.column_names.index("ad_id"), "ad_id",
                               pa.array([f"new {a}" for a in table["ad_id"].to_pylist()]))
    before, unknown = scorer.score(table)["click"], scorer.score(renamed)["click"]
    grown = scorer.with_ads([f"new {i}" for i in ids], vectors).score(renamed)["click"]
    np.testing.assert_allclose(grown, before, atol=1e-6)  # same content: same score
    assert np.abs(unknown - before).max() > 1e-4
