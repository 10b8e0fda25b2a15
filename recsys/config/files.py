"""Finding, reading, overriding and validating configuration files."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from recsys.config.experiment import ExperimentConfig
from recsys.errors import InputError

M = TypeVar("M", bound=BaseModel)


def find_resource(kind: Literal["data", "experiments"], name: str, beside: Path | None = None) -> Path:
    """Find a recipe, price card or experiment file by path or by shipped name.

    Looked for, in this order: the path as given (relative to the working folder, then to ``beside``),
    then ``name`` with and without ``.yaml`` among the files shipped with the package.

    Raises:
        InputError: nothing of that name; the shipped names are listed.
    """
    for base in (Path(), beside):
        if base is not None and (base / name).is_file():
            return base / name
    shipped = Path(str(resources.files("recsys." + kind)))
    for candidate in (shipped / name, shipped / f"{name}.yaml", shipped / Path(name).name):
        if candidate.is_file():
            return candidate
    folder = shipped if Path(name).is_absolute() else (shipped / name).parent
    names = sorted(p.stem for p in (folder if folder.is_dir() else shipped).glob("*.yaml"))
    raise InputError("no such file", file=name, expected=f"a path, or one of {names}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a missing, empty or malformed file is one clear error."""
    if not path.is_file():
        raise InputError("no such file", file=path, expected="a YAML file")
    try:
        value = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError("not valid YAML", file=path, row=None if mark is None else mark.line,
                         got=getattr(error, "problem", str(error))) from None
    if not isinstance(value, dict):
        raise InputError("not a mapping", file=path, got=type(value).__name__, expected="key: value lines")
    return value


def apply_overrides(value: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply ``a.b=c`` overrides (values are read as YAML) to a nested mapping, in place."""
    for item in overrides:
        path, sep, text = item.partition("=")
        if not sep or not path.strip():
            raise InputError("malformed override", file="--set", got=item, expected="a.b=value")
        keys, at = path.strip().split("."), value
        for key in keys[:-1]:
            inner = at.get(key)
            if inner is None:
                inner = at[key] = {}
            if not isinstance(inner, dict):
                raise InputError("not a section", file="--set", column=path, got=inner, expected="a mapping")
            at = inner
        try:
            at[keys[-1]] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError("malformed value", file="--set", column=path, got=text, expected="a YAML value") from None
    return value


def parse_model(model: type[M], value: dict[str, Any], file: str | Path) -> M:
    """Validate a mapping against a pydantic model; the first problem becomes one :class:`InputError`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(str(p) for p in first["loc"]) or None
        expected = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = [k for k in _known_keys(model) if k != first["loc"][-1]]  # another section may have it
            near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
            expected = f"a known key (did you mean {near[0]!r}?)" if near else "a known key"
            raise InputError("unknown key", file=file, column=column, got=first["loc"][-1], expected=expected) from None
        if first["type"] == "missing":
            raise InputError("missing key", file=file, column=column, expected="a value") from None
        got = None if isinstance(first["input"], dict) else first["input"]
        raise InputError("bad value", file=file, column=column, got=got, expected=expected) from None


def _known_keys(model: type[BaseModel]) -> list[str]:
    return sorted(_walk_keys(model.model_json_schema()))


def _walk_keys(schema: Any) -> set[str]:
    found: set[str] = set()
    if isinstance(schema, dict):
        found |= set(schema.get("properties", {}))
        for inner in schema.values():
            found |= _walk_keys(inner)
    elif isinstance(schema, list):
        for inner in schema:
            found |= _walk_keys(inner)
    return found


def load_config(path: str | Path, overrides: list[str] | None = None) -> ExperimentConfig:
    """Read, override and validate an experiment file.

    Args:
        path: a path, or the name of a shipped experiment.
        overrides: ``a.b=c`` strings.

    Raises:
        InputError: missing file, malformed YAML, unknown key, wrong value.
    """
    file = find_resource("experiments", str(path))
    value = _beside(read_yaml(file), file.parent)
    return parse_model(ExperimentConfig, apply_overrides(value, overrides or []), file)


def _beside(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make paths that are written relative to the experiment file absolute; what is not found there stays as it is."""
    for section, keys in (("split", ("train", "test")), ("data", ("recipe",)), ("money", ("price_card",))):
        inner = value.get(section)
        if not isinstance(inner, dict):
            continue
        for key in keys:
            given = inner.get(key)
            if isinstance(given, str) and not Path(given).exists() and (folder / given).is_file():
                inner[key] = str((folder / given).resolve())
    return value
