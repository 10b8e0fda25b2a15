from __future__ import annotations

import torch
from recsys.kernels.dot_interaction import pair_order

from recsys.models.dlrm import DLRM
from tests.models.toy import batch, ranker


def test_logits_are_the_papers() -> None:
    """Dot products of all pairs beside the bottom MLP's vector, by hand."""
    model = ranker(content=False, top_input="dense").eval()
    assert isinstance(model, DLRM)
    looked_up = model.embeddings(batch().sparse)
    dense = model.bottom(batch().dense)
    vectors = [*looked_up.unbind(1), dense]
    pairs = [(vectors[i] * vectors[j]).sum(1) for i, j in pair_order(4)]
    by_hand = model.heads(model.top(torch.cat([dense, torch.stack(pairs, 1)], dim=1)))
    torch.testing.assert_close(model(batch()), by_hand)
    assert model.top[0].in_features == 4 + 6


def test_vectors_stand_beside_the_dots_by_default() -> None:
    assert ranker(content=False).top[0].in_features == 4 * 4 + 6
    assert ranker(content=True).top[0].in_features == 6 * 4 + 15 + 7
    assert ranker(content=False, dense=0, top_input="dense").top[0].in_features == 3
