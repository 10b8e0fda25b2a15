from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from recsys.cli import app, main

RUN = CliRunner()


def test_power_verb():
    done = RUN.invoke(app, ["power", "--base", "0.0035", "--lift", "0.1"])
    assert "468,935 units per arm" in done.output
    found = json.loads(RUN.invoke(app, ["power", "--base", "0.2", "--units", "1092", "--json"]).output)
    assert found["lift"] == pytest.approx(0.25, rel=1e-3)
    assert RUN.invoke(app, ["power", "--base", "0.9", "--units", "4", "--json"]).exit_code == 3
    for bad in (["--base", "0.2"], ["--base", "2", "--lift", "0.1"], ["--base", "0.2", "--lift", "9"]):
        with pytest.raises(SystemExit) as end:
            main(["power", *bad])
        assert end.value.code == 2
