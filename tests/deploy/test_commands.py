"""Launch files cannot drift from the command line: every command of ours in them is parsed by the real parser."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer
import yaml
from typer.exceptions import TyperException

from recsys.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(p for p in DEPLOY.rglob("*") if p.suffix in (".yaml", ".sbatch", ".sh"))
# How a command of ours starts, and the verb that it is; serve.py names its verbs batch and http.
STARTS = {"recsys": [], "train.py": ["train"], "serve.py": []}
VERBS = {"batch": "score", "http": "serve"}


def _shell(text: str) -> Iterator[list[str]]:
    text = re.sub(r"\\\n", " ", text)
    for line in text.splitlines():
        line = re.sub(r"^[a-z]+=\$\(.*\)$", "", line.strip().removesuffix("&"))
        if not line.startswith(("#", "trap")) and re.search(r"recsys|train\.py|serve\.py", line):
            line = re.sub(r"\$\{?\w+(:[?-][^}]*)?\}?", "1", line)
            yield shlex.split(line)


def _containers(value: Any) -> Iterator[list[str]]:
    if isinstance(value, dict):
        if isinstance(value.get("command"), list):
            yield [str(v) for v in value["command"] + value.get("args", [])]
        for part in value.values():
            yield from _containers(part)
    elif isinstance(value, list):
        for part in value:
            yield from _containers(part)


def commands(file: Path) -> list[list[str]]:
    """Our own commands in a launch file: a verb and its arguments."""
    if file.parent.name == "kubernetes":
        lines = [c for d in yaml.safe_load_all(file.read_text()) for c in _containers(d)]
    elif file.parent.name == "skypilot":
        lines = list(_shell(yaml.safe_load(file.read_text())["run"]))
    else:
        lines = list(_shell(file.read_text()))
    found = []
    for words in lines:
        at = next((i for i, w in enumerate(words) if w in STARTS), None)
        if at is not None:
            found.append([*STARTS[words[at]], *words[at + 1:]])
    return found


def parse(words: list[str]) -> None:
    """By the real parser, without running anything.

    Raises:
        TyperException: an option or argument that is not there.
    """
    group: Any = typer.main.get_command(app)
    verb = VERBS.get(words[0], words[0])
    group.commands[verb].make_context(verb, list(words[1:]))


@pytest.mark.parametrize("file", [f for f in FILES if f.name != "runs.yaml"], ids=lambda f: f"{f.parent.name}/{f.name}")
def test_every_command_is_one_of_ours(file: Path) -> None:
    found = commands(file)
    assert found, "no command of ours in it"
    for words in found:
        parse(words)


def test_the_parser_refuses_what_has_drifted() -> None:
    with pytest.raises(TyperException, match="--outt"):
        parse(["train", "x.yaml", "--outt", "y"])
    with pytest.raises(TyperException):
        parse(["batch", "--model", "m"])


def test_what_files_name_is_there() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--)(.*)$", dockerfile, re.M):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
    assert set(re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, re.M)) >= {"cpu", "cuda"}
    for file in FILES:
        for name in re.findall(r"experiments/(\w+)\.yaml", file.read_text()):
            if name != "mine":
                assert (ROOT / "experiments" / f"{name}.yaml").is_file(), (file, name)


def test_probes_ask_routes_that_the_service_has() -> None:
    from recsys.serving.http.inference import inference_routes

    paths = {route.path for route in inference_routes(Mock())}  # what is behind them is not called
    deployment = next(iter(yaml.safe_load_all((DEPLOY / "kubernetes" / "serve.yaml").read_text())))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    port = container["args"][container["args"].index("--port") + 1]
    assert [p["containerPort"] for p in container["ports"]] == [int(port)]
    drain = float(container["args"][container["args"].index("--drain") + 1])
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain + 30
