"""Train a two-tower retriever on a split dataset: one stage, one model folder.

Rows, encoder, loop and checkpoints are those of rankers; what differs is that only clicked rows train (and, with
``hard_negatives``, a share of those shown and not clicked), and the loss.
"""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.config import ModelConfig, RetrieverConfig
from recsys.content.device import device_name, matmul_ceiling
from recsys.content.semantic_ids import prefix_features
from recsys.datasets.info import load_dataset_info
from recsys.errors import InputError
from recsys.features.batches import Batch
from recsys.features.stream import StreamLoader
from recsys.log import log
from recsys.models.bundle import pick_device, save_bundle
from recsys.models.embeddings import SparseOptions
from recsys.models.towers import Sides, build_towers, sides_facts
from recsys.models.two_tower import TwoTower
from recsys.stage import Stage, sha256_bytes, write_json
from recsys.training.checkpoint import Checkpoints, TrainState
from recsys.training.content import content_matrix
from recsys.training.data import TrainingData, load_training_data, training_ad_ids
from recsys.training.journal import Journal
from recsys.training.loop import TrainingRun
from recsys.training.optimizers import make_optimizer
from recsys.training.sampled_softmax import InBatchSoftmax
from recsys.training.step import PlainStepper
from recsys.training.trainer import Content, Semantic, content_hash
from recsys.training.world import World

_CHECKPOINTS = "checkpoint"


def train_towers(split_dir: str | Path, config: RetrieverConfig, out: Path, *, seed: int = 0,
                 content: Content | None = None, semantic: Semantic | None = None, device: str = "auto",
                 name: str = "towers") -> dict[str, Any]:
    """Train the towers and write their model folder; run again with the same inputs it does nothing.

    A run that was killed continues from its last checkpoint.

    Args:
        split_dir: train.parquet and dataset.json; the test part is not opened.
        config: the experiment file's section, of kind ``two_tower``.
        out: the model folder.
        seed: same seed, same device, same number of threads: same towers.
        content: ids and raw content vectors of the ads, or None.
        semantic: semantic ids of the same ads in the same order, and what made them; or None.
        device: ``auto`` | ``cpu`` | ``cuda``.
        name: goes into the model's id.

    Returns:
        The contents of ``out/metrics.json``.

    Raises:
        InputError: missing or wrong inputs, no clicks.
        RecsysError: training diverged.
    """
    split_dir, out, world = Path(split_dir), Path(out), World.single(pick_device(device))
    settings = {"retriever": config.model_dump(mode="json", exclude={"index"}), "seed": seed, "name": name,
                "device": world.device.type, "torch": torch.__version__,
                "content": None if content is None else content_hash(content),
                "semantic_ids": None if semantic is None else sha256_bytes(
                    np.ascontiguousarray(semantic[1]).tobytes() + semantic[0].codebooks.tobytes())}
    inputs = {f: split_dir / f for f in ("train.parquet", "dataset.json")}

    def build(stage: Stage) -> None:
        _train(stage, split_dir, config, seed, content, semantic, world, name)

    world.run_stage("towers", out, config=settings, inputs=inputs, build=build)
    shutil.rmtree(out / _CHECKPOINTS, ignore_errors=True)
    return dict(json.loads((out / "metrics.json").read_text()))


