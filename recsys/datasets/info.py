"""``dataset.json``: what a prepared or split dataset says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from recsys.config import Strict, parse_model
from recsys.errors import InputError
from recsys.stage import write_json
from recsys.storage import file_size, join, read_bytes

DATASET_FILE = "dataset.json"


class Label(Strict):
    """Where a label stands: a 0/1 column, or two columns of counts (``successes`` of ``trials``)."""

    kind: Literal["binary", "binomial"]
    column: str | None = None
    trials: str | None = None
    successes: str | None = None


class DatasetInfo(BaseModel):
    """The contents of ``dataset.json`` (docs/architecture.md); further keys pass through unchanged.

    Attributes:
        name: the recipe's name.
        source: where the data set is published.
        licence: its terms, as published.
        dense: numeric feature columns of the impressions.
        sparse: categorical feature columns (strings) of the impressions.
        sequence: list-of-string feature columns of the impressions.
        ad_features: those of ``sparse`` that belong to the ad and also stand in ``ads.parquet``.
        ad_past: features made of the shown ad's earlier rows: of the ad, and another at every moment.
        label: head name (click, ...) to where its label stands.
        text: columns of ``ads.parquet`` that are shown as text, or nothing.
        id_rows: those of ``sparse`` that hold rows of their own table -> the table's number of rows.
        stories: rows carry ``group_id``, and rows of one group must stay on one side of a split.
        simulated: the data come from the simulator, whose hidden state is in ``truth/``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    source: str = ""
    licence: str = ""
    dense: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    ad_features: tuple[str, ...] = ()
    ad_past: tuple[str, ...] = ()
    label: dict[str, Label] = Field(default_factory=dict)
    text: tuple[str, ...] = ()
    id_rows: dict[str, PositiveInt] = Field(default_factory=dict)
    stories: bool = False
    simulated: bool = False


def load_dataset_info(folder: str | Path) -> DatasetInfo:
    """Read ``dataset.json`` of a prepared or split dataset (a folder, or the file itself).

    Raises:
        InputError: no such file, not JSON, or a key of the wrong type.
    """
    path = folder if str(folder).endswith(".json") else join(folder, DATASET_FILE)
    if file_size(path) is None:
        raise InputError("no such file", file=path, expected="a prepared dataset (recsys prepare RECIPE --out FOLDER)")
    try:
        value = json.loads(read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("damaged file", file=path, got=str(error), expected="JSON") from None
    return parse_model(DatasetInfo, value, path)


def save_dataset_info(info: DatasetInfo, folder: str | Path) -> None:
    """Write ``dataset.json`` into a folder."""
    write_json(Path(folder) / DATASET_FILE, info.model_dump(mode="json", exclude_none=True))
