"""The certification's small version: it passes, it resumes, and it can fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.evaluation.certify import judge, measure
from recsys.evaluation.certify.run import certify, grid, small_grid
from recsys.evaluation.intervals import Interval


@pytest.fixture
def no_traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have tests of their own, and take half a second."""
    monkeypatch.setattr("recsys.evaluation.certify.run.run_traps", lambda *_: [])


@pytest.fixture
def result(small: tuple[Path, int, dict]) -> dict:
    return small[2]


def test_the_small_version_meets_what_is_required(result: dict):
    assert {c["section"] for c in result["cells"]} == {"values", "lifts", "uniformity", "randomized", "propensities"}
    for line in result["requirements"]:
        assert line["met"], line
        # the small grid has no cell of 10,000 effective rows
        missing = "effective sample size is 10,000" in line["requirement"] or (
            "on one log" in line["requirement"] and "without an effect" in line["requirement"])  # nor one of no lift
        assert bool(line["checked"]) != missing, line
    first = result["cells"][0]["methods"]
    assert first["betting"]["width"] <= first["empirical_bernstein"]["width"]
    assert first["empirical_bernstein"]["coverage"] == 1.0


def test_weak_methods_are_shown_failing(result: dict):
    clustered = next(c for c in result["cells"] if c.get("kind") == "clustered")
    assert judge.covers(clustered, "t per impression") is False
    assert clustered["methods"]["t per impression"]["coverage"] < clustered["methods"]["t"]["coverage"]
    tests = next(c for c in result["cells"] if c["section"] == "uniformity")["tests"]
    assert tests["per impression"]["rejected"] > 0.15
    assert tests["analysis, per user"]["rejected"] < 0.15  # of 40
    assert tests["always valid, 5 looks"]["rejected"] <= 0.05 < tests["one look of 5 below 0.05"]["rejected"]


@pytest.mark.usefixtures("no_traps")
def test_a_method_that_is_too_narrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A third of the honest width: coverage falls, and the certifier says whose."""
    honest = measure.betting_mean

    def narrow(*args, **kwargs) -> Interval:
        made = honest(*args, **kwargs)
        return replace(made, low=made.estimate - (made.estimate - made.low) / 3,
                       high=made.estimate + (made.high - made.estimate) / 3)

    monkeypatch.setattr(measure, "betting_mean", narrow)
    cell = small_grid(60, 2)[0]
    failed = [line for line in certify(tmp_path, cells=[cell])["requirements"] if line["failures"]]
    assert [line["requirement"].split(":")[0] for line in failed] == ["betting"]
    assert failed[0]["failures"][0]["n"] == 2000
    assert failed[0]["failures"][0]["coverage"] < failed[0]["failures"][0]["needed"]


def test_p_values_that_are_published_and_always_betting_are_judged():
    """A cell of each that fails, and one that passes."""
    found = {"logs": 400, "coverage": 0.9, "width": 1.0}
    fine = {"rejected": 0.05, "se": 0.01, "ks_p": 0.5}
    cells = [{"section": "lifts", "regime": 1, "facts": {"ess": 1.0}, "methods": {"always betting": found}},
             *({"section": "uniformity", "kind": kind, "setting": at, "tests": {name: fine | bad}}
               for kind, name in (("lift", "published"), ("ab", "always valid, 5 looks"))
               for at, bad in enumerate(({}, {"ks_p": 1e-9}, {"rejected": 0.09})))]
    failed = {line["requirement"]: line for line in judge.requirements(cells, []) if line["failures"]}
    assert len(failed) == 3
    for words, where, designs in (("always betting: coverage", {"regime": 1}, ["offpolicy"]),
                                  ("always-valid p-values without an effect, two pol", {"setting": 2}, ["offpolicy"]),
                                  ("always-valid p-values without an effect, two ran", {"setting": 2}, ["ab"])):
        line = next(v for k, v in failed.items() if words in k)
        assert len(line["failures"]) == 1
        assert where.items() <= line["failures"][0].items()
        assert line["designs"] == designs


@pytest.mark.usefixtures("no_traps")
def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = [replace(small_grid(3, 2)[0], n=500, seed=s) for s in range(3)]
    whole = certify(tmp_path / "a", cells=cells)["cells"]
    calls = []

    def counted(cell: measure.ValueCell) -> dict:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(cell)
        return measure.measure_value(cell)

    monkeypatch.setattr("recsys.evaluation.certify.run.measure_value", counted)
    with pytest.raises(KeyboardInterrupt):
        certify(tmp_path / "b", cells=cells)
    calls.clear()
    assert certify(tmp_path / "b", cells=cells)["cells"] == whole
    assert len(calls) == 1  # the two finished ones were kept
    certify(tmp_path / "b", cells=[replace(cells[0], replications=2)])
    assert len(calls) == 2  # another setting is another cell
    assert len(list((tmp_path / "b" / "cells").iterdir())) == 4


@pytest.mark.usefixtures("no_traps")
def test_changed_methods_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cell = replace(small_grid(2, 2)[0], n=500)
    certify(tmp_path, cells=[cell])
    monkeypatch.setattr("recsys.evaluation.certify.run._code", lambda section: f"other {section}")
    certify(tmp_path, cells=[cell])
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_the_grid_is_the_one_that_was_asked_for():
    cells = grid(10, 2)
    values = [c for c in cells if c.section == "values"]
    assert len({(c.ctr, c.overlap, c.n, c.kind) for c in values}) == len(values) == 81
    assert len(set(cells)) == len(cells)


def test_settings_are_checked(tmp_path: Path):
    with pytest.raises(InputError, match="--jobs"):
        certify(tmp_path, jobs=0)


@pytest.mark.slow
def test_two_processes_say_what_one_says(tmp_path: Path):
    cells = [replace(c, replications=4) for c in small_grid(4, 2)[:4]]
    one = certify(tmp_path / "one", cells=cells)
    two = certify(tmp_path / "two", cells=cells, jobs=2)
    assert json.dumps(one["cells"]) == json.dumps(two["cells"])
    assert one["certificate"] == two["certificate"]


@pytest.mark.slow
def test_the_published_policy_covers_where_evidence_is_scant(tmp_path: Path):
    """Poor overlap, users with bursts of clicks, few of them: t holds the truth in half of the logs."""
    cells = [measure.ValueCell(0.004, "poor", 2_000, "clustered", 300, 5), measure.ValueCell(
        0.001, "poor", 10_000, "iid", 300, 5), measure.ValueCell(0.02, "soft", 10_000, "clustered", 300, 5)]
    made = certify(tmp_path, cells=cells)["cells"]
    for cell in made:
        assert judge.covers(cell, "default") in (True, None), cell
        assert judge.covers(cell, "betting")
    assert made[0]["methods"]["t"]["coverage"] < 0.7
