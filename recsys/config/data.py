"""Which data, and how it is split."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from recsys.config.base import Strict


class DataConfig(Strict):
    """Which recipe reads the data, and the simulator's parameters where the recipe is a simulation."""

    recipe: str = Field(description="name of a shipped recipe (data/NAME.yaml) or a path to one")
    home: str | None = Field(None, description="folder that holds the raw files; default RECSYS_DATA_HOME")
    simulate: dict[str, Any] = Field(default_factory=dict, description="overrides of the simulator's parameters")


class FilesSplit(Strict):
    """Train on one raw file and test on another of the same shape."""

    kind: Literal["files"]
    train: str | None = Field(None, description="path of the training file; default: the recipe's own file")
    test: str


class ShareSplit(Strict):
    """Hold out a share of the data.

    ``time``: the latest requests; ``story``: whole stories (tests that share a text belong together);
    ``user``: whole users; ``row``: rows by a hash of their id.
    """

    kind: Literal["time", "story", "user", "row"]
    test_share: float = Field(0.2, gt=0, lt=1)


SplitConfig = Annotated[FilesSplit | ShareSplit, Field(discriminator="kind")]
