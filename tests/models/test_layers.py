from __future__ import annotations

import torch

from recsys.models.layers import Heads, MixtureOfExperts, hidden_layers


def test_mixture_is_the_papers() -> None:
    """f_h(x) = sum over experts of softmax(W_h x)_e f_e(x), by hand."""
    layer, x = MixtureOfExperts((5, 7, 3), 4, 2), torch.randn(6, 5)
    with torch.no_grad():
        layer.gates.weight.mul_(5)
    found = layer(x)
    gates = layer.gates.weight.view(2, 4, 5), layer.gates.bias.view(2, 4)
    for head in range(2):
        weights = torch.softmax(x @ gates[0][head].T + gates[1][head], 1)
        by_hand = sum(weights[:, e : e + 1] * layer.experts[e](x) for e in range(4))
        torch.testing.assert_close(found[:, head], by_hand)
    assert not torch.allclose(found[:, 0], found[:, 1])


def test_heads_of_shared_and_of_own_layers() -> None:
    heads, x = Heads(3, 2), torch.randn(6, 3)
    torch.testing.assert_close(heads(x), heads(x.unsqueeze(1).expand(-1, 2, -1)))
    own = torch.randn(6, 2, 3)
    torch.testing.assert_close(heads(own)[:, 1], heads(own[:, 1])[:, 1])


def test_tasks_that_disagree_need_their_own_mixtures() -> None:
    """Two heads with opposite interests in the same small layer: experts tell them apart, one shared layer cannot."""
    r = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=r)
    target = torch.stack([x[:, 0] * x[:, 1], x[:, 2] * x[:, 3]], 1)
    losses = []
    for experts in (0, 2):
        torch.manual_seed(0)
        body, heads = hidden_layers(8, (6,), 2, experts, 0.0), Heads(6, 2)
        optimizer = torch.optim.Adam([*body.parameters(), *heads.parameters()], 0.05)
        for _ in range(150):
            loss = (heads(body(x)) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < 0.8 * losses[0], losses
