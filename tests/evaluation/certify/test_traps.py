from __future__ import annotations

from pathlib import Path

import pytest

from recsys.evaluation.certify.propensities import PropensityCell, measure_propensities
from recsys.evaluation.certify.traps import run_traps
from recsys.evaluation.offpolicy import scan
from recsys.evaluation.offpolicy.propensity import Cells


def test_every_trap_is_caught_and_its_twin_passes():
    found = {t["trap"]: t for t in run_traps()}
    skipped = [t for t in found.values() if t["caught"] is None]
    assert [t["ends"] for t in skipped] == ["skipped"]
    assert "RECSYS_DATA_HOME" in skipped[0]["reason"]
    for trap in found.values():
        if trap not in skipped:
            assert trap["caught"], trap
            assert trap["twin_passes"], trap
    assert len(found) == 12


def test_the_broken_weeks_of_upworthy(data_home: Path):
    found = next(t for t in run_traps(data_home) if t["trap"].startswith("Upworthy"))
    assert found["ends"] == "refusal"
    assert found["caught"]
    assert found["twin_passes"]


def test_an_open_trap_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Cells, "require_not_reconstructed", lambda self: None)
    monkeypatch.setattr(scan, "require_not_fitted", lambda table, names: None)  # counts are a model's, too
    open_ones = [t for t in run_traps() if t["caught"] is False]
    assert [t["trap"].split(":")[0] for t in open_ones] == ["reconstructed propensity"] * 3
    assert {t["ends"] for t in open_ones} == {"number"}


def test_counted_propensities_are_told_from_logged_ones():
    found = measure_propensities(PropensityCell(16, 3))
    assert set(found["false_alarms"].values()) == {0.0}
    shown = {name: shares["with the segment"] for name, shares in found["found"].items()}
    assert shown["counted per ad"] == 1.0
    assert shown["per ad and segment"] >= 0.9
    assert shown["per ad and segment, 1 % jitter a row"] >= 0.6
