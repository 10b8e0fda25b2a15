"""What a run that was killed left behind, read as a model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recsys.config import ModelConfig, TrainingConfig
from recsys.errors import InputError
from recsys.training.journal import Journal
from recsys.training.run_folder import load_unfinished
from recsys.training.trainer import train_model
from tests.training.damage import DAMAGE, flip
from tests.training.toy import toy_split

MODEL = ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), min_count=1)
OVERFITS = TrainingConfig(epochs=6, batch_size=128, sparse_lr=0.5, dense_lr=0.05, log_steps=1, keep_checkpoints=9,
                          validation_share=0.1)


def cut(split: Path, out: Path, training: TrainingConfig, step: int, model: ModelConfig = MODEL, member: int = 0,
        **more: object) -> Path:
    """A run whose process ended after some steps of a member; its partial folder."""
    real = Journal.step

    def ends(self: Journal, **line: object) -> None:
        real(self, **line)  # type: ignore[arg-type]
        if line["step"] == step and self._member == member:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "step", ends)
        with pytest.raises(KeyboardInterrupt):
            train_model(split, model, training, out, **more)  # type: ignore[arg-type]
    (folder,) = out.parent.glob(f".{out.name}.*.partial")
    return folder


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return toy_split(tmp_path_factory.mktemp("data") / "split", n=1000)


@pytest.fixture(scope="module")
def left(split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was killed in its sixth epoch, with a checkpoint at the end of every epoch."""
    return cut(split, tmp_path_factory.mktemp("left") / "out", OVERFITS, 5 * 8 + 2)


@pytest.fixture
def run(left: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(left, tmp_path / left.name)


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoint/member-0").glob("epoch-*"))


def same(one: Path, two: Path) -> bool:
    a, b = (load_unfinished(p).bundle.models[0].weights() for p in (one, two))
    assert a.keys() == b.keys()
    return all(torch.equal(a[n], b[n]) for n in a)


def test_a_run_is_its_best_weights_and_a_named_checkpoint_its_own(run: Path, tmp_path: Path) -> None:
    *_, latest = found = checkpoints(run)
    assert len(found) == 5
    facts = load_unfinished(run).facts
    best = run / "checkpoint/member-0" / facts[0]["name"]
    assert best != latest, "this test needs a run that overfits"
    assert same(run, best)
    assert not same(run, latest)
    assert same(tmp_path / "out", run)  # by the name of the folder that it would have written
    assert load_unfinished(latest).facts[0]["step"] == 5 * facts[0]["step"] // facts[0]["epoch"]


def test_names_from_within_the_run_are_taken_as_well(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latest = checkpoints(run)[-1]
    monkeypatch.chdir(latest.parent)
    assert load_unfinished(Path(latest.name)).facts == load_unfinished(latest).facts
    monkeypatch.chdir(run)
    assert load_unfinished(Path()).facts == load_unfinished(run).facts


MORE_DAMAGE: dict[str, Callable[[Path], object]] = {
    **DAMAGE,
    "bytes, not": DAMAGE["rank-0.safetensors has"],
    "does not have its own": lambda c: (c / "manifest.json").write_text(
        (c / "manifest.json").read_text().replace('"step": ', '"step": 1')),
}


@pytest.mark.parametrize("reason", MORE_DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_a_run_goes_by_the_one_before(
        run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    monkeypatch.setattr(logging.getLogger("recsys"), "propagate", True)
    *_, before, latest = checkpoints(run)
    MORE_DAMAGE[reason](latest)
    with pytest.raises(InputError, match=f"damaged checkpoint.*{reason}"):
        load_unfinished(latest)
    shutil.rmtree(run / "checkpoint/member-0" / load_unfinished(run).facts[0]["name"])  # the best weights of the rest
    names = {p.name for p in checkpoints(run)}
    with pytest.raises(InputError, match="no checkpoint that is whole"):
        load_unfinished(run)
    assert "it needs the best weights so far" in caplog.text
    assert (f"checkpoint {latest} is not used" in caplog.text) == (reason != "manifest.json is missing")
    assert {p.name for p in checkpoints(run)} == names  # nothing is put aside: the run may be going on
    assert load_unfinished(before).facts[0]["name"] == before.name


def test_a_definition_that_is_damaged_or_missing_is_refused(run: Path) -> None:
    latest = checkpoints(run)[-1]
    definition = run / "checkpoint/definition"
    flip(definition / "vocabulary.parquet")
    for path in (run, latest):
        with pytest.raises(InputError, match=r"vocabulary\.parquet: damaged file"):
            load_unfinished(path)
    (definition / "manifest.json").unlink()
    for path in (run, latest):
        with pytest.raises(InputError, match="no definition"):
            load_unfinished(path)


def test_weights_of_another_model_are_refused(run: Path, split: Path, tmp_path: Path) -> None:
    other = cut(split, tmp_path / "other", OVERFITS, 10, MODEL.model_copy(update={"top": (4,)}))
    shutil.rmtree(run / "checkpoint/definition")
    shutil.copytree(other / "checkpoint/definition", run / "checkpoint/definition")
    with pytest.raises(InputError, match="weights do not fit"):
        load_unfinished(run)


def test_no_run_and_two_runs_are_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file.*model folder"):
        load_unfinished(tmp_path / "nothing")
    shutil.copytree(run, tmp_path / ".out.another.partial")
    with pytest.raises(InputError, match=r"several unfinished runs.*\.out\.another\.partial"):
        load_unfinished(tmp_path / "out")


def test_an_ensemble_waits_for_all_of_its_members(split: Path, tmp_path: Path) -> None:
    training = OVERFITS.model_copy(update={"ensemble": 2, "epochs": 2})
    run = cut(split, tmp_path / "out", training, 3, member=1)
    with pytest.raises(InputError, match="member-1: no checkpoint that is whole"):
        load_unfinished(run)
    assert len(load_unfinished(checkpoints(run)[-1]).bundle.models) == 1
    shutil.rmtree(run)
    both = load_unfinished(cut(split, tmp_path / "out", training, 12, member=1))
    assert [len(both.bundle.models), both.facts[1]["epoch"]] == [2, 1]
    one, two = (m.weights() for m in both.bundle.models)
    assert any(not torch.equal(one[n], two[n]) for n in one)
