from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from recsys.cli import app


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, dict[str, Any]]:
    """``recsys certify --small`` by its command, once for this room: its folder, exit code and JSON."""
    folder = tmp_path_factory.mktemp("certify")
    done = CliRunner().invoke(app, ["certify", "--small", "--replications", "40", "--out", str(folder), "--json"],
                              env={"RECSYS_DATA_HOME": ""})
    return folder, done.exit_code, json.loads(done.stdout)
