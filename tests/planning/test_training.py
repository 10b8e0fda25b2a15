from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.config import ExperimentConfig, ModelConfig, load_config
from recsys.errors import InputError, Refused
from recsys.models.build import KINDS
from recsys.models.embeddings import SparseOptions, Table, make_embeddings
from recsys.models.ranker import Inputs
from recsys.planning.speeds import load_speeds
from recsys.planning.training import (
    Shape,
    cpu_rows_a_second,
    fullest_rank,
    machines_needed,
    reference_share,
    roofline,
    seconds_a_row,
    shape_of,
)

SPEEDS = load_speeds()
SCALE = {"tables": {"user_id": {"rows": 1_000_000}, "surface": {"rows": 4}}, "training_rows": 10_000_000_000,
         "impressions_a_year": 1e9, "ads": 1000}


def _config(**scale: object) -> ExperimentConfig:
    plain = load_config("marketplace").resolved()
    return ExperimentConfig(**{**plain, "training": {"batch_size": 1 << 20}, "scale": {**SCALE, **scale}})


def _tables(config: ExperimentConfig) -> list[Table]:
    assert config.scale is not None
    return [Table(n, t.rows, (n,)) for n, t in config.scale.tables.items()]


def _shape(config: ExperimentConfig) -> Shape:
    assert config.scale is not None
    return shape_of(config.model, {n: t.length for n, t in config.scale.tables.items()}, 13, None, 1)


@pytest.mark.parametrize("kind", ["dlrm", "dcnv2", "finalmlp"])
def test_the_sizes_are_those_of_a_model_that_is_built(kind: str) -> None:
    model = ModelConfig(kind=kind, embedding_dim=8)
    tables = [Table(f"C{i}", 10, (f"C{i}",)) for i in range(5)]
    embeddings = make_embeddings("fused", tables, 8, SparseOptions(), torch.device("cpu"))
    real = KINDS[kind](Inputs(embeddings, tuple(t.name for t in tables), 13, torch.zeros(3, 32)), model)
    shape = shape_of(model, {t.name: 1.0 for t in tables}, 13, 32, 1)
    assert shape.flops == real.flops_per_row()
    dense = sum(p.numel() for n, p in real.named_parameters() if not n.startswith("embeddings."))
    assert shape.dense_parameters == dense
    with pytest.raises(InputError, match="ridge"):
        shape_of(ModelConfig(kind="ridge"), {}, 1, None, 1)


def test_the_published_run_is_met_by_construction() -> None:
    """The roofline times its share gives back the rate that the share was taken from: 13.7 M samples/s on 8."""
    known = SPEEDS.reference
    shape = shape_of(known.model, {f"C{i}": known.lookups / 26 for i in range(26)}, known.dense, None, 1, wire=2)
    parts = roofline(shape, SPEEDS, known.accelerator, known.accelerators, known.batch)
    assert known.accelerators * reference_share(SPEEDS) / max(parts.values()) == pytest.approx(13.7e6)
    assert 0.05 < reference_share(SPEEDS) < 1
    # By hand: 214 lookups of 5 x 128 numbers and 2 of the optimizer, 4 bytes each, at 3.35 TB/s.
    assert parts["memory"] == pytest.approx(214 * (5 * 128 + 2) * 4 / 3.35e12)


def test_parts_of_the_roofline_move_as_they_should() -> None:
    shape = _shape(_config())
    one = roofline(shape, SPEEDS, "H100-80GB", 1, 65_536)
    eight, sixteen = (roofline(shape, SPEEDS, "H100-80GB", n, 65_536) for n in (8, 16))
    assert one["network"] == 0
    assert 0 < eight["network"] < sixteen["network"]  # links within a machine, the network between machines
    assert one["arithmetic"] == eight["arithmetic"]
    assert roofline(shape, SPEEDS, "A100-80GB", 1, 65_536)["arithmetic"] > one["arithmetic"]
    # A small batch pays more for adding up the dense gradients.
    assert roofline(shape, SPEEDS, "H100-80GB", 8, 512)["network"] > eight["network"]
    # A fast accelerator is held up by reading, not by its own arithmetic.
    parts = seconds_a_row(replace(shape, lookups=1e5), SPEEDS, "H100-80GB", 8, 65_536)
    assert max(parts, key=lambda k: parts[k]) == "input"


def test_the_benchmark_is_met_by_construction_on_its_own_cores() -> None:
    model = ModelConfig(embedding_dim=16, bottom=(512, 256), top=(512, 256), top_input="dense")
    shape = shape_of(model, {f"C{i}": 1.0 for i in range(26)}, 13, None, 1)
    assert cpu_rows_a_second(shape, SPEEDS, SPEEDS.cpu.train.cores) == pytest.approx(SPEEDS.cpu.train.rows_a_second)
    assert cpu_rows_a_second(shape, SPEEDS, 8) == pytest.approx(4 * SPEEDS.cpu.train.rows_a_second)


def test_memory_a_rank_is_that_of_the_plan_that_training_makes() -> None:
    config = _config()
    tables, options = _tables(config), SparseOptions.of(config.training)
    dim = config.model.embedding_dim
    rowwise = 4 * (dim + 1)  # float32, and one number of row-wise Adagrad
    assert fullest_rank(config, tables, options, 1) == pytest.approx(1_000_004 * rowwise / 2**30)
    # user_id is cut by rows, surface stays whole on one rank
    assert fullest_rank(config, tables, options, 4) == pytest.approx((250_000 + 4) * rowwise / 2**30)


def test_a_deadline_asks_for_more_machines_and_tables_for_memory() -> None:
    config = _config()
    free = machines_needed(config, _tables(config), _shape(config), SPEEDS, "H100-80GB", 8)
    assert (free["machines"], free["because"]) == (1, "nothing")
    hurried = _config(training_hours=free["run_hours"] / 2.5)
    found = machines_needed(hurried, _tables(hurried), _shape(hurried), SPEEDS, "H100-80GB", 8)
    assert found["machines"] > 1
    assert found["because"] == "deadline"
    assert found["run_hours"] <= free["run_hours"] / 2.5
    huge = _config(tables={"user_id": {"rows": 20_000_000_000}})
    found = machines_needed(huge, _tables(huge), _shape(huge), SPEEDS, "H100-80GB", 8)
    assert found["because"] == "memory"
    assert found["gib_per_rank"] <= 0.8 * 80
    assert found["machines"] == int(np.ceil(20e9 * 68 / 2**30 / 64 / 8))
    with pytest.raises(Refused, match="do not fit"):
        machines_needed(huge, _tables(huge), _shape(huge), SPEEDS, "H100-80GB", 2)
    late = _config(training_hours=1e-9)
    with pytest.raises(Refused, match="in time"):
        machines_needed(late, _tables(late), _shape(late), SPEEDS, "H100-80GB", 1)
