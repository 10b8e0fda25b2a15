from __future__ import annotations

import pytest
import torch

from recsys.models.dcnv2 import CrossLayer, DCNv2
from tests.models.toy import ranker


@pytest.mark.parametrize("rank", [0, 8, 1000])
def test_layer_is_the_papers(rank: int) -> None:
    layer, x0, x = CrossLayer(20, rank), torch.randn(6, 20), torch.randn(6, 20)
    matrix = layer.up.weight @ layer.down.weight if rank == 8 else layer.up.weight
    assert matrix.shape == (20, 20)
    torch.testing.assert_close(layer(x0, x), x0 * (x @ matrix.T + layer.up.bias) + x, rtol=1e-5, atol=1e-5)


def test_low_rank_is_cheaper() -> None:
    full, low = (ranker(kind="dcnv2", cross_rank=r, embedding_dim=16) for r in (0, 8))
    assert isinstance(low, DCNv2)
    width = low.cross[0].up.out_features
    assert full.flops_per_row() - low.flops_per_row() == 3 * 2 * (width * width - 2 * 8 * width)


def test_layers_do_not_blow_up() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 64)
    out = x
    for _ in range(4):
        out = CrossLayer(64, 16)(x, out)
    assert float(out.detach().std()) < 50


def test_degree_rises_with_every_layer() -> None:
    """Three layers make products of four inputs, which is seen in the fourth difference along a line."""
    model = ranker(kind="dcnv2", content=False, top=(), cross_layers=3, cross_rank=0).double().eval()
    x = torch.randn(1, model.vectors, 4, dtype=torch.float64)
    at = torch.arange(6, dtype=torch.float64).view(-1, 1, 1)
    values = model.interact(at * x, torch.zeros(6, 0, dtype=torch.float64)).flatten()
    differences = values
    for _ in range(4):
        differences = differences.diff()
    assert float(differences[0].detach().abs()) > 1e-9
    torch.testing.assert_close(differences.diff(), torch.zeros(1, dtype=torch.float64), atol=1e-6, rtol=0)
