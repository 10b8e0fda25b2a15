"""A training run's size and speed: tables and where they go, operations and bytes of one row, rows a second.

The speed of an accelerator is a roofline (Williams, Waterman, Patterson 2009): the longest of what arithmetic, memory
and network take for a row, by the share of that roofline which the best published run of a known model reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from recsys.config import ExperimentConfig, ModelConfig
from recsys.errors import InputError, Refused
from recsys.models.build import KINDS
from recsys.models.embeddings.base import SparseOptions, Table, state_width
from recsys.models.embeddings.plan import placements, table_bytes
from recsys.models.ranker import Inputs
from recsys.planning.speeds import SpeedCard

MOST_MACHINES = 512


@dataclass(frozen=True)
class Shape:
    """One ranker, as far as its speed goes.

    Attributes:
        vectors: embedding vectors of a row, one a feature.
        lookups: table rows read for a row: more than ``vectors`` where bags are long.
        dim: numbers of a vector; state: numbers of the optimizer beside a table row.
        flops: operations of one row forward.
        dense_parameters: numbers of the part that every rank has whole.
        wire: bytes of a number between ranks.
        dense: dense features.
    """

    vectors: int
    lookups: float
    dim: int
    state: int
    flops: int
    dense_parameters: int
    wire: int = 4
    dense: int = 0


def shape_of(model: ModelConfig, tables: Mapping[str, float], dense: int, content: int | None, state: int,
             wire: int = 4) -> Shape:
    """Sizes of a ranker that is never allocated.

    Args:
        model: its architecture.
        tables: feature -> rows of a bag on average.
        dense: width of the dense block.
        content: length of the content vectors, or None.
        state: numbers of the tables' optimizer a row.
        wire: bytes of a number between ranks.

    Raises:
        InputError: a kind that is no ranker.
    """
    if model.kind not in KINDS:
        raise InputError("not a ranker of impressions", column="model.kind", got=model.kind,
                         expected=" or ".join(KINDS))
    plain = model.model_copy(update={"history": "mean"})  # attention needs the lists' names; its share is small
    with torch.device("meta"):
        matrix = None if content is None else torch.empty(1, content)
        ranker = KINDS[plain.kind](Inputs(None, tuple(tables), dense, matrix), plain)
    return Shape(len(tables), sum(tables.values()), model.embedding_dim, state, ranker.flops_per_row(),
                 sum(p.numel() for p in ranker.parameters()), wire, dense)


def roofline(shape: Shape, speeds: SpeedCard, accelerator: str, accelerators: int, batch: int) -> dict[str, float]:
    """Seconds that one row takes of one accelerator, training: {"arithmetic", "memory", "network"}.

    * arithmetic: three times the forward pass (backward is twice it), by the peak.
    * memory: a looked-up row is read, its gradient written and read, the row and its optimizer's state read and
      written.
    * network: pooled vectors there and their gradients back (all-to-all), but for the share that stays; and the dense
      gradients (ring all-reduce, twice their bytes), once a batch. Within a machine over its links, beyond over the
      network.
    """
    device = speeds.accelerators[accelerator]
    memory = 4.0 * shape.lookups * (shape.dim * 5 + shape.state * 2)
    network = 0.0
    if accelerators > 1:
        own = batch / accelerators
        away = (accelerators - 1) / accelerators
        bytes_ = 2.0 * shape.vectors * shape.dim * shape.wire * away + 2.0 * 4.0 * shape.dense_parameters * away / own
        rate = device.link_bytes if accelerators <= 8 else device.network_bytes
        network = bytes_ / (rate * speeds.network_share.value)
    return {"arithmetic": 3.0 * shape.flops / device.peak_flops, "memory": memory / device.memory_bytes,
            "network": network}


@cache  # building a model to count its operations takes longer than all the rest of a plan
def _known_shape(model: str, lookups: float, dense: int) -> Shape:
    config = ModelConfig.model_validate_json(model)
    return shape_of(config, {f"C{i}": lookups / 26 for i in range(26)}, dense, None,
                    state_width("rowwise_adagrad", config.embedding_dim), wire=2)


def reference_share(speeds: SpeedCard) -> float:
    """The share of its roofline that the card's published run reaches."""
    known = speeds.reference
    shape = _known_shape(known.model.model_dump_json(), known.lookups, known.dense)
    ideal = max(roofline(shape, speeds, known.accelerator, known.accelerators, known.batch).values())
    return known.samples_a_second / known.accelerators * ideal


