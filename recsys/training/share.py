"""What rank 0 learnt from the training rows, told to the other ranks: no pickle, and nothing is read twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import load, save

from recsys.config import ModelConfig, TrainingConfig
from recsys.features.encoders import FeatureEncoder
from recsys.storage import join
from recsys.training.data import TrainingData, training_labels
from recsys.training.source import ParquetSource, Selection
from recsys.training.world import World

_PARTS = ("train", "validation", "test")


def share_training_data(world: World, load_data: Callable[[], TrainingData], split_dir: str | Path, model: ModelConfig,
                        training: TrainingConfig) -> TrainingData:
    """The same data on every rank; ``load_data`` is called on rank 0 alone, the others wait for it.

    All ranks must see the files of ``split_dir`` under the same name.
    """
    if world.size == 1:
        return load_data()
    data = load_data() if world.is_main else None
    told = world.broadcast_bytes(None if data is None else pack(data))
    return data if data is not None else unpack(told, split_dir, model, training)


def pack(data: TrainingData) -> bytes:
    """Encoder, rows a row group and base rates as one safetensors file."""
    sources = {part: source for part in _PARTS if (source := getattr(data, part)) is not None}
    sink = pa.BufferOutputStream()
    table = data.encoder.vocabulary_table()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    arrays = {f"counts.{part}": np.ascontiguousarray(s.counts) for part, s in sources.items()}
    arrays |= {f"of_content.{n}": np.ascontiguousarray(a) for n, a in data.encoder.of_content.items()}
    arrays |= {"vocabulary": np.frombuffer(sink.getvalue(), np.uint8), "base_rates": np.array(data.base_rates),
               "failure_keep": np.array(data.failure_keep)}
    return bytes(save(arrays, metadata={"encoder": json.dumps(data.encoder.to_json())}))


def unpack(told: bytes, split_dir: str | Path, model: ModelConfig, training: TrainingConfig) -> TrainingData:
    """What :func:`pack` packed, reading the files of ``split_dir``."""
    arrays = load(told)
    header = json.loads(told[8 : 8 + int.from_bytes(told[:8], "little")])
    table = pa.ipc.open_stream(arrays["vocabulary"].tobytes()).read_all()
    of_content = {n.removeprefix("of_content."): a for n, a in arrays.items() if n.startswith("of_content.")}
    encoder = FeatureEncoder.from_json(json.loads(header["__metadata__"]["encoder"]), table, None, of_content)
    labels = training_labels(split_dir, model)
    cut = (training.validation_share, training.negative_keep)

    def source(part: str, file: str, selection: Selection) -> ParquetSource | None:
        counts = arrays.get(f"counts.{part}")
        if counts is None:
            return None
        return ParquetSource(join(split_dir, f"{file}.parquet"), encoder, labels, selection, np.arange(len(counts)),
                             counts, people=part != "train")

    train = source("train", "train", Selection("training", *cut))
    assert train is not None
    return TrainingData(encoder, train, source("validation", "train", Selection("validation", *cut)),
                        source("test", "test", Selection()), tuple(arrays["base_rates"].tolist()),
                        tuple(arrays["failure_keep"].tolist()))
