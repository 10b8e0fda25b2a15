"""What devices do in a second: a dated card (``data/speeds/``) of measured, published and assumed numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from recsys.config import ModelConfig, Strict, find_resource, parse_model, read_yaml

Basis = Literal["measured", "published", "datasheet", "assumed"]


class Constant(Strict):
    """One number and what it rests on."""

    value: float = Field(gt=0)
    basis: Basis
    source: str


class Accelerator(Strict):
    """Data-sheet peaks of one accelerator.

    Attributes:
        peak_flops: dense bfloat16 FLOP/s.
        memory_gib, memory_bytes: its memory; bytes a second between it and the processor.
        link_bytes: bytes a second to the others of its machine, one direction.
        network_bytes: its share of the machine's network, bytes a second.
    """

    peak_flops: float = Field(gt=0)
    memory_gib: float = Field(gt=0)
    memory_bytes: float = Field(gt=0)
    link_bytes: float = Field(gt=0)
    network_bytes: float = Field(gt=0)
    source: str


class Rate(Strict):
    """What so many cores do, and the key of the result file that says so."""

    cores: int = Field(ge=1)
    basis: Basis
    source: str
    key: str


class TrainRate(Rate):
    """Rows a second that the throughput benchmark trains on so many cores; its model is in its result file."""

    rows_a_second: float = Field(gt=0)


class EmbedRate(Rate):
    """Tokens a second that a model of so many parameters embeds on so many cores."""

    tokens_a_second: float = Field(gt=0)
    parameters: float = Field(gt=0)


class InputRate(Rate):
    """Processor time of reading, shuffling and encoding one row of so many columns."""

    microseconds_a_row: float = Field(gt=0)
    columns: int = Field(ge=1)


class SearchRate(Rate):
    """Queries a second of an index of ``vectors`` of ``dim`` numbers, ``probes`` of its ``lists`` lists read."""

    queries_a_second: float = Field(gt=0)
    vectors: int = Field(ge=1)
    dim: int = Field(ge=1)
    lists: int = Field(ge=1)
    probes: int = Field(ge=1)


class Cpu(Strict):
    """What one core does."""

    train: TrainRate
    embed: EmbedRate
    input: InputRate
    search: SearchRate


class Reference(Strict):
    """A published training rate of a model that is known: what share of the roofline can be had."""

    samples_a_second: float = Field(gt=0)
    accelerator: str
    accelerators: int = Field(ge=1)
    basis: Basis
    source: str
    model: ModelConfig
    rows: int = Field(ge=1)
    lookups: float = Field(gt=0)
    dense: int = Field(ge=0)
    batch: int = Field(ge=1)


class SpeedCard(Strict):
    """The whole card."""

    name: str
    sources: dict[str, str]
    accelerators: dict[str, Accelerator]
    cpu: Cpu
    reference: Reference
    cores_an_accelerator: Constant
    memory_share: Constant
    embed_utilisation: Constant
    network_share: Constant

    @model_validator(mode="after")
    def _sources_are_named(self) -> SpeedCard:
        used = {a.source for a in self.accelerators.values()} | {
            c.source for c in (self.cpu.train, self.cpu.embed, self.cpu.input, self.reference,
                               self.cores_an_accelerator, self.memory_share, self.embed_utilisation,
                               self.network_share)}
        if missing := sorted(used - set(self.sources)):
            raise ValueError(f"sources: {missing[0]!r} is not one of {sorted(self.sources)}")
        if self.reference.accelerator not in self.accelerators:
            raise ValueError(f"reference.accelerator: {self.reference.accelerator!r} is not one of "
                             f"{sorted(self.accelerators)}")
        return self


def load_speeds(name: str = "2026-11") -> SpeedCard:
    """Read and check a speed card.

    Args:
        name: a path, or the name of a card shipped in ``data/speeds/``.

    Raises:
        InputError: no such card, an unknown key, a number that is not positive, a number without a known source.
    """
    path = Path(name) if Path(name).is_file() else find_resource("data", f"speeds/{name}")
    return parse_model(SpeedCard, read_yaml(path), path)
