"""The search on a small split whose folder has no test part at all."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("optuna")

from recsys.config import ExperimentConfig, load_config
from recsys.errors import InputError
from recsys.training.journal import Watch, read_journal
from recsys.training.space import Choices, Range
from recsys.training.trainer import train_model
from recsys.training.tune import (
    Search,
    clear_finished,
    interrupted,
    mean_metric,
    next_trial,
    open_study,
    run_trial,
    summary,
)
from tests.training.toy import toy_content, toy_split

# A bad start: so slow that it hardly leaves the base rate.
CONFIG = load_config("criteo_attribution", [
    "model={embedding_dim: 4, bottom: [8], top: [16], content_dim: 8, min_count: 1}",
    "training={epochs: 4, batch_size: 128, validation_share: 0.2, sparse_lr: 0.0001, dense_lr: 0.00001}"])
SPACE = {"training.sparse_lr": Range(0.0001, 0.3, True), "training.dense_lr": Range(0.00001, 0.03, True),
         "model.top": Choices(([16], [16, 8]))}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy_split(tmp_path_factory.mktemp("data") / "split", n=1000)
    (folder / "test.parquet").unlink()
    return folder


class Killed(BaseException):
    pass


def _train(split: Path, die_after: int | None = None) -> Any:
    """A trainer that dies after so many evaluations over all trials, told or not yet told to the study."""
    seen = [0]

    def train(config: ExperimentConfig, folder: Path, watch: Watch) -> Mapping[str, Any]:
        def counted(evaluation: Any) -> None:
            seen[0] += 1
            if seen[0] == die_after and seen[0] % 2:
                raise Killed
            watch(evaluation)
            if seen[0] == die_after:
                raise Killed

        return train_model(split, config.model, config.training, folder, seed=config.seed, content=toy_content(),
                           name="toy", test=False, watch=counted)

    return train


def _search(out: Path, trials: int = 7, config: ExperimentConfig = CONFIG, space: Any = SPACE,
            metric: str = "normalized_entropy") -> Search:
    return Search(config, space, metric, trials, out)


def _run(search: Search, train: Any) -> dict[str, Any]:
    study = open_study(search)
    clear_finished(study, search)
    left = interrupted(study)
    while (trial := next_trial(study, search, left)) is not None:
        run_trial(study, trial, search, train)
    return summary(study, search)


def _timeless(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "trials": [{k: v for k, v in t.items() if k != "training_seconds"} for t in found["trials"]]}


@pytest.fixture(scope="module")
def whole(split: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("search")
    return _run(_search(out), _train(split)), out


def test_finds_a_better_validation_loss_and_prunes(whole: tuple[dict[str, Any], Path]) -> None:
    found, out = whole
    assert found["counts"]["pruned"] >= 2
    assert found["counts"]["complete"] + found["counts"]["pruned"] == 7
    assert found["trials"][0]["state"] == "complete"
    assert found["trials"][0]["settings"] == {}
    assert found["best"]["value"] < found["experiment"] - 0.02
    assert found["best"]["value"] == min(t["value"] for t in found["trials"] if t["value"] is not None)
    pruned = [t for t in found["trials"] if t["state"] == "pruned"]
    assert all(max(map(int, t["steps"])) < 100 for t in pruned)
    assert all(t["training_seconds"] > 0 for t in found["trials"])
    assert sorted(p.name for p in (out / "trials").iterdir()) == [f"{n:04d}.jsonl" for n in range(7)]


def test_a_trial_is_judged_by_the_weights_it_would_end_with(whole: tuple[dict[str, Any], Path], split: Path,
                                                            tmp_path: Path) -> None:
    found, out = whole
    best = found["best"]["number"]
    config = _search(out).trial_config(best)
    metrics = train_model(split, config.model, config.training, tmp_path / "again", seed=config.seed,
                          content=toy_content(), name="toy", test=False)
    assert metrics["validation"]["normalized_entropy"] == pytest.approx(found["best"]["value"], abs=1e-9)
    lines = [line for line in read_journal(out / "trials" / f"{best:04d}.jsonl") if line["kind"] == "evaluation"]
    assert [line["heads"]["click"]["normalized_entropy"] for line in lines] == list(
        found["trials"][best]["steps"].values())


def test_killed_and_run_again_no_trial_is_lost_or_doubled(whole: tuple[dict[str, Any], Path], split: Path,
                                                          tmp_path: Path) -> None:
    for after in (2, 3, 1, 5):
        with pytest.raises(Killed):
            _run(_search(tmp_path), _train(split, after))
    found = _run(_search(tmp_path), _train(split))
    assert _timeless(found) == _timeless(whole[0])
    assert sorted(p.name for p in (tmp_path / "trials").iterdir()) == [f"{n:04d}.jsonl" for n in range(7)]


def test_more_trials_go_on_from_there(whole: tuple[dict[str, Any], Path], split: Path, tmp_path: Path) -> None:
    shutil.copytree(whole[1], tmp_path / "copy")
    found = _run(_search(tmp_path / "copy", 8), _train(split))
    assert found["trials"][:7] == whole[0]["trials"]
    assert found["trials"][7]["state"] in ("complete", "pruned")


@pytest.mark.slow
def test_a_study_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    study = open_study(_search(tmp_path))
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    other.execute("begin exclusive")
    release = threading.Timer(7.0, other.execute, ["rollback"])  # SQLite's own clients give up after 5 s
    release.start()
    study.ask()
    release.join()
    other.close()
    assert len(study.get_trials()) == 1


def test_a_trial_that_ends_while_the_search_is_summed_up_is_not_half_in_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = _search(tmp_path)
    study, other = open_study(search), open_study(search)
    study.ask()
    read = study.get_trials

    def read_and_meanwhile(**settings: Any) -> list[Any]:
        found = read(**settings)
        other.tell(0, 0.5)
        return found

    monkeypatch.setattr(study, "get_trials", read_and_meanwhile)
    found = summary(study, search)
    assert (found["best"], found["counts"]["running"]) == (None, 1)
    monkeypatch.undo()
    assert summary(study, search)["best"] == {"number": 0, "value": 0.5, "settings": {}}


def test_another_search_does_not_mix_into_the_folder(whole: tuple[dict[str, Any], Path]) -> None:
    search = _search(whole[1])
    open_study(replace(search, trials=99))
    for other in (replace(search, metric="auc"), replace(search, space={"model.dropout": Range(0.0, 0.5)}),
                  replace(search, config=load_config("criteo_attribution"))):
        with pytest.raises(InputError, match="another search"):
            open_study(other)


def test_a_combination_that_does_not_validate_is_a_failed_trial(split: Path, tmp_path: Path) -> None:
    # Each choice alone is fine; lanes that do not divide the batch are not.
    config = load_config("criteo_attribution", [
        "model={embedding_dim: 4, bottom: [8], top: [16], content_dim: 8, min_count: 1}",
        "training={epochs: 1, batch_size: 128, validation_share: 0.2}"])
    space = {"training.lanes": Choices((8,)), "training.batch_size": Choices((100, 101, 102))}
    found = _run(_search(tmp_path, 3, config=config, space=space), _train(split))
    failed = [t for t in found["trials"] if t["state"] == "fail"]
    assert [t["number"] for t in failed] == [1, 2]
    assert "lanes: 8 does not divide batch_size" in failed[0]["reason"]
    assert found["best"]["number"] == 0


def test_an_experiment_without_a_validation_slice_is_given_one(tmp_path: Path) -> None:
    config = load_config("criteo_attribution")
    assert config.training.validation_share == 0
    trial = _search(tmp_path, config=config).trial_config(0)
    assert trial.training.validation_share == 0.1
    assert trial.training.ensemble == 1
    assert _search(tmp_path).trial_config(0).training.validation_share == 0.2


def test_unknown_metric_and_missing_optuna_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no such metric.*got 'f1'"):
        open_study(_search(tmp_path, metric="f1"))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"optuna.*pip install 'recsys-ads\[tune\]'"):
        open_study(_search(tmp_path))


def test_mean_metric_over_heads() -> None:
    assert mean_metric({"a": {"auc": 0.5}, "b": {"auc": 0.7}, "c": {"auc": None}}, "auc") == pytest.approx(0.6)
    assert mean_metric({"a": {"auc": None}}, "auc") is None


def test_a_trial_killed_right_after_the_study_was_told_has_left_its_record(split: Path, tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    search = _search(tmp_path, trials=1)
    study = open_study(search)
    trial, tell = next_trial(study, search, []), study.tell

    def killed(*arguments: Any) -> None:
        tell(*arguments)
        raise Killed

    monkeypatch.setattr(study, "tell", killed)
    assert trial is not None
    with pytest.raises(Killed):
        run_trial(study, trial, search, _train(split))
    clear_finished(study, search)
    assert [p.name for p in (tmp_path / "trials").iterdir()] == ["0000.jsonl"]
    assert {line["kind"] for line in read_journal(tmp_path / "trials" / "0000.jsonl")} == {"step", "evaluation"}
