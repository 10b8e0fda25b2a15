from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from recsys.config import ScheduleConfig, TrainingConfig
from recsys.training.schedules import Schedules, factor


def _factors(total: int = 20, **schedule: object) -> list[float]:
    return [factor(ScheduleConfig(**schedule), step, total) for step in range(total)]


def test_default_is_constant() -> None:
    assert _factors() == [1.0] * 20


def test_warm_up_is_linear_and_its_first_step_moves() -> None:
    assert _factors(warmup_steps=4)[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_decay_ends_at_final_after_the_whole_run(decay: str) -> None:
    found = _factors(warmup_steps=5, decay=decay, final=0.1)
    assert found[5] == 1.0
    assert all(a > b for a, b in pairwise(found[5:]))
    assert factor(ScheduleConfig(warmup_steps=5, decay=decay, final=0.1), 20, 20) == pytest.approx(0.1)
    assert factor(ScheduleConfig(warmup_steps=5, decay=decay, final=0.1), 500, 20) == pytest.approx(0.1)


def test_cosine_is_half_a_period() -> None:
    for step, found in enumerate(_factors(decay="cosine")):
        assert found == pytest.approx(0.5 + 0.5 * math.cos(math.pi * step / 20))


def test_decay_steps_count_from_the_end_of_the_warm_up() -> None:
    assert _factors(warmup_steps=2, decay="linear", decay_steps=4)[:8] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


class _Tables:
    def __init__(self) -> None:
        self.factors: list[float] = []

    def set_lr(self, factor: float) -> None:
        self.factors.append(factor)


def test_groups_and_tables_keep_rates_of_their_own() -> None:
    a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.5}, {"params": [b], "lr": 0.1}])
    tables = _Tables()
    config = TrainingConfig(dense_schedule={"warmup_steps": 4}, sparse_schedule={"decay": "linear"}, sparse_lr=0.2,
                            dense_lr=0.5)
    schedules = Schedules(config, 10, optimizer, tables)
    seen = []
    for step in range(10):
        schedules.set(step)
        seen.append([g["lr"] for g in optimizer.param_groups])
    assert seen[1] == [0.25, 0.05]
    assert seen[9] == [0.5, 0.1]
    assert all(x / y == pytest.approx(5) for x, y in seen)
    assert tables.factors == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert schedules.rates() == pytest.approx({"sparse_lr": 0.02, "dense_lr": 0.5})


def test_a_rate_that_stays_is_not_set_again() -> None:
    tables = _Tables()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    schedules = Schedules(TrainingConfig(), 10, optimizer, tables)
    for step in range(10):
        schedules.set(step)
    assert tables.factors == []


def test_position_is_a_step_number_alone() -> None:
    config = TrainingConfig(dense_schedule={"warmup_steps": 3, "decay": "cosine"})
    rates = []
    for start in (0, 7):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        schedules = Schedules(config, 12, optimizer, None)
        for step in range(start, 12):
            schedules.set(step)
            if step >= 7:
                rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:5] == rates[5:]


def test_rates_are_set_after_a_state_was_taken_over() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    schedules = Schedules(TrainingConfig(dense_schedule={"decay": "linear"}), 10, optimizer, None)
    optimizer.load_state_dict(optimizer.state_dict())  # replaces the groups
    schedules.set(5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
