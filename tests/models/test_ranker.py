from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.features.batches import gather
from recsys.features.encoded import Encoded, Jagged
from recsys.models.build import KINDS
from recsys.models.ranker import correct_for_sampling
from tests.models.toy import batch, ranker

each_kind = pytest.mark.parametrize("kind", sorted(KINDS))


@each_kind
@pytest.mark.parametrize("content", [True, False])
def test_shapes_and_parameters(kind: str, content: bool) -> None:
    model = ranker(content, kind=kind)
    assert model(batch()).shape == (6, 1)
    names = {n for n, _ in model.named_parameters()}
    assert "content" not in names | set(model.state_dict())
    tables = {id(w) for w in model.embeddings.parameters()}
    assert not tables & {id(p) for p in model.dense_parameters()}
    assert model.flops_per_row() > 2 * 16 * 8


@each_kind
@pytest.mark.parametrize("experts", [0, 3])
def test_every_weight_learns_on_every_head(kind: str, experts: int) -> None:
    model = ranker(kind=kind, heads=("click", "engage", "convert"), experts=experts, embeddings="dense")
    logits = model(batch())
    assert logits.shape == (6, 3)
    for head in range(3):
        model.zero_grad()
        logits[:, head].square().sum().backward(retain_graph=True)
        moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert {n.split(".")[0] for n, _ in model.named_parameters()} <= {n.split(".")[0] for n in moved}
        others = [h for h in range(3) if h != head]
        assert not model.heads.bias.grad[others].any()


@each_kind
def test_content_is_used_but_never_trained(kind: str) -> None:
    model = ranker(kind=kind)
    before = model.content.clone()
    out = model(batch())
    other = replace(batch(), content_row=torch.zeros(6, dtype=torch.int64))
    assert not torch.allclose(model(other), out)
    swapped = model.with_content(torch.zeros_like(before))
    assert not torch.allclose(swapped(batch()), out)
    torch.testing.assert_close(model(batch()), out)  # the first one stays as it is
    out.sum().backward()
    assert not model.content.requires_grad
    torch.testing.assert_close(model.content, before)


@each_kind
def test_rows_do_not_depend_on_their_neighbours(kind: str) -> None:
    model = ranker(kind=kind).eval()
    data = np.arange(6)[::-1].copy()
    torch.testing.assert_close(model(batch(rows=data)).flip(0), model(batch()))


@each_kind
def test_base_rate_is_where_training_starts(kind: str) -> None:
    model = ranker(kind=kind)
    model.set_base_rates({0: 0.03})
    with torch.no_grad():
        for name, parameter in model.heads.named_parameters():
            if name != "bias":
                parameter.zero_()
    torch.testing.assert_close(torch.sigmoid(model(batch())), torch.full((6, 1), 0.03))


@each_kind
def test_weights_travel(kind: str) -> None:
    one, two = ranker(kind=kind).eval(), ranker(kind=kind).eval()
    two.content.copy_(one.content)
    assert not torch.allclose(one(batch()), two(batch()))
    two.load_weights(one.weights())
    torch.testing.assert_close(one(batch()), two(batch()))
    with pytest.raises(RuntimeError, match="expected"):
        two.load_weights({n: w[:1] for n, w in one.weights().items()})


@each_kind
def test_backends_compute_the_same_model(kind: str) -> None:
    fused, dense = ranker(kind=kind).eval(), ranker(kind=kind, embeddings="dense").eval()
    dense.content.copy_(fused.content)
    dense.load_weights(fused.weights())
    torch.testing.assert_close(dense(batch()), fused(batch()))


@each_kind
def test_model_without_dense_or_tables(kind: str) -> None:
    r = np.random.default_rng(0)
    encoded = Encoded(r.normal(size=(4, 3)).astype(np.float32), np.zeros((4, 0), np.int32), np.zeros(4, np.int32), (),
                      Jagged.empty(4))
    model = ranker(content=False, tables=[], kind=kind)
    assert model(gather(encoded, np.arange(4), [])).shape == (4, 1)
    assert ranker(content=False, dense=0, kind=kind, heads=("click", "engage"))(batch()).shape == (6, 2)


def test_correction_needs_a_share_a_head() -> None:
    model = ranker(heads=("click", "engage"))
    before = model(batch()).double()
    correct_for_sampling(model, [0.25, 1.0])
    moved = torch.tensor([[np.log(0.25), 0.0]]).expand(6, 2)
    torch.testing.assert_close(model(batch()).double() - before, moved.double(), atol=1e-6, rtol=0)
    for wrong in (0.0, 1.5, [0.5]):
        with pytest.raises(ValueError, match="one a head"):
            correct_for_sampling(model, wrong)
