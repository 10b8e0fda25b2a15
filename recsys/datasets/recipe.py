"""A recipe: how the published raw files of one data set become the engine's contracts, said in YAML.

A recipe names the files as published, says which rows count, and gives for each contract column the
rule that makes it. Nothing in a recipe is code; what a rule can say is :class:`ColumnRule`.
``data/README.md`` explains every key by example.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from recsys.config import Strict, find_resource, parse_model, read_yaml
from recsys.contracts import IMPRESSIONS
from recsys.datasets.info import Label
from recsys.errors import InputError


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""One name or a list of names; in a list the first that is found counts."""


class RawTable(Strict):
    """One raw file.

    ``csv`` follows RFC 4180 (quotes, header line); ``text`` is plain delimited lines without quoting. A file whose
    name ends in ``.parquet`` is read as Parquet, whatever the format of the others.
    ``names`` are the columns of a file without a header line (a first line that repeats them is skipped).
    """

    file: Names = Field(description="path below the data home; several: the first that is there")
    format: Literal["parquet", "csv", "text"] = "csv"
    delimiter: str = Field(",", min_length=1, max_length=1)
    names: tuple[str, ...] | None = None
    min_fields: int | None = Field(None, ge=1, description="text: shorter rows are filled with nulls from here on")
    nulls: tuple[str, ...] = Field(("",), description="csv, text: spellings of null")

    @model_validator(mode="after")
    def _text_has_names(self) -> Self:
        if self.format == "text" and not self.names:
            raise ValueError("a text file needs names")
        return self


class RawTables(Strict):
    """The raw files of a recipe; ``ads`` only where the ads have a file of their own."""

    impressions: RawTable
    ads: RawTable | None = None


class RowFilter(Strict):
    """Keeps the raw rows that satisfy every condition given."""

    column: str
    present: bool = Field(False, description="neither null nor blank")
    between: tuple[float, float] | None = None
    not_between: tuple[float, float] | None = None
    equals: str | None = None
    why: str = Field("", description="goes into the manifest beside the number of rows dropped")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.present and self.between is None and self.not_between is None and self.equals is None:
            raise ValueError("one of present, between, not_between, equals")
        return self


ORIGINS = ("from", "constant", "join", "text_hash", "row_id", "all_ads")


class ColumnRule(Strict):
    """How one column is made. Exactly one origin, then what is done with it; a bare name means ``from``.

    Origins read raw columns, or columns that stand above in the same recipe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: Names | None = Field(None, alias="from", description="raw column; several: the first that is there")
    constant: str | float | int | None = None
    join: tuple[str, ...] | None = Field(None, description="columns put together with the separator")
    text_hash: str | None = Field(None, description="content hash of a text column")
    row_id: bool = Field(False, description="an id made of the raw file's fingerprint and the row number")
    all_ads: bool = Field(False, description="every ad_id of the ads table, as a list")

    optional: bool = Field(False, description="left out where the raw column is missing")
    separator: str = "|"
    at_least: float | None = Field(None, description="1 where the value reaches this, else 0")
    multiply: float | None = None
    add: float | None = None
    time: str | None = Field(None, description="iso | s | ms | us (since 1970) | a strptime format")
    fraction_digits: int = Field(0, ge=0, le=6, description="decimals of a second that follow the strptime format")
    utc_offset_hours: float = Field(0, ge=-14, le=14, description="zone of a time written without one")
    split: str | None = Field(None, description="a list, cut at this separator")
    contains: str | None = Field(None, description="1 where the text has this in it, else 0")
    extract: str | None = Field(None, description="what a regular expression's group (?P<value>...) finds, else null")
    type: Literal["string", "int", "float"] | None = Field(None, description="of a column outside the contract")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [self.source is not None, self.constant is not None, self.join is not None,
                 self.text_hash is not None, self.row_id, self.all_ads]
        if sum(given) != 1:
            raise ValueError(f"exactly one of {', '.join(ORIGINS)}")
        if self.extract is not None and "(?P<value>" not in self.extract:
            raise ValueError("extract: a pattern with a group (?P<value>...)")
        return self

    def reads(self) -> tuple[str, ...]:
        """Names of the raw (or earlier) columns that the rule may read."""
        one = (self.text_hash,) if self.text_hash else ()
        return (*(self.source or ()), *(self.join or ()), *one)


class PastRule(Strict):
    """A column made of the rows of earlier ``ts`` that are equal in ``by``: one of ``latest``, ``count``, ``mean``."""

    by: str
    where: dict[str, float] | None = Field(None, description="only rows with these values count")
    latest: str | None = Field(None, description="a list of this column's values, oldest first")
    length: int = Field(50, ge=1, description="latest: so many at the most")
    count: bool = Field(False, description="how many rows")
    mean: str | None = Field(None, description="mean of this column, drawn to the mean of all earlier rows")
    prior: float = Field(5.0, gt=0, description="mean: so many rows of that overall mean are added")

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if (self.latest is not None) + self.count + (self.mean is not None) != 1:
            raise ValueError("exactly one of latest, count, mean")
        return self


class Pool(Strict):
    """Rows equal in ``by`` become one: ``sum`` is added up, of every other column the first row's value stays."""

    by: tuple[str, ...]
    sum: tuple[str, ...] = ("trials", "successes")
    min_candidates: int = Field(1, ge=1, description="requests with fewer ads are dropped: there is nothing to choose")


