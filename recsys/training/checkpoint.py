"""Checkpoints: weights, both optimizers' states, random state and cursor in one safetensors file.

One file, replaced atomically, so that a killed run never finds weights of one moment beside the cursor of another.
Learning rates are not in it: they come from the configuration, which is part of the stage's key.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from recsys.models.ranker import Ranker


@dataclass
class TrainState:
    """Where a training run stands.

    Attributes:
        epoch, batch: the cursor; the next batch to train on.
        loss, trials: running sums of the current epoch.
        best, best_epoch, stale: best validation loss so far, its epoch, epochs since.
        epochs: one dict a finished epoch.
        seconds, stalled, samples: of the training loop, over all processes that took part.
        done: nothing is left to train.
    """

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    trials: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    stalled: float = 0.0
    samples: int = 0
    done: bool = False


def _adam_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {f"adam.{i}.{key}": value for i, p in enumerate(parameters)
            for key, value in optimizer.state.get(p, {}).items()}


def save_checkpoint(path: Path, model: Ranker, optimizer: torch.optim.Optimizer, state: TrainState,
                    best: dict[str, torch.Tensor] | None) -> None:
    """Write everything that continuing needs.

    Args:
        path: the file, replaced atomically.
        best: the best weights so far, where they are not the current ones.
    """
    tensors = {f"weight.{n}": t for n, t in model.weights().items()}
    tensors |= {f"best.{n}": t for n, t in (best or {}).items()}
    if model.embeddings is not None:
        tensors |= {f"sparse.{n}": t for n, t in model.embeddings.checkpoint_tensors().items()
                    if not n.startswith("table.")}
    tensors |= _adam_tensors(optimizer)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    # Clones: safetensors refuses tensors that share memory (the fused tables' states are slices of one buffer).
    save_file({n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}, partial,
              metadata={"state": json.dumps(asdict(state))})
    os.replace(partial, path)


def load_checkpoint(path: Path, model: Ranker,
                    optimizer: torch.optim.Optimizer) -> tuple[TrainState, dict[str, torch.Tensor] | None]:
    """Take over a checkpoint, in place.

    Returns:
        The state, and the best weights so far where the file has them.
    """
    with safe_open(path, "pt") as file:
        tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        state = TrainState(**json.loads(file.metadata()["state"]))

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    model.load_weights(part("weight."))
    if model.embeddings is not None:
        saved = part("sparse.")
        for name, target in model.embeddings.checkpoint_tensors().items():
            if not name.startswith("table."):
                target.copy_(saved[name])
        model.embeddings.loaded()
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in part("adam.").items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return state, part("best.") or None
