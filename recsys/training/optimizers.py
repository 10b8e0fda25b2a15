"""Optimizers of the dense parameters, and their states as named tensors. Tables have their own, in their backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from recsys.config import TrainingConfig


def dense_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All trained parameters but the embedding tables, by name."""
    return {n: p for n, p in model.named_parameters() if not n.startswith("embeddings.")}


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, Adagrad or SGD over the dense parameters; matrices decay, biases do not.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv:1711.05101) whatever the optimizer: each step a matrix
    shrinks by lr x weight_decay, besides what its gradient does.
    """
    parameters = dense_parameters(model).values()
    groups = [{"params": [p for p in parameters if p.dim() > 1], "decay": config.weight_decay},
              {"params": [p for p in parameters if p.dim() <= 1], "decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if config.dense_optimizer == "adamw":
        for group in groups:
            group["weight_decay"] = group.pop("decay")
        return torch.optim.AdamW(groups, lr=config.dense_lr, fused=True)
    kind = torch.optim.Adagrad if config.dense_optimizer == "adagrad" else torch.optim.SGD
    optimizer = kind(groups, lr=config.dense_lr)
    if config.weight_decay:
        optimizer.register_step_pre_hook(_decay)
    return optimizer


@torch.no_grad()
def _decay(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for group in optimizer.param_groups:
        if group["decay"]:
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["decay"])


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """``PARAMETER.KEY`` -> tensor of the optimizer's state, sharing its memory."""
    return {f"{name}.{key}": value for name, parameter in dense_parameters(model).items()
            for key, value in optimizer.state.get(parameter, {}).items()}


def load_state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer,
                       tensors: Mapping[str, torch.Tensor]) -> None:
    """Take over what :func:`state_tensors` gave; learning rates and other options stay as they are."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(".")
        found.setdefault(parameter, {})[key] = tensor
    names = {p: n for n, p in dense_parameters(model).items()}
    state = {i: found[names[p]] for i, p in enumerate(_in_order(optimizer)) if names[p] in found}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _in_order(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]
