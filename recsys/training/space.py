"""What a search over settings draws from: ranges and choices for keys of an experiment's model and training sections.

A draw is a function of (seed, number of the trial, key) alone: a search that was killed and goes on, or that several
processes share, draws what one process would have drawn.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recsys.config import ExperimentConfig, apply_overrides, parse_model, read_yaml
from recsys.errors import InputError

SECTIONS = ("model", "training")
# These decide what is measured, or multiply its cost, and not how well a model does on it.
FIXED = ("model.kind", "model.heads", "training.validation_share", "training.ensemble")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole ones where both bounds are."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, r: np.random.Generator) -> float | int:
        """One value."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        value = math.exp(r.uniform(math.log(low), math.log(high))) if self.log else r.uniform(low, high)
        value = min(max(round(value) if self.whole else value, self.low), self.high)
        return value if self.whole else float(value)

    @property
    def extremes(self) -> list[Any]:
        """Values that a configuration must take for all between to be taken."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: tuple[Any, ...]

    def draw(self, r: np.random.Generator) -> Any:
        """One value."""
        return self.values[int(r.integers(len(self.values)))]

    @property
    def extremes(self) -> list[Any]:
        """Values that a configuration must take."""
        return list(self.values)


Space = Mapping[str, Range | Choices]


def load_space(path: str | Path | None, config: ExperimentConfig) -> Space:
    """Read a search space, or the shipped one, and hold every bound and choice against the experiment.

    Raises:
        InputError: no such file, a malformed entry, a key that may not be searched, a value that the key does not take.
    """
    file = Path(str(resources.files("recsys.training") / "space.yaml")) if path is None else Path(path)
    space = {str(key): _entry(str(key), value, file) for key, value in read_yaml(file).items()}
    if not space:
        raise InputError("nothing to search", file=file, got="{}", expected="KEY: {low, high} or KEY: [choices]")
    for key, entry in space.items():
        if key.split(".")[0] not in SECTIONS or key in FIXED:
            raise InputError("not a key to search", file=file, column=key, got=key,
                             expected=f"a key of {' or '.join(SECTIONS)} other than {', '.join(FIXED)}")
        for value in entry.extremes:
            configured(config, {key: value}, file)
    return space


def _entry(key: str, value: Any, file: Path) -> Range | Choices:
    if isinstance(value, list) and value:
        return Choices(tuple(value))
    wrong = InputError("malformed range", file=file, column=key, got=value,
                       expected="{low: a, high: b} with a < b, optionally log: true (a > 0); or a list of choices")
    if not isinstance(value, dict) or not {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        raise wrong
    low, high, log = value["low"], value["high"], value.get("log", False)
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise wrong
    if not isinstance(log, bool) or low >= high or (log and low <= 0):
        raise wrong
    return Range(low, high, log)


def draw(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The settings of a trial."""
    return {key: entry.draw(np.random.default_rng([seed, number, zlib.crc32(key.encode())]))
            for key, entry in space.items()}


def override(key: str, value: Any) -> str:
    """A setting as ``--set`` takes it: YAML on one line."""
    return f"{key}={yaml.safe_dump([value], default_flow_style=True, width=1 << 16).strip()[1:-1]}"


def configured(config: ExperimentConfig, settings: Mapping[str, Any], file: str | Path = "tune") -> ExperimentConfig:
    """The experiment with some of its settings replaced.

    Raises:
        InputError: a key that there is not, a value that it does not take.
    """
    value = apply_overrides(config.resolved(), [override(k, v) for k, v in settings.items()])
    return parse_model(ExperimentConfig, value, file)