class Features(Strict):
    """Feature columns; one that has no rule of its own is the raw column of that name."""

    dense: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    ads: tuple[str, ...] = Field((), description="those of sparse and dense that belong to the ad; joined in from the "
                                                 "ads file")
    id_rows: dict[str, PositiveInt] = Field(
        default_factory=dict, description="those of sparse that are integers in [0, rows) -> rows: used as rows of "
                                          "their table as they are, neither looked up nor hashed")


class _Published(Strict):
    name: str
    title: str = ""
    published: str = Field("", description="where the data set can be had")
    licence: str = ""
    citation: str = ""
    notes: str = ""


class Recipe(_Published):
    """A data set read from raw files."""

    kind: Literal["files"] = "files"
    tables: RawTables
    keep: tuple[RowFilter, ...] = ()
    columns: dict[str, ColumnRule]
    ads: dict[str, ColumnRule] = Field(default_factory=dict, description="columns of ads.parquet; without an ads file "
                                                                         "they are read from the impressions")
    pool: Pool | None = None
    past: dict[str, PastRule] = Field(default_factory=dict, description="columns made of earlier rows")
    stories: bool = Field(False, description="decision groups (group_id) that share an ad text are one story")
    features: Features = Features()
    label: dict[str, Label]
    text: tuple[Literal["title", "body"], ...] = ()

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        required = [c.name for c in IMPRESSIONS.columns if c.required]
        if missing := [n for n in required if n not in self.columns]:
            raise ValueError(f"columns: a rule for {missing[0]} is needed")
        if self.stories and "group_id" not in self.columns:
            raise ValueError("columns: stories need a rule for group_id")
        if stray := [n for n in self.features.ads if n not in (*self.features.sparse, *self.features.dense)]:
            raise ValueError(f"features: {stray[0]} of ads is neither in sparse nor in dense")
        if stray := [n for n in self.features.id_rows if n not in self.features.sparse]:
            raise ValueError(f"features: {stray[0]} of id_rows is not in sparse")
        if stray := [n for n in self.past if n in self.columns or n in self.ads]:
            raise ValueError(f"past: {stray[0]} has a rule in columns or ads, too")
        if stray := [n for n in (*self.features.ads, *self.text) if n not in self.ads]:
            raise ValueError(f"ads: a rule for {stray[0]} is needed")
        if self.tables.ads is None and any(rule.all_ads for rule in self.columns.values()):
            raise ValueError("columns: all_ads needs an ads file")
        if self.tables.ads is not None and not self.ads:
            raise ValueError("ads: an ads file needs rules")
        for label in self.label.values():
            for name in (label.column, label.trials, label.successes):
                if name is not None and name not in self.columns:
                    raise ValueError(f"columns: a rule for the label {name} is needed")
        if self.pool and (stray := [n for n in (*self.pool.by, *self.pool.sum) if n not in self.columns]):
            raise ValueError(f"pool: {stray[0]} has no rule in columns")
        return self

    @property
    def joined(self) -> tuple[str, ...]:
        """Ad features that are looked up in the ads file rather than read beside the impression."""
        return self.features.ads if self.tables.ads is not None else ()

    def feature_rules(self) -> dict[str, ColumnRule]:
        """Rules of all impression columns: the recipe's own, then features read under their raw names."""
        names = (*self.features.dense, *self.features.sparse, *self.features.sequence)
        made = {*self.columns, *self.joined, *self.past}
        plain = {n: ColumnRule.model_validate(n) for n in names if n not in made}
        return {**self.columns, **plain}


class SimulateRecipe(_Published):
    """A data set that the simulator makes."""

    kind: Literal["simulate"]
    parameters: dict[str, Any] = Field(default_factory=dict)


def load_recipe(name: str | Path) -> Recipe | SimulateRecipe:
    """Read a recipe by path or shipped name; ``extends: NAME`` lays its keys over those of another recipe.

    Raises:
        InputError: no such recipe, malformed YAML, unknown key, contradictory rules.
    """
    path = find_resource("data", str(name))
    value = _read_extended(path, ())
    if value.get("kind") == "simulate":
        return parse_model(SimulateRecipe, value, path)
    return parse_model(Recipe, value, path)


def _read_extended(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise InputError("a recipe extends itself", file=path, column="extends")
    value = read_yaml(path)
    base = value.pop("extends", None)
    if base is None:
        return value
    beside = find_resource("data", str(base), beside=path.parent)
    return _merge(_read_extended(beside, (*seen, path.resolve())), value)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def list_recipes() -> list[Recipe | SimulateRecipe]:
    """All shipped recipes, by name."""
    return list(_shipped())


def _shipped() -> Iterator[Recipe | SimulateRecipe]:
    folder = Path(str(resources.files("recsys.data")))
    for path in sorted(folder.glob("*.yaml")):
        yield load_recipe(path)
