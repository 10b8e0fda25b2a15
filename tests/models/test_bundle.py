from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from recsys.models.bundle import load_bundle
from recsys.serving.scorer import Scorer
from tests.training.toy import toy_content, toy_table

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
