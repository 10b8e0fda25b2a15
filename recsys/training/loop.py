"""The training loop of one ranker, and evaluation of one or several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from recsys.config import TrainingConfig
from recsys.errors import RecsysError
from recsys.features.batches import Batch
from recsys.features.stream import StreamLoader
from recsys.log import log
from recsys.models.ranker import Ranker
from recsys.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from recsys.training.journal import Journal
from recsys.training.metrics import StreamingMetrics

_EVALUATION_ROWS = 16_384


def binomial_loss(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log likelihood of successes among trials, summed, and the trials it is a sum over.

    -s log p - (t - s) log(1 - p) = t softplus(z) - s z, weighted by the rows' weights; both results are scalars.
    """
    weight = batch.weight.unsqueeze(1)
    loss = (weight * (batch.trials * functional.softplus(logits) - batch.successes * logits)).sum()
    return loss, (weight * batch.trials).sum()


def make_optimizer(model: Ranker, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the dense parameters; matrices decay, biases do not."""
    parameters = model.dense_parameters()
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
              {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.dense_lr, fused=True)


def evaluate(models: Sequence[Ranker], loader: StreamLoader, device: torch.device) -> list[dict[str, Any]]:
    """Metrics of the models' mean probability, one dict a head.

    Args:
        models: one ranker, or an ensemble.
        loader: labelled rows; their order does not matter.
    """
    heads = len(models[0].head_names)
    metrics = [StreamingMetrics() for _ in range(heads)]
    for model in models:
        model.eval()
    with loader.epoch() as batches, torch.no_grad():
        for batch in batches:
            logits = mean_logits(models, batch.to(device))
            weight = batch.weight.numpy()[:, None].astype(np.float64)
            trials, successes = batch.trials.numpy() * weight, batch.successes.numpy() * weight
            for h in range(heads):
                metrics[h].update(logits[:, h], trials[:, h], successes[:, h])
    return [m.result() for m in metrics]


def mean_logits(models: Sequence[Ranker], batch: Batch) -> np.ndarray:
    """Log odds of the models' mean probability, float64 [B, H]."""
    z = np.stack([model(batch).double().cpu().numpy() for model in models])
    if len(z) == 1:
        return np.asarray(z[0])
    # log p and log (1 - p) of the mean, each by log-sum-exp, so that extreme odds stay exact
    return np.asarray(np.logaddexp.reduce(-np.logaddexp(0, -z)) - np.logaddexp.reduce(-np.logaddexp(0, z)))


def train_member(model: Ranker, loader: StreamLoader, validation: StreamLoader | None, config: TrainingConfig,
                 checkpoint: Path, journal: Journal, member: int = 0) -> TrainState:
    """Train one ranker to the end, from its checkpoint where there is one.

    With a validation slice the weights of the best epoch are kept, and ``config.patience`` epochs without a better
    one end the training.

    Args:
        model: freshly initialised.
        loader: training rows; validation: held-out rows, or None.
        checkpoint: file, read and replaced.
        journal: the record of the run; ``member``: which of an ensemble this is.

    Returns:
        The final state; the model holds the final (best) weights.

    Raises:
        RecsysError: the loss is not finite any more.
    """
    optimizer = make_optimizer(model, config)
    state, best = TrainState(), None
    if checkpoint.is_file():
        state, best = load_checkpoint(checkpoint, model, optimizer)
        log.info("resumed %s at epoch %d, batch %d", checkpoint.stem, state.epoch, state.batch)
    journal.member(member, state.epoch * loader.batches + state.batch, state.samples)
    while not state.done:
        _train_epoch(model, optimizer, loader, state, config, journal,
                     lambda: save_checkpoint(checkpoint, model, optimizer, state, best))  # noqa: B023
        line: dict[str, Any] = {"epoch": state.epoch, "loss": state.loss / max(state.trials, 1e-12)}
        if validation is not None:
            found = evaluate([model], validation, next(model.parameters()).device)
            line["validation"] = found[0]
            journal.evaluation(epoch=state.epoch, step=state.epoch * loader.batches + state.batch,
                               heads=dict(zip(model.head_names, found, strict=True)))
            score = float(sum(f["log_loss"] or 0.0 for f in found))
            if state.best is None or score < state.best:
                state.best, state.best_epoch, state.stale = score, state.epoch, 0
                best = model.weights()
            else:
                state.stale += 1
        state.epochs.append(line)
        log.info("%s", _describe(checkpoint.stem, line))
        state.epoch, state.batch, state.loss, state.trials = state.epoch + 1, 0, 0.0, 0.0
        state.done = state.epoch >= config.epochs or bool(config.patience and state.stale >= config.patience)
        if state.done and best is not None:
            model.load_weights(best)
            best = None
        save_checkpoint(checkpoint, model, optimizer, state, best)
    return state


def _train_epoch(model: Ranker, optimizer: torch.optim.Optimizer, loader: StreamLoader, state: TrainState,
                 config: TrainingConfig, journal: Journal, save: Callable[[], None]) -> None:
    device = next(model.parameters()).device
    embeddings = model.embeddings
    model.train()
    # Sums stay on the device and are read once an interval: reading them every batch would make a GPU wait.
    sums = torch.tensor([state.loss, state.trials], dtype=torch.float64, device=device)
    started = saved = time.perf_counter()

    def settle(stalled: float) -> None:
        nonlocal started
        state.loss, state.trials = (float(v) for v in sums.tolist())
        now = time.perf_counter()
        state.seconds, state.stalled, started = state.seconds + now - started, state.stalled + stalled, now

    def write(step: int) -> None:
        journal.step(epoch=state.epoch, step=step, samples=state.samples, loss=state.loss, trials=state.trials,
                     sparse_lr=config.sparse_lr, dense_lr=config.dense_lr, seconds=state.seconds, stalled=state.stalled)

    with loader.epoch(state.epoch, state.batch) as batches:
        for batch in batches:
            batch = batch.to(device)
            optimizer.zero_grad(set_to_none=True)
            if embeddings is not None:
                embeddings.zero_grad()
            loss, trials = binomial_loss(model(batch), batch)
            (loss / trials.clamp_min(1e-12)).backward()
            optimizer.step()
            if embeddings is not None:
                embeddings.step()
            sums += torch.stack([loss.detach(), trials.detach()])
            state.batch += 1
            state.samples += len(batch)
            journal.advance(len(batch))
            step = state.epoch * loader.batches + state.batch
            if journal.due(step):
                settle(batches.stalled)
                batches.stalled = 0.0
                write(step)
            if time.perf_counter() - saved > config.checkpoint_seconds:
                settle(batches.stalled)
                batches.stalled = 0.0
                save()
                saved = started = time.perf_counter()
        settle(batches.stalled)
        write(state.epoch * loader.batches + state.batch)
    if not np.isfinite(state.loss):
        raise RecsysError(f"training diverged in epoch {state.epoch}: the loss is not finite; "
                          f"lower training.dense_lr ({config.dense_lr}) or training.sparse_lr ({config.sparse_lr})")


def _describe(name: str, line: dict[str, Any]) -> str:
    text = f"{name} epoch {line['epoch']}: loss {line['loss']:.5f}"
    found = line.get("validation")
    if found and found["normalized_entropy"] is not None:
        text += f", validation NE {found['normalized_entropy']:.5f}, AUC {found['auc']:.5f}"
    return text
