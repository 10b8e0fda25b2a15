from __future__ import annotations

import copy
import platform
from typing import Any

import pytest
import torch
from torch import nn

from recsys.models.packed_linear import PackedLinear, can_pack, pack_linears
from recsys.models.scoring import Scoring, _narrow, has_bfloat16
from tests.models import toy

pytestmark = pytest.mark.skipif(not can_pack() or not has_bfloat16(Scoring(), torch.device("cpu")),
                                reason="needs a processor with bfloat16 and a PyTorch with oneDNN")


def pair(**config: Any) -> tuple[nn.Module, nn.Module]:
    """A ranker of bfloat16 products, and the same with packed layers."""
    torch.manual_seed(0)
    plain = toy.ranker(**config).eval().requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, nn.Linear):  # some start at zero
            module.weight.normal_(std=0.3)
    packed = copy.deepcopy(plain)
    for model in (plain, packed):
        _narrow(model)
    pack_linears(packed)
    return plain, packed


@pytest.mark.parametrize("config", [
    {"kind": "dlrm"}, {"kind": "dcnv2"}, {"kind": "finalmlp"}, {"kind": "dlrm", "experts": 2}], ids=str)
@pytest.mark.parametrize("rows", [1, 6, 300])
def test_packed_layers_give_the_same_bits(config: dict[str, Any], rows: int) -> None:
    plain, packed = pair(**config)
    assert any(isinstance(m, PackedLinear) for m in packed.modules())
    batch = toy.batch(rows)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = plain(batch)
        assert want.abs().max() > 0.01
        if rows == 1 and platform.machine() != "x86_64":
            torch.testing.assert_close(packed(batch), want, atol=0.02, rtol=0.02)
        else:
            assert torch.equal(packed(batch), want)


def test_a_packed_ranker_is_copied_and_counted_as_the_plain_one() -> None:
    plain, packed = pair(kind="dcnv2")
    assert packed.flops_per_row() == plain.flops_per_row()
    twin, batch = copy.deepcopy(packed), toy.batch(6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = packed(batch)
        assert torch.equal(twin(batch), want)
        for layer in twin.modules():  # a copy of its own: what is done to it does not reach the other
            if isinstance(layer, PackedLinear):
                layer.relu = not layer.relu
        assert torch.equal(packed(batch), want)
        assert not torch.equal(twin(batch), want)


def test_attention_keeps_its_layers() -> None:
    attention = toy.TABLES[0].features[1]
    tables = [toy.Table("ad_id", 20, ("ad_id", f"{attention}@0", f"{attention}@1"), lists=False), toy.TABLES[1]]
    _, packed = pair(history="attention", tables=tables, content=False)
    kinds = {name: type(m) for name, m in packed.named_modules()}
    assert kinds[f"attention.{attention}.score.1"] is nn.Linear
    assert kinds["bottom.1"] is PackedLinear


def test_shapes_and_relu() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(13, 5).to(torch.bfloat16)
    x = torch.randn(4, 3, 13)
    with torch.no_grad():
        want = linear(x.bfloat16())
        for relu in (False, True):
            found = PackedLinear(linear, relu)(x)
            assert found.shape == (4, 3, 5)
            assert torch.equal(found, want.relu() if relu else want)
        assert PackedLinear(linear, True)(x[:0]).shape == (0, 3, 5)
        alone = PackedLinear(nn.Linear(13, 5, bias=False).to(torch.bfloat16), False)
        assert alone(x).dtype == torch.bfloat16
