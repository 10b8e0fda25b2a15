from __future__ import annotations

import pytest
import torch

from recsys.errors import InputError
from recsys.models.finalmlp import BilinearFusion, FeatureGate
from tests.models.toy import ranker


@pytest.mark.parametrize("own", [False, True])
def test_fusion_is_the_papers(own: bool) -> None:
    fusion = BilinearFusion(6, 4, 2, 3)
    x, y = (torch.randn(5, 3, n) if own else torch.randn(5, n) for n in (6, 4))
    found = fusion(x, y)
    assert found.shape == (5, 3)
    for h in range(3):
        a, b = (x[:, h], y[:, h]) if own else (x, y)
        by_hand = fusion.bias[h] + a @ fusion.first[h] + b @ fusion.second[h]
        for k in range(2):
            by_hand = by_hand + ((a[:, 3 * k : 3 * k + 3] @ fusion.product[h, k]) * b[:, 2 * k : 2 * k + 2]).sum(1)
        torch.testing.assert_close(found[:, h], by_hand)


def test_gates_start_open_and_stay_between_nothing_and_double() -> None:
    gate, x = FeatureGate(6, (4,)), torch.randn(50, 6)
    torch.testing.assert_close(gate(x), x)
    with torch.no_grad():
        for p in gate.parameters():
            p.normal_(std=3.0)
    ratio = gate(x) / x
    assert ratio.min() >= 0
    assert ratio.max() <= 2
    assert ratio.max() - ratio.min() > 0.5


def test_streams_differ_and_gates_are_optional() -> None:
    model = ranker(kind="finalmlp")
    assert len(model.gates) == 2
    assert not torch.equal(model.streams[0][0].weight[:12], model.streams[1][0].weight)
    plain = ranker(kind="finalmlp", gates=())
    assert len(plain.gates) == 0
    assert plain.flops_per_row() < model.flops_per_row()


def test_parts_must_divide_the_streams() -> None:
    with pytest.raises(InputError, match="fusion_heads"):
        ranker(kind="finalmlp", fusion_heads=3)
