from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from recsys.config import ServedExperimentConfig, parse_model
from recsys.errors import InputError, Refused
from recsys.serving.arms import ab_arguments, assign_arm, register_experiment, registered_experiment


def experiment(**more) -> ServedExperimentConfig:
    return parse_model(ServedExperimentConfig, {
        "id": "e1", "baseline": "old", "arms": {"old": {"share": 0.5}, "new": {"share": 0.3}, "other": {"share": 0.2}},
        **more}, "test")


def test_units_are_dealt_by_the_shares_and_stay_where_they_are():
    e = experiment()
    units = [f"u{i}" for i in range(5_000)]
    arms = [assign_arm(e, u) for u in units]
    assert arms == [assign_arm(experiment(), u) for u in units]
    counts = np.array([arms.count(n) for n in ("old", "new", "other")])
    expected = 5_000 * np.array([0.5, 0.3, 0.2])
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # 99.9 % of chi-square with 2 degrees of freedom


def test_experiments_are_dealt_independently():
    one, two = (np.array([assign_arm(experiment(id=i), f"u{n}") == "old" for n in range(5_000)]) for i in ("a", "b"))
    assert abs(np.mean(one & two) - 0.25) < 0.03
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05


def test_the_rule_is_written_down_once_and_another_is_refused(tmp_path):
    first = register_experiment(experiment(), tmp_path)
    assert register_experiment(experiment(), tmp_path) == first
    with pytest.raises(Refused, match=r"registered with another rule.*decision"):
        register_experiment(experiment(decision={"minimum_effect": 0.1}), tmp_path)
    register_experiment(experiment(id="e2"), tmp_path)
    path = next(p for p in tmp_path.iterdir() if json.loads(p.read_text())["experiment"]["id"] == "e1")
    path.write_text(path.read_text().replace('"fixed"', '"always_valid"'))
    with pytest.raises(Refused, match="edited"):
        register_experiment(experiment(), tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match="damaged registration"):
        register_experiment(experiment(), tmp_path)


@pytest.mark.parametrize(("change", "words"), [
    ({"baseline": "gone"}, "is no arm"), ({"arms": {"old": {"share": 0.5}, "new": {"share": 0.4}}}, "sum to 1"),
])
def test_arms_that_do_not_add_up_are_named(change, words):
    with pytest.raises(InputError, match=words):
        experiment(**change)


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "log").write_text("a file")
    with pytest.raises(InputError, match=r"_state: the log's state folder cannot be made.*Not a directory"):
        register_experiment(experiment(), tmp_path / "log" / "_state")


def test_the_registered_rule_as_options_of_ab(tmp_path):
    register_experiment(experiment(decision={"confidence": 0.9, "looks": 2}), tmp_path)
    found = registered_experiment(tmp_path, "e1")
    assert registered_experiment(tmp_path, "e2") is None
    arguments = ab_arguments(found, "log.parquet")
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert float(options["--alpha"]) == pytest.approx(0.05)  # 0.1 over two looks
    assert (options["--baseline"], options["--unit"], options["--multiplicity"]) == ("old", "user_id", "holm")
    assert [a for a in arguments if "=" in a] == ["new=0.3", "old=0.5", "other=0.2"]
    always = ab_arguments(experiment(decision={"peeking": "always_valid"}), "log.parquet")
    assert ("--method", "sequential") in itertools.pairwise(always)
    assert "0.05" in always
