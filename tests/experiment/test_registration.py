"""The decision rule is written down before results and held to: changed rules and unplanned looks are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recsys.config import ExperimentConfig
from recsys.errors import InputError, Refused
from recsys.experiment.registration import look, read_registration, register, require_unchanged
from tests.evaluation.bandit import config as plain


def config(evaluation: dict | None = None, **rule) -> ExperimentConfig:
    value = plain(["base", "a"], **(evaluation or {})).resolved()
    return ExperimentConfig.model_validate({**value, "decision": rule})


def test_a_rule_is_registered_before_results_and_may_change_until_then(tmp_path: Path) -> None:
    register(config(), tmp_path)
    first = read_registration(tmp_path)
    assert first is not None
    assert first["looks"] == []
    register(config(minimum_effect=0.02), tmp_path)
    second = read_registration(tmp_path)
    assert second is not None
    assert second["sha256"] != first["sha256"]
    assert second["rule"]["minimum_effect"] == 0.02


@pytest.mark.parametrize("change", [{"minimum_effect": 0.0}, {"multiplicity": "none"}, {"looks": 5},
                                    {"guardrails": [{"metric": "hide", "better": "lower"}]}])
def test_a_rule_that_changed_after_results_is_refused_and_named(change: dict, tmp_path: Path) -> None:
    rule = {"minimum_effect": 0.01}
    register(config(**rule), tmp_path)
    assert look(config(**rule), tmp_path, "data 1")["looks"] == 1
    other = config(**{**rule, **change})
    for act in (lambda: require_unchanged(other, tmp_path), lambda: register(other, tmp_path),
                lambda: look(other, tmp_path, "data 1")):
        with pytest.raises(Refused, match=next(iter(change))) as refused:
            act()
        assert "changed after results existed" in str(refused.value)
        assert "new folder" in str(refused.value)
    require_unchanged(config(**rule), tmp_path)


def test_an_edited_registration_is_noticed_by_its_own_hash(tmp_path: Path) -> None:
    register(config(), tmp_path)
    look(config(), tmp_path, "data")
    path = tmp_path / "decision.json"
    found = json.loads(path.read_text())
    found["rule"]["minimum_effect"] = 0.5
    path.write_text(json.dumps(found))
    with pytest.raises(Refused, match="edited after the run"):
        require_unchanged(config(minimum_effect=0.5), tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match="damaged registration"):
        require_unchanged(config(), tmp_path)


def test_peeking_at_growing_data_is_refused(tmp_path: Path) -> None:
    rule = config()
    register(rule, tmp_path)
    assert look(rule, tmp_path, "day 1")["looks"] == 1
    assert look(rule, tmp_path, "day 1")["looks"] == 1  # the same report again is no new look
    register(rule, tmp_path)
    with pytest.raises(Refused, match=r"look 2 at growing data.*always_valid"):
        look(rule, tmp_path, "day 2")
    assert look(rule, tmp_path, "day 1")["looks"] == 1


def test_planned_looks_and_always_valid_may_look_again(tmp_path: Path) -> None:
    for name, rule in (("two", {"looks": 2}), ("always", {"peeking": "always_valid"})):
        folder = tmp_path / name
        register(config(**rule), folder)
        assert [look(config(**rule), folder, d)["looks"] for d in ("day 1", "day 2", "day 1")] == [1, 2, 2]
    with pytest.raises(Refused, match="look 3"):
        look(config(looks=2), tmp_path / "two", "day 3")
    assert look(config(peeking="always_valid"), tmp_path / "always", "day 3")["looks"] == 3


def test_looks_are_only_ever_added_whatever_else_changes_in_the_folder(tmp_path: Path) -> None:
    register(config(), tmp_path)
    look(config(), tmp_path, "data 1")
    first = read_registration(tmp_path)
    assert first is not None
    other = config({"bootstrap": 900})
    register(other, tmp_path)  # and is killed here
    second = read_registration(tmp_path)
    assert second is not None
    assert second["looks"] == first["looks"]
    assert second["registered"] == first["registered"]
    assert second["history"] == [{k: v for k, v in first.items() if k not in ("looks", "history")}]
    changed = config({"bootstrap": 900}, minimum_effect=0.5)
    with pytest.raises(Refused, match=r"changed after results existed.*minimum_effect"):
        register(changed, tmp_path)
    with pytest.raises(Refused, match="look 2 at growing data"):
        look(other, tmp_path, "data 2")
    register(config(), tmp_path)  # back again
    back = read_registration(tmp_path)
    assert back is not None
    assert len(back["history"]) == 2
    assert look(config(), tmp_path, "data 1")["looks"] == 1


@pytest.mark.parametrize("registered", ["gone", "rewritten"])
def test_the_rule_of_a_report_holds_though_its_registration_is_gone(registered: str, tmp_path: Path) -> None:
    from recsys.evaluation.decision import decision_rule, rule_sha256

    rule = decision_rule(config())
    (tmp_path / "report").mkdir()
    report = {"decision": {"rule": rule, "sha256": rule_sha256(rule)}}
    (tmp_path / "report/lift.json").write_text(json.dumps(report))
    changed = config(minimum_effect=0.5)
    if registered == "rewritten":
        register(changed, tmp_path / "elsewhere")
        (tmp_path / "elsewhere/decision.json").rename(tmp_path / "decision.json")
    with pytest.raises(Refused, match=r"changed after results existed.*minimum_effect"):
        require_unchanged(changed, tmp_path)
    require_unchanged(config(), tmp_path)
    (tmp_path / "report/lift.json").write_text("{")
    with pytest.raises(InputError, match="damaged report"):
        require_unchanged(config(), tmp_path)


def test_config_sha256_is_the_hash_that_the_report_carries(tmp_path: Path) -> None:
    from recsys.stage import sha256_json

    register(config(), tmp_path)
    found = read_registration(tmp_path)
    assert found is not None
    assert found["config_sha256"] == sha256_json(config().resolved())
    moved = ExperimentConfig.model_validate({**config().resolved(), "data": {"recipe": "none", "home": "elsewhere"}})
    register(moved, tmp_path)
    again = read_registration(tmp_path)
    assert again is not None
    assert (again["settings_sha256"], again["history"]) == (found["settings_sha256"], [])
    assert again["config_sha256"] == sha256_json(moved.resolved())


def test_a_folder_without_a_registration_is_said_to_have_none(tmp_path: Path) -> None:
    assert look(config(), tmp_path, "data") == {"registered": None, "looks": 1}
    assert list(tmp_path.iterdir()) == []
