from __future__ import annotations

import json
from pathlib import Path

from recsys.evaluation.certify.page import METHODS, page


def test_the_command_writes_json_page_and_picture(small: tuple[Path, int, dict]):
    folder, code, result = small
    assert code == (0 if all(r["met"] for r in result["requirements"]) else 1)
    assert json.loads((folder / "certification.json").read_text()) == result
    text = (folder / "certification.md").read_text()
    assert result["certificate"]["id"] in text
    assert all(t["trap"] in text for t in result["traps"])
    assert "| skipped |" in text
    assert (folder / "coverage.png").read_bytes().startswith(b"\x89PNG")


def test_failures_stand_on_the_page():
    found = {"logs": 400, "coverage": 0.5, "truth_below": 0.5, "truth_above": 0.0, "width": 1.0}
    cell = {"section": "values", "ctr": 0.004, "overlap": "good", "n": 2000, "kind": "iid", "chosen": {"betting": 400},
            "facts": {"ess": 1400.0, "effective_clicks": 8.0}, "methods": dict.fromkeys(METHODS, found)}
    text = page({"cells": [cell], "traps": [], "replications": 400, "seed": 2, "processor_seconds": 60.0,
                 "certificate": {"id": "f" * 64, "methods": {}}, "requirements": [
                     {"requirement": "default covers", "checked": 1, "met": False, "failures": [
                         {"section": "values", "n": 2000, "coverage": 0.5}]}]})
    assert "| **not met** | n 2000, coverage 0.5 |" in text
    assert text.count("**0.500 (1)**") == len(METHODS)