def _train(stage: Stage, split_dir: Path, config: RetrieverConfig, seed: int, content: Content | None,
           semantic: Semantic | None, world: World, name: str) -> None:
    started, training = time.perf_counter(), config.training
    stage.resumable = lambda: any((stage.folder / _CHECKPOINTS).glob("epoch-*"))
    matrix = transform = None
    if content is not None:
        matrix, transform = content_matrix(*content, training_ad_ids(split_dir), config.content_dim)
    data = _clicks(split_dir, config, content, semantic)
    info = load_dataset_info(split_dir)
    sides = Sides.of(data.encoder, info.ad_features, info.ad_past)
    torch.manual_seed(seed)
    model = build_towers(data.encoder, sides, config, matrix, SparseOptions.of(training), world.device)
    optimizer, loss = make_optimizer(model, training), InBatchSoftmax(model)
    checkpoints = Checkpoints(stage.path(_CHECKPOINTS), world, training.keep_checkpoints)
    found = checkpoints.latest()
    state = TrainState(lanes=training.lanes or 1) if found is None else found.state
    loader = StreamLoader(data.train, data.keys, training.batch_size, training.shuffle_window, seed, state.lanes)
    with Journal(stage.folder, name, training.epochs * data.train.rows,
                 tensorboard=training.tensorboard) as journal:
        journal.member(0, state.step, state.samples)
        validate = None if data.validation is None else partial(_validate, model, loss, data)
        stepper = PlainStepper(model, optimizer, training, lambda *given: (*loss(*given), None))
        run = TrainingRun(model, optimizer, stepper, loader, validate, training,
                          checkpoints, journal, world)
        state = run.train(state, found)
    save_bundle(stage.folder, [model], data.encoder, config, name, matrix, transform,
                None if semantic is None else semantic[0], {"seed": seed, **sides_facts(sides)})
    stage.rows = {"train": data.train.rows}
    write_json(stage.path("metrics.json"), _account(model, state, config, world, time.perf_counter() - started))
    last = state.epochs[-1].get("validation")
    log.info("%s: %s clicked rows%s", name, f"{data.train.rows:,}",
             "" if last is None else f", validation loss {state.best:.4f}, epoch {state.best_epoch}")


def _clicks(split_dir: Path, config: RetrieverConfig, content: Content | None,
            semantic: Semantic | None) -> TrainingData:
    """The training part's clicked rows, and the share of the others that are wanted."""
    model = ModelConfig(min_count=config.min_count, hash_buckets=config.hash_buckets)
    training = config.training.model_copy(update={"negative_keep": config.hard_negatives})
    data = load_training_data(split_dir, model, training, None if content is None else content[0],
                              None if semantic is None else prefix_features(semantic[1]), test=False)
    if not data.base_rates[0]:
        raise InputError("no clicks to learn from", file=split_dir / "train.parquet", got="0 clicked rows",
                         expected="rows with a success")
    return data


def _validate(model: TwoTower, loss: InBatchSoftmax, data: TrainingData) -> list[dict[str, Any]]:
    """The loss on the validation slice's clicks among the ads of the whole batches."""
    assert data.validation is not None
    total = count = 0.0
    model.eval()
    with StreamLoader(data.validation, data.keys, 4096).epoch() as batches, torch.no_grad():
        for batch in batches:
            summed, trials = _loss(model, loss, batch.to(next(model.parameters()).device))
            total, count = total + summed, count + trials
    mean = total / max(count, 1e-12)
    return [{"log_loss": mean, "softmax_loss": mean, "clicks": count}]


def _loss(model: TwoTower, loss: InBatchSoftmax, batch: Batch) -> tuple[float, float]:
    summed, trials = loss(model(batch), batch)
    return float(summed), float(trials)


def _account(model: TwoTower, state: TrainState, config: RetrieverConfig, world: World, total: float
             ) -> dict[str, Any]:
    device, seconds = world.device, max(state.seconds, 1e-9)
    # Forward and backward of the towers, and of the products of all users with all ads of a batch.
    flops = 3 * (model.flops_per_row() + 2 * config.dim * config.training.batch_size) * state.samples
    share = min(flops / seconds / matmul_ceiling(device.type, config.training.precision), 1.0)
    return {"samples_per_second": state.samples / seconds, "input_stall_share": state.stalled / seconds,
            "seconds": total, "epochs": state.epochs, "best_epoch": state.best_epoch, "validation_loss": state.best,
            "usage": {"stage": "train", "seconds": max(total, seconds), "device": device.type,
                      "device_name": device_name(device.type), "samples": state.samples, "flops": flops,
                      "utilisation": share}}
