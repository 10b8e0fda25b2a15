"""Train a ranker on a split dataset: one stage, one model folder."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.config import ModelConfig, TrainingConfig
from recsys.content.device import device_name, matmul_ceiling
from recsys.content.semantic_ids import ResidualQuantiser, prefix_features
from recsys.errors import InputError
from recsys.features.stream import StreamLoader
from recsys.log import log
from recsys.memory import keep_freed_memory
from recsys.models.build import KINDS, build_model
from recsys.models.bundle import pick_device, save_bundle
from recsys.models.embeddings import SparseOptions, plan_lines
from recsys.models.ranker import Ranker, correct_for_sampling
from recsys.stage import Stage, sha256_bytes, sha256_json, write_json
from recsys.storage import as_location, join
from recsys.training.checkpoint import Checkpoints, TrainState
from recsys.training.content import content_matrix
from recsys.training.data import TrainingData, load_training_data, training_ad_ids
from recsys.training.evaluate import evaluate
from recsys.training.journal import Journal, Watch
from recsys.training.loop import TrainingRun
from recsys.training.metrics import base_entropy
from recsys.training.optimizers import make_optimizer
from recsys.training.run_folder import CHECKPOINTS, write_run_definition
from recsys.training.share import share_training_data
from recsys.training.source import ParquetSource
from recsys.training.step import PlainStepper, Stepper
from recsys.training.world import World

Content = tuple[list[str], np.ndarray]
Semantic = tuple[ResidualQuantiser, np.ndarray]
"""Ad ids, and their content vectors float [n, d]."""

_EVALUATION_BATCH = 4096  # activations that stay in a CPU's cache
_TRAIN_METRIC_ROWS = 1 << 15
_USAGE = 2  # form of the usage row; models whose row is of an older form are trained again


def train_model(split_dir: str | Path, model: ModelConfig, training: TrainingConfig, out: Path, *, seed: int = 0,
                content: Content | None = None, semantic: Semantic | None = None, device: str = "auto",
                name: str = "model", test: bool = True, watch: Watch | None = None,
                world: World | None = None) -> dict[str, Any]:
    """Train a ranker and write its model folder; run again with the same inputs it does nothing.

    A run that was killed continues from its last checkpoint when it is started again, and ends with the metrics it
    would have had.

    Args:
        split_dir: path, or s3://, gs:// or abfs:// address, of train.parquet, test.parquet and dataset.json.
        model, training: the experiment file's sections.
        out: the model folder.
        seed: same seed, same device, same number of threads: same metrics.
        content: content vectors of the ads of both parts, or None.
        semantic: semantic ids int32 [ads, levels] of the same ads in the same order, and what made them; or None.
        device: ``auto`` | ``cpu`` | ``cuda``.
        name: goes into the model's id.
        test: False: the test part is withheld (test.parquet is not opened and need not be there), and the metrics have
            no ``test``; what a search over settings is given.
        watch: told of every evaluation on the validation slice; what it raises ends the run, which a further call with
            the same arguments goes on with.
        world: the ranks that train together, each of which calls this with the same arguments; the files must be where
            all of them see them. None: this process, on ``device``.

    Returns:
        The contents of ``out/metrics.json``.

    Raises:
        InputError: missing or wrong inputs.
        RecsysError: training diverged.
    """
    if model.kind not in KINDS:
        raise InputError("this trainer trains rankers of impressions", column="model.kind", got=model.kind,
                         expected=" or ".join(KINDS))
    split_dir, out, world = as_location(split_dir), Path(out), world or World.single(pick_device(device))
    config = {"model": model.model_dump(mode="json"), "training": training.model_dump(mode="json"), "seed": seed,
              "name": name, "device": world.device.type, "torch": torch.__version__, "usage": _USAGE,
              "content": None if content is None else content_hash(content),
              "semantic_ids": None if semantic is None else sha256_bytes(
                  np.ascontiguousarray(semantic[1]).tobytes() + semantic[0].codebooks.tobytes())}
    inputs = {f: join(split_dir, f) for f in ("train.parquet", *(["test.parquet"] if test else []), "dataset.json")}

    def build(stage: Stage) -> None:
        _train(stage, split_dir, model, training, seed, content, semantic, world, name, test, watch)

    world.run_stage("train", out, config=config, inputs=inputs, build=build)
    if world.is_main:  # only now: a kill before the folder has its name goes on from them
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return dict(world.from_main(lambda: json.loads((out / "metrics.json").read_text())))


def content_hash(content: Content) -> str:
    """SHA-256 of the ids and their vectors."""
    ids, vectors = content
    return sha256_bytes("\0".join(ids).encode() + np.ascontiguousarray(vectors).tobytes())


def _train(stage: Stage, split_dir: str | Path, model: ModelConfig, training: TrainingConfig, seed: int,
           content: Content | None, semantic: Semantic | None, world: World, name: str, test: bool,
           watch: Watch | None) -> None:
    started = time.perf_counter()
    # An error after hours of training (a lost rank, storage that hiccups, a number of ranks that does not fit) must not
    # cost what was saved.
    stage.resumable = lambda: any((stage.folder / CHECKPOINTS).glob("member-*/*"))
    if world.device.type == "cpu":
        keep_freed_memory()
    matrix = transform = None
    if content is not None:
        matrix, transform = content_matrix(*content, training_ad_ids(split_dir), model.content_dim)
    load = partial(load_training_data, split_dir, model, training, None if content is None else content[0],
                   None if semantic is None else prefix_features(semantic[1]), test)
    data = share_training_data(world, load, split_dir, model, training)
    quantiser = None if semantic is None else semantic[0]
    if world.is_main:
        write_run_definition(stage.folder / CHECKPOINTS, data, model, training, seed, name, matrix, transform,
                             quantiser)
    fitting = time.perf_counter() - started
    members = []
    with Journal(stage.folder, name, training.epochs * data.train.rows, members=training.ensemble,
                 entropy=base_entropy(data.base_rates),
                 tensorboard=training.tensorboard, watch=watch, enabled=world.is_main) as journal:
        for member in range(training.ensemble):
            members.append(_train_member(stage, data, model, training, matrix, seed, member, world, journal))
    models, states = [m for m, _ in members], [s for _, s in members]
    metrics = _metrics(models, data, world)
    total = time.perf_counter() - started
    metrics |= _account(models[0], states, training, world, total, fitting)
    save_bundle(stage.folder, models, data.encoder, model, name, matrix, transform,
                quantiser, {"seed": seed, "training": training.model_dump(mode="json")}, writes=world.is_main)
    if not world.is_main:
        return
    write_json(stage.path("metrics.json"), metrics)
    write_json(stage.path("plan.json"), {"ranks": world.size, "tables": _plan(models[0])})
    held_out = 0 if data.validation is None else data.validation.rows
    stage.rows = {"train": data.train.rows + held_out, "validation": held_out}
    stage.facts = {"samples_per_second": metrics["samples_per_second"]}
    if data.test is not None:
        stage.rows["test"], stage.facts["test"] = data.test.rows, metrics["test"]
    if "test" in metrics and metrics["test"]["auc"] is None:
        log.warning("%s: all labels of the test part are alike: AUC and normalized entropy are undefined", name)
    log.info("%s: %s", name, _describe(metrics))


def _train_member(stage: Stage, data: TrainingData, model: ModelConfig, training: TrainingConfig,
                  matrix: np.ndarray | None, seed: int, member: int, world: World,
                  journal: Journal) -> tuple[Ranker, TrainState]:
    own_seed = int(np.random.SeedSequence([seed, member]).generate_state(1)[0])
    torch.manual_seed(own_seed)
    ranker = build_model(data.encoder, model, matrix, SparseOptions.of(training), world.device, world,
                         training.parallel)
    ranker.set_base_rates(dict(enumerate(data.base_rates)))
    if world.is_main and not member:
        for line in plan_lines(_plan(ranker)):
            log.info("%s", line)
    optimizer = make_optimizer(ranker, training)
    mirror = None if training.mirror is None else f"{training.mirror.rstrip('/')}/member-{member}"
    checkpoints = Checkpoints(stage.path(f"{CHECKPOINTS}/member-{member}"), world, training.keep_checkpoints, mirror,
                              _identity(data, model, training, own_seed, matrix))
    found = checkpoints.latest()
    state = TrainState(lanes=training.lanes or world.size) if found is None else found.state
    loader = StreamLoader(data.train, data.keys, training.batch_size, training.shuffle_window, own_seed, state.lanes,
                          world.rank, world.size)
    validate = None
    if data.validation is not None:
        validate = partial(_validate, ranker, data, world)
    journal.member(member, state.step, state.samples)
    run = TrainingRun(ranker, optimizer, _stepper(ranker, optimizer, training, world, loader), loader, validate,
                      training, checkpoints, journal, world)
    state = run.train(state, found)
    correct_for_sampling(ranker, data.failure_keep)
    return ranker, state


def _identity(data: TrainingData, model: ModelConfig, training: TrainingConfig, seed: int,
              matrix: np.ndarray | None) -> str:
    """What a mirrored checkpoint must have been made with, wherever its data lay and however many ranks there were."""
    free = {"mirror", "parallel", "lanes", "checkpoint_seconds", "keep_checkpoints", "log_steps", "tensorboard"}
    return sha256_json({
        "model": model.model_dump(mode="json"), "training": training.model_dump(mode="json", exclude=free),
        "seed": seed, "rows": data.train.rows, "tables": {n: t.rows for n, t in data.encoder.tables.items()},
        "rates": [round(r, 9) for r in data.base_rates], "content": None if matrix is None else list(matrix.shape)})


def _validate(ranker: Ranker, data: TrainingData, world: World) -> list[dict[str, Any]]:
    """Metrics on the validation slice as they would be served; training goes on with the bias of the sample."""
    assert data.validation is not None
    trained = ranker.heads.bias.detach().clone()
    correct_for_sampling(ranker, data.failure_keep)
    try:
        return evaluate([ranker], _in_order(data.validation, data, world), world)
    finally:
        with torch.no_grad():
            ranker.heads.bias.copy_(trained)


def _stepper(ranker: Ranker, optimizer: torch.optim.Optimizer, training: TrainingConfig, world: World,
             loader: StreamLoader) -> Stepper:
    if world.size == 1 and not getattr(ranker.embeddings, "sharded", False):
        return PlainStepper(ranker, optimizer, training)
    from recsys.training.parallel import ParallelStepper  # torchrec.distributed takes seconds to import

    stepper = ParallelStepper(ranker, optimizer, training, world, loader.largest)
    if world.size > 1:  # all ranks were built alike; what they draw from here on (dropout) is their own
        torch.manual_seed(int(np.random.SeedSequence([torch.initial_seed(), world.rank]).generate_state(1)[0]))
    return stepper


def _plan(ranker: Ranker) -> list[dict[str, Any]]:
    return [] if ranker.embeddings is None else list(ranker.embeddings.plan())


def _metrics(models: list[Ranker], data: TrainingData, world: World) -> dict[str, Any]:
    """Metrics of the first head by part, those of further heads under ``heads``; ``train`` on a bounded sample."""
    # A row group may be much larger than the sample: so a bound on its rows, too.
    parts = {"train": (data.train.sample(_TRAIN_METRIC_ROWS), _TRAIN_METRIC_ROWS),
             "validation": (data.validation, None), "test": (data.test, None)}
    found: dict[str, Any] = {}
    for part, (source, rows) in parts.items():
        if source is not None:
            first, *rest = evaluate(models, _in_order(source, data, world), world, rows)
            names = list(models[0].head_names)
            found[part] = first | ({"heads": dict(zip(names[1:], rest, strict=True))} if rest else {})
    return found


def _in_order(source: ParquetSource, data: TrainingData, world: World) -> StreamLoader:
    return StreamLoader(source, data.keys, _EVALUATION_BATCH, lanes=world.size, rank=world.rank, world=world.size)


def _account(model: Ranker, states: list[TrainState], training: TrainingConfig, world: World, total: float,
             fitting: float) -> dict[str, Any]:
    """How the time went: speeds of the training loop alone, and the usage row that money is booked from.

    The row's seconds are those of all devices together.
    """
    device = world.device
    seconds, samples = max(sum(s.seconds for s in states), 1e-9), sum(s.samples for s in states)
    flops = 3 * model.flops_per_row() * samples  # backward costs twice the forward pass
    share = min(flops / seconds / (world.size * matmul_ceiling(device.type, training.precision)), 1.0)
    return {
        "samples_per_second": samples / seconds,
        "input_stall_share": sum(s.stalled for s in states) / seconds,
        "share_of_matmul_ceiling": share,
        "seconds": total, "fitting_seconds": fitting,
        "epochs": [s.epochs for s in states], "evaluations": [s.evaluations for s in states],
        "best_epoch": [s.best_epoch for s in states],
        "usage": {"stage": "train", "seconds": world.size * max(total, seconds), "device": device.type,
                  "device_name": device_name(device.type), "samples": samples, "flops": flops, "utilisation": share},
    }


def _describe(metrics: dict[str, Any]) -> str:
    part = next(p for p in ("test", "validation", "train") if p in metrics)
    shown = {k: metrics[part][k] for k in ("auc", "normalized_entropy", "calibration_ratio")}
    text = ", ".join(f"{k} {v:.5f}" for k, v in shown.items() if v is not None)
    return f"{part} {text}; {metrics['samples_per_second']:,.0f} samples/s"
