from __future__ import annotations

import json
from pathlib import Path

import pytest

from recsys.evaluation.certify import certificate as module
from recsys.evaluation.certify.certificate import SHIPPED, certificate, certificate_of, code_sha256, methods_sha256
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


@pytest.mark.slow
def test_the_shipped_code_is_the_certified_code():
    """Fails after a change of the interval methods: python benchmarks/certification.py measures them anew."""
    assert certificate() == {"id": json.loads(SHIPPED.read_text())["id"], "methods_match": True}


def test_a_change_of_methods_or_cells_is_another_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    one = certificate_of([{"coverage": 0.95}])
    assert certificate_of([{"coverage": 0.94}])["id"] != one["id"]
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "certificate.json")
    write_json(module.SHIPPED, one)
    assert module.certificate() == {"id": one["id"], "methods_match": True}
    monkeypatch.setattr(module, "methods_sha256", lambda: {**methods_sha256(), "betting.py": "0" * 64})
    assert module.certificate_of([{"coverage": 0.95}])["id"] != one["id"]
    assert module.certificate()["methods_match"] is False


def test_no_certificate_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "none.json")
    assert module.certificate() is None
