from __future__ import annotations

import pytest
import torch
from torch import nn

from recsys.config import TrainingConfig
from recsys.training.optimizers import load_state_tensors, make_optimizer, state_tensors

KINDS = ("adamw", "adagrad", "sgd")


def _model() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    model.add_module("embeddings", nn.Linear(2, 2))  # never the dense optimizer's
    return model


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model[2](model[1](model[0](x))).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_state_taken_over_gives_the_same_next_step(kind: str) -> None:
    model, config = _model(), TrainingConfig(dense_optimizer=kind, dense_lr=0.1)
    optimizer = make_optimizer(model, config)
    for seed in range(3):
        _step(model, optimizer, seed)
    tensors = {n: t.clone() for n, t in state_tensors(model, optimizer).items()}
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    assert bool(tensors) == (kind != "sgd")
    _step(model, optimizer, 9)

    def resumed(state: dict[str, torch.Tensor]) -> torch.Tensor:
        other = _model()
        other.load_state_dict(weights)
        again = make_optimizer(other, config)
        load_state_tensors(other, again, state)
        _step(other, again, 9)
        return other[0].weight

    assert torch.equal(resumed(tensors), model[0].weight)
    if kind != "sgd":  # the trap: a state that is lost is silent, but another step
        assert not torch.equal(resumed({}), model[0].weight)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_is_decoupled_and_spares_biases(kind: str) -> None:
    lr, decay = 0.1, 0.5
    models = [_model(), _model()]
    for model, weight_decay in zip(models, (0.0, decay), strict=True):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        _step(model, make_optimizer(model, TrainingConfig(dense_optimizer=kind, dense_lr=lr,
                                                          weight_decay=weight_decay)), 0)
    plain, decayed = (dict(m.named_parameters()) for m in models)
    torch.testing.assert_close(decayed["0.weight"], plain["0.weight"] - lr * decay * before["0.weight"])
    assert torch.equal(decayed["0.bias"], plain["0.bias"])
    assert torch.equal(decayed["embeddings.weight"], before["embeddings.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_rates_stay_those_of_the_configuration(kind: str) -> None:
    model = _model()
    first = make_optimizer(model, TrainingConfig(dense_optimizer=kind, dense_lr=0.1))
    _step(model, first, 0)
    second = make_optimizer(model, TrainingConfig(dense_optimizer=kind, dense_lr=0.02))
    load_state_tensors(model, second, state_tensors(model, first))
    assert {g["lr"] for g in second.param_groups} == {0.02}
