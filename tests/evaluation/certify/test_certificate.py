from __future__ import annotations

import json
from pathlib import Path

import pytest

from recsys.evaluation.certify import certificate as module
from recsys.evaluation.certify.certificate import (
    METHODS,
    MODULES,
    SHIPPED,
    certificate,
    certificate_of,
    code_sha256,
    methods_sha256,
)
from recsys.stage import write_json

SOURCE = '''"""Doc."""

LIMIT = 3  # of something


def twice(x: int) -> int:
    """Two times # x."""
    return 2 * x  # a comment
'''


def test_only_code_counts():
    same = SOURCE.replace("Two times # x.", "Other\n\n    words.").replace("  # a comment", "").replace("\n\n\n", "\n")
    assert code_sha256(same) == code_sha256(SOURCE)
    for change in (("2 * x", "3 * x"), ("LIMIT = 3", "LIMIT = 4")):
        assert code_sha256(SOURCE.replace(*change)) != code_sha256(SOURCE)
    assert code_sha256('x = "# no comment"') != code_sha256('x = "# another"')


def test_the_shipped_certificate_is_that_of_the_results():
    shipped = json.loads(SHIPPED.read_text())
    results = json.loads((Path(__file__).parents[3] / "benchmarks" / "results" / "certification.json").read_text())
    assert shipped["id"] == results["certificate"]["id"]
    assert module.sha256_json({"cells": results["cells"], "methods": shipped["methods"]}) == shipped["id"]
    assert shipped["id"] in (Path(__file__).parents[3] / "docs" / "certification.md").read_text()


def shipped(**changes: object) -> dict:
    return {**certificate_of([{"coverage": 0.95}]), "requirements": [
        {"requirement": "covers", "designs": ["offpolicy"], "met": False, "checked": 9, "failed": 2},
        {"requirement": "traps", "designs": ["offpolicy", "ab"], "met": True, "checked": 9, "failed": 0}], **changes}


@pytest.mark.slow
@pytest.mark.parametrize("design", METHODS)
def test_the_shipped_code_is_the_certified_code(design: str):
    """Fails after a change of code that decides intervals: python benchmarks/certification.py measures it anew."""
    found = certificate(design)
    assert found["id"] == json.loads(SHIPPED.read_text())["id"]
    assert found["methods_match"] is True


def test_a_change_of_methods_or_cells_is_another_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    one = shipped()
    assert certificate_of([{"coverage": 0.94}])["id"] != one["id"]
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "certificate.json")
    write_json(module.SHIPPED, one)
    assert module.certificate("ab") == {"id": one["id"], "design": "ab", "methods_match": True, "unmet": []}
    monkeypatch.setattr(module, "methods_sha256", lambda *_: {**methods_sha256(), "betting.py": "0" * 64})
    assert module.certificate_of([{"coverage": 0.95}])["id"] != one["id"]
    assert module.certificate("offpolicy")["methods_match"] is False


def test_what_decides_one_design_alone_is_quoted_there_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "certificate.json")
    write_json(module.SHIPPED, shipped())
    monkeypatch.setattr(module, "methods_sha256", lambda *_: {**methods_sha256(), "offpolicy/answer.py": "0" * 64})
    found = {design: module.certificate(design) for design in METHODS}
    assert {d: f["methods_match"] for d, f in found.items()} == {"offpolicy": False, "randomized": True, "ab": True}
    assert found["offpolicy"]["unmet"] == ["covers (2 of 9 failed)"]
    assert found["ab"]["unmet"] == []


def test_every_module_that_decides_an_interval_counts():
    folder = SHIPPED.parents[1]
    for name in MODULES:
        assert (folder / name).is_file()
    for name in ("offpolicy/answer.py", "offpolicy/totals.py", "offpolicy/estimators.py", "offpolicy/rows.py",
                 "ab/analysis.py", "ab/contrast.py", "sequential.py", "comparison.py"):
        assert name in MODULES


def test_no_certificate_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "none.json")
    assert module.certificate("offpolicy") is None
