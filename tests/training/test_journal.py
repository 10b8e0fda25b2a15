from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import InputError
from recsys.training.journal import Evaluation, Journal, read_journal

CLOCK = ("samples_per_second", "input_stall_share", "sums")
STEPS, EPOCH = 20, 10


def _run(journal: Journal, member: int, start: int, stop: int) -> None:
    """Steps start + 1 .. stop of a run of two epochs of ten steps, logged every fourth step, with a validation each."""
    journal.member(member, start, start * 8)
    for step in range(start + 1, stop + 1):
        epoch, of_epoch = (step - 1) // EPOCH, (step - 1) % EPOCH + 1
        journal.advance(8)
        if step % 4 == 0 or of_epoch == EPOCH:
            journal.step(epoch=epoch, step=step, samples=step * 8, loss=4.0 * of_epoch + epoch, trials=8.0 * of_epoch,
                         sparse_lr=0.05, dense_lr=0.001 * step, seconds=2.0 * step, stalled=0.5 * step,
                         auc={"click": 0.5 + step / 100} if step > 4 else {})
        if of_epoch == EPOCH:
            journal.evaluation(epoch=epoch, step=step, heads={"click": {"log_loss": 0.5 - epoch / 10, "auc": None}})


def _timeless(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_journal(folder / "train.jsonl")]


def _journal(folder: Path, **more: Any) -> Journal:
    folder.mkdir(exist_ok=True)
    return Journal(folder, "x", STEPS * 8, members=2, entropy=0.5, **more)


def test_lines_hold_means_between_lines(tmp_path: Path) -> None:
    with _journal(tmp_path) as journal:
        _run(journal, 0, 0, STEPS)
    lines = read_journal(tmp_path / "train.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [4, 8, 10, 12, 16, 20]
    assert steps[1]["loss"] == pytest.approx(0.5)
    assert steps[1]["ne"] == pytest.approx(1.0)
    assert [line["auc"] for line in steps[:2]] == [{}, {"click": pytest.approx(0.58)}]
    assert steps[3]["loss"] == pytest.approx((4.0 * 2 + 1) / 16)  # a new epoch's sums begin at 0
    assert steps[1]["samples_per_second"] == pytest.approx(4.0)
    assert steps[1]["input_stall_share"] == pytest.approx(0.25)
    assert steps[2]["dense_lr"] == pytest.approx(0.01)
    assert [(e["step"], e["epoch"], e["heads"]["click"]["auc"]) for e in lines if e["kind"] == "evaluation"] == [
        (10, 0, None), (20, 1, None)]


@pytest.mark.parametrize("killed", range(1, STEPS + 1))
@pytest.mark.parametrize("torn", [False, True])
def test_resumed_at_any_checkpoint_the_file_is_that_of_an_uninterrupted_run(tmp_path: Path, killed: int,
                                                                            torn: bool) -> None:
    with _journal(tmp_path / "whole") as journal:
        _run(journal, 0, 0, STEPS)
        _run(journal, 1, 0, STEPS)
    for checkpoint in {0, killed // 2, killed}:
        out = tmp_path / str(checkpoint)
        with _journal(out) as journal:
            _run(journal, 0, 0, STEPS)
            _run(journal, 1, 0, killed)
        if torn:
            with (out / "train.jsonl").open("ab") as file:
                file.write(b'{"kind": "step", "mem')
        with _journal(out) as journal:
            _run(journal, 0, STEPS, STEPS)  # a finished member has nothing left to do
            _run(journal, 1, checkpoint, STEPS)
        assert _timeless(out) == _timeless(tmp_path / "whole")


def test_an_evaluation_done_again_is_told_but_not_doubled(tmp_path: Path) -> None:
    told: list[Evaluation] = []
    with _journal(tmp_path, watch=told.append) as journal:
        _run(journal, 0, 0, EPOCH)
    with _journal(tmp_path, watch=told.append) as journal:  # the checkpoint was written before the evaluation
        journal.member(0, EPOCH, EPOCH * 8)
        journal.evaluation(epoch=0, step=EPOCH, heads={"click": {"log_loss": 0.5, "auc": None}})
        _run(journal, 0, EPOCH, STEPS)
    assert [t.share for t in told] == [0.5, 0.5, 1.0]
    assert [(t.index, t.step, t.heads["click"]["log_loss"]) for t in told] == [
        (1, 10, 0.5), (1, 10, 0.5), (2, 20, pytest.approx(0.4))]
    assert [e["step"] for e in _timeless(tmp_path) if e["kind"] == "evaluation"] == [10, 20]


def test_what_a_watcher_raises_ends_the_run_and_the_line_stays(tmp_path: Path) -> None:
    def stop(_: Evaluation) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), _journal(tmp_path, watch=stop) as journal:
        _run(journal, 0, 0, STEPS)
    assert _timeless(tmp_path)[-1]["kind"] == "evaluation"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with _journal(tmp_path, enabled=False, tensorboard=True) as journal:
        _run(journal, 0, 0, STEPS)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with _journal(tmp_path) as journal:
        journal.member(0)
        journal.step(epoch=0, step=4, samples=8, loss=float("nan"), trials=8.0, sparse_lr=1, dense_lr=1, seconds=1,
                     stalled=0)
    (line,) = (json.loads(text) for text in (tmp_path / "train.jsonl").read_text().splitlines())
    assert line["loss"] is None


def _events(folder: Path) -> Iterator[Any]:
    """Events of all files in the order of their writing; a record is length, its checksum, data, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.*"), key=lambda f: f.stat().st_mtime_ns):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size


def _scalars(folder: Path, tag: str) -> dict[int, float]:
    """As TensorBoard reads them: a start event drops what an earlier process wrote from its step on."""
    found: dict[int, float] = {}
    for event in _events(folder):
        if event.session_log.status == 1:
            found = {step: v for step, v in found.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == tag:
                assert event.step not in found
                found[event.step] = value.simple_value
    return found


def test_event_files_read_back_also_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with _journal(tmp_path, tensorboard=True) as journal:
        _run(journal, 0, 0, 17)
    with _journal(tmp_path, tensorboard=True) as journal:
        _run(journal, 0, 9, STEPS)
    board = tmp_path / "tensorboard" / "member-0"
    steps = [line for line in read_journal(tmp_path / "train.jsonl") if line["kind"] == "step"]
    for name, tag in (("loss", "train/loss"), ("dense_lr", "lr/dense"), ("ne", "train/ne")):
        assert _scalars(board, tag) == {line["step"]: pytest.approx(line[name]) for line in steps}
    assert _scalars(board, "validation/click/log_loss") == {10: 0.5, 20: pytest.approx(0.4)}


def test_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"tensorboardX.*pip install 'recsys-ads\[tensorboard\]'"):
        _journal(tmp_path, tensorboard=True)