def seconds_a_row(shape: Shape, speeds: SpeedCard, accelerator: str, accelerators: int, batch: int) -> dict[str, float]:
    """Seconds of one accelerator a row, as they can be had: the roofline's parts by :func:`reference_share`, and
    "input", the processors' time of reading and encoding it."""
    share = reference_share(speeds)
    parts = {k: v / share for k, v in roofline(shape, speeds, accelerator, accelerators, batch).items()}
    return parts | {"input": input_seconds(shape, speeds) / speeds.cores_an_accelerator.value}


def input_seconds(shape: Shape, speeds: SpeedCard) -> float:
    """Seconds of one core that reading and encoding a row takes: in proportion to its columns and list items."""
    rate = speeds.cpu.input
    return rate.microseconds_a_row * 1e-6 * (shape.lookups + shape.dense) / rate.columns


@cache
def benchmark_flops() -> int:
    """Operations of one row forward of the model that ``benchmarks/train_throughput.py`` times."""
    model = ModelConfig(embedding_dim=16, bottom=(512, 256), top=(512, 256), top_input="dense")
    return shape_of(model, {f"C{i}": 1.0 for i in range(26)}, 13, None, 1).flops


def cpu_rows_a_second(shape: Shape, speeds: SpeedCard, cores: int) -> float:
    """Rows a second of one machine without an accelerator: the measured operations a second of a core, times cores."""
    rate = speeds.cpu.train
    return rate.rows_a_second / rate.cores * benchmark_flops() / shape.flops * cores


def machines_needed(config: ExperimentConfig, tables: list[Table], shape: Shape, speeds: SpeedCard, accelerator: str,
                    each: int) -> dict[str, Any]:
    """The fewest machines of ``each`` accelerators that hold the tables and end the run in time.

    Returns:
        {"machines", "accelerators", "gib_per_rank": of the fullest, "rows_a_second", "run_hours", "bound": what takes
        longest, "because": memory | deadline | nothing: why no fewer}.

    Raises:
        Refused: no number of them does; it says what is in the way. A machine of fewer than 8 stands alone: its network
            is not known.
    """
    scale = config.scale
    assert scale is not None
    options, batch = SparseOptions.of(config.training), config.training.batch_size
    budget = speeds.accelerators[accelerator].memory_gib * speeds.memory_share.value
    because, rows = "nothing", scale.training_rows * config.training.epochs
    most = MOST_MACHINES if each >= 8 else 1
    alone = seconds_a_row(shape, speeds, accelerator, each, batch)
    least = rows * max(alone["arithmetic"], alone["memory"], alone["input"]) / (most * each) / 3600
    if scale.training_hours is not None and least > scale.training_hours:  # no need to try them all
        raise Refused("it does not end in time")
    for machines in range(1, most + 1):
        n = machines * each
        gib = fullest_rank(config, tables, options, n) + 16.0 * shape.dense_parameters / 2**30
        if gib > budget:
            because = "memory"
            continue
        parts = seconds_a_row(shape, speeds, accelerator, n, batch)
        speed = n / max(parts.values())
        hours = rows / speed / 3600
        if scale.training_hours is not None and hours > scale.training_hours:
            because = "deadline"
            continue
        return {"machines": machines, "accelerators": n, "gib_per_rank": gib, "rows_a_second": speed,
                "run_hours": hours, "bound": max(parts, key=lambda k: parts[k]), "because": because}
    raise Refused("the tables do not fit" if because == "memory" else "it does not end in time")


def fullest_rank(config: ExperimentConfig, tables: list[Table], options: SparseOptions, ranks: int) -> float:
    """GiB of tables and their optimizers on the rank that has most, by the plan that training makes."""
    load = [0.0] * ranks
    spread = 0.0
    dim = config.model.embedding_dim
    for name, at in placements(tables, dim, options, config.training.parallel, ranks).items():
        size = table_bytes(next(t for t in tables if t.name == name), dim, options)
        if at is None:
            spread += size / ranks
        else:
            load[at] += size
    return (max(load) + spread) / 2**30
