from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.config import ModelConfig
from recsys.features.batches import Batch, gather
from recsys.features.encoded import Encoded, Jagged
from recsys.models.dlrm import DLRM
from recsys.models.embeddings import Table

CONFIG = ModelConfig(embedding_dim=4, bottom=(8,), top=(16, 8))
TABLES = [Table("ad_id", 20, ("ad_id", "history")), Table("site", 5, ("site",))]


def _batch(n: int = 6, rows: np.ndarray | None = None) -> Batch:
    r = np.random.default_rng(0)
    history = Jagged(r.integers(0, 9, 2 * n).astype(np.int32), np.arange(n + 1) * 2)
    data = Encoded(r.normal(size=(n, 3)).astype(np.float32), r.integers(0, 5, (n, 2)).astype(np.int32),
                   r.integers(0, 9, n).astype(np.int32), (history,), history, np.ones((n, 1), np.float32),
                   np.ones((n, 1), np.float32))
    return gather(data, np.arange(n) if rows is None else rows, ["ad_id", "site", "history"])


def _model(content: bool = True, **more: object) -> DLRM:
    matrix = torch.cat([torch.zeros(1, 6), torch.randn(8, 6)]) if content else None
    return DLRM(TABLES, 3, CONFIG.model_copy(update=more), ("click",), matrix, has_history=content)


@pytest.mark.parametrize("content", [True, False])
def test_shapes_and_parameters(content: bool) -> None:
    model = _model(content)
    assert model(_batch()).shape == (6, 1)
    names = {n for n, _ in model.named_parameters()}
    assert "content" not in names | set(model.state_dict())
    tables = {id(w) for w in model.embeddings.parameters()}
    assert not tables & {id(p) for p in model.dense_parameters()}
    assert model.flops_per_row() > 2 * 16 * 8


def test_content_is_used_but_never_trained() -> None:
    model = _model()
    before = model.content.clone()
    out = model(_batch())
    out.sum().backward()
    assert not model.content.requires_grad
    torch.testing.assert_close(model.content, before)
    other = replace(_batch(), content_row=torch.zeros(6, dtype=torch.int64))
    assert not torch.allclose(model(other), out)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    model, batch = _model().eval(), _batch()
    data = np.arange(6)[::-1].copy()
    torch.testing.assert_close(model(_batch(rows=data)).flip(0), model(batch))


def test_base_rate_is_where_training_starts() -> None:
    model = _model()
    model.set_base_rates({0: 0.03})
    with torch.no_grad():
        model.heads.weight.zero_()
    torch.testing.assert_close(torch.sigmoid(model(_batch())), torch.full((6, 1), 0.03))


def test_weights_travel() -> None:
    one, two = _model().eval(), _model().eval()
    two.content.copy_(one.content)
    assert not torch.allclose(one(_batch()), two(_batch()))
    two.load_weights(one.weights())
    torch.testing.assert_close(one(_batch()), two(_batch()))
    with pytest.raises(RuntimeError, match="expected"):
        two.load_weights({n: w[:1] for n, w in one.weights().items()})


def test_backends_compute_the_same_model() -> None:
    fused, dense = _model().eval(), _model(embeddings="dense").eval()
    dense.content.copy_(fused.content)
    dense.load_weights(fused.weights())
    torch.testing.assert_close(dense(_batch()), fused(_batch()))


def test_model_without_dense_or_tables() -> None:
    r = np.random.default_rng(0)
    encoded = Encoded(r.normal(size=(4, 3)).astype(np.float32), np.zeros((4, 0), np.int32), np.zeros(4, np.int32), (),
                      Jagged.empty(4))
    assert DLRM([], 3, CONFIG, ("click",))(gather(encoded, np.arange(4), [])).shape == (4, 1)
    assert DLRM(TABLES, 0, CONFIG, ("click", "engage"))(_batch()).shape == (6, 2)
