"""The record of a training run: ``train.jsonl``, TensorBoard event files, the progress bar.

``train.jsonl`` holds one JSON object a line, of two kinds:

* ``step``: member, epoch, step, samples, loss (nats a trial, mean since the line before), ne (that loss over the
  entropy of the training base rate), auc (by head, of the rows since the line before, each scored before it was
  learnt from: in the first epoch a validation on every row, Blum et al. 1999, "Beating the hold-out"; bins of 0.0024
  of log odds), sparse_lr, dense_lr, samples_per_second, input_stall_share; and the running sums that the next line's
  means are taken against (``sums``: loss and trials of the epoch, seconds, seconds stalled);
* ``evaluation``: member, epoch, step, part and, by head, the metrics of :mod:`recsys.training.metrics`.

A run that was killed goes on from a checkpoint that may be older than the last line. :meth:`Journal.member` cuts what
lies behind the checkpoint's step, and a line that is there already is not written twice, so that the file ends with
the lines of a run that was never interrupted (but for what the clock says).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from recsys.errors import InputError
from recsys.log import log, progress
from recsys.stage import write_atomic

JOURNAL_FILE = "train.jsonl"
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What a watcher of a run is told: the ``index``-th (from 1) evaluation of a member on the validation slice.

    ``share``: of the member's training that is done, 1 at the end of the last epoch.
    """

    member: int
    index: int
    epoch: int
    step: int
    share: float
    heads: Mapping[str, Metrics]


Watch = Callable[[Evaluation], None]
"""Called after each validation; may raise to end the run (its checkpoint is left to it)."""


class Journal:
    """Writes the record of one model's training; a context manager. Members of an ensemble come one after another.

    Args:
        folder: of the model; the file is ``folder/train.jsonl``, event files lie in ``folder/tensorboard``.
        name: shown on the progress bar.
        samples: rows that one member trains on, all epochs together.
        members: of the ensemble.
        entropy: mean nats a trial of predicting the training base rates
            (:func:`recsys.training.metrics.base_entropy`); None: no ``ne``.
        tensorboard: also write event files.
        watch: told of every validation.
        enabled: False on all ranks but the first: nothing is written or shown there.
    """

    def __init__(self, folder: Path, name: str = "model", samples: int = 0, *, members: int = 1,
                 entropy: float | None = None, tensorboard: bool = False, watch: Watch | None = None,
                 enabled: bool = True) -> None:
        self._path, self._name, self._samples, self._members = folder / JOURNAL_FILE, name, samples, members
        self._entropy, self._watch, self._enabled = entropy, watch, enabled
        self._board_dir = folder / "tensorboard" if tensorboard and enabled else None
        self._writer = _event_writer() if self._board_dir is not None else None
        self._board: Any = None
        self._file: IO[bytes] | None = None
        self._bar = progress("samples") if enabled else None
        self._task: Any = None
        self._member = self._done = 0
        self._known: set[tuple[Any, ...]] = set()
        self._last: dict[str, Any] = {}

    def __enter__(self) -> Journal:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()

    def member(self, member: int, step: int = 0, samples: int = 0) -> None:
        """Begin a member of the ensemble, or go on with it after ``step`` steps and ``samples`` rows."""
        self._member, self._done, self._known, self._last = member, samples, set(), {}
        if not self._enabled:
            return
        if self._file is not None:
            self._file.close()
        kept = [line for line in read_journal(self._path) if line["member"] != member or line["step"] <= step]
        kept.sort(key=lambda line: int(line["member"]))
        write_atomic(self._path, "".join(_dump(line) for line in kept))
        self._file = self._path.open("ab", buffering=0)
        for line in kept:
            if line["member"] == member:
                self._known.add(_key(line))
                self._last = line if line["kind"] == "step" else self._last
        if self._writer is not None and self._board_dir is not None:
            if self._board is not None:
                self._board.close()
            # What an earlier process wrote behind the cursor is dropped by readers from purge_step on; the suffix keeps
            # a run that goes on within the same second from writing over its first file.
            self._board = self._writer(str(self._board_dir / f"member-{member}"), purge_step=step + 1 if step else None,
                                       filename_suffix=f".{time.time_ns()}")
        assert self._bar is not None
        self._task = self._bar.add_task(f"training {self._name} {member + 1}/{self._members}", total=self._samples,
                                        completed=samples)

    def advance(self, rows: int) -> None:
        """So many rows more are trained on, by this rank; cheap, for every step."""
        self._done += rows
        if self._bar is not None:
            self._bar.advance(self._task, rows)

    def step(self, *, epoch: int, step: int, samples: int, loss: float, trials: float, sparse_lr: float,
             dense_lr: float, seconds: float, stalled: float, auc: Mapping[str, float] | None = None) -> None:
        """Write a line after ``step`` steps, counted over all epochs; the loop asks for it every ``log_steps``
        steps and at an epoch's end, for only then need the sums be read from the device.

        Args:
            epoch: that the step belongs to, from 0.
            step, samples: done so far by this member.
            loss, trials: sums of this epoch so far, over all ranks; a new epoch starts at 0.
            sparse_lr, dense_lr: in force at the step.
            seconds, stalled: this member's training time so far, and how much of it waited for input.
            auc: by head, of the rows since the last line; heads without both successes and failures are left out.
        """
        self._done = samples
        if not self._enabled:
            return
        last = self._last
        sums = {"loss": loss, "trials": trials, "seconds": seconds, "stalled": stalled}
        before = dict(last.get("sums", {}))
        if last.get("epoch") != epoch:
            before |= {"loss": 0.0, "trials": 0.0}
        delta = {k: v - before.get(k, 0.0) for k, v in sums.items()}
        mean = delta["loss"] / delta["trials"] if delta["trials"] > 0 else None
        ne = mean / self._entropy if mean is not None and self._entropy else None
        clock = max(delta["seconds"], 1e-9)
        line = {"kind": "step", "member": self._member, "epoch": epoch, "step": step, "samples": samples,
                "loss": mean, "ne": ne, "auc": dict(auc or {}), "sparse_lr": sparse_lr, "dense_lr": dense_lr,
                "samples_per_second": (samples - last.get("samples", 0)) / clock,
                "input_stall_share": min(max(delta["stalled"] / clock, 0.0), 1.0), "sums": sums}
        if not self._write(line):
            return
        self._last = line
        self._scalars({"train/loss": mean, "train/ne": ne, **{f"train/auc/{n}": v for n, v in line["auc"].items()},
                       "lr/sparse": sparse_lr, "lr/dense": dense_lr,
                       "speed/samples_per_second": line["samples_per_second"],
                       "speed/input_stall_share": line["input_stall_share"]}, step)
        if self._bar is not None and mean is not None:
            info = f"loss {mean:.5f}" + ("" if ne is None else f", NE {ne:.5f}")
            info += "".join(f", AUC {v:.4f}" for v in list(line["auc"].values())[:1])
            self._bar.update(self._task, completed=samples, info=info)

    def evaluation(self, *, epoch: int, step: int, heads: Mapping[str, Metrics], part: str = "validation") -> None:
        """Write the metrics of every head on a part of the data, and tell the watcher of a validation.

        Raises:
            whatever the watcher raises to end the run.
        """
        if not self._enabled:
            return
        line = {"kind": "evaluation", "member": self._member, "epoch": epoch, "step": step, "part": part,
                "heads": {name: dict(found) for name, found in heads.items()}}
        if self._write(line):
            self._scalars({f"{part}/{name}": value for name, value in _flat(heads)}, step)
            log.info("%s", _say(self._name, line))
        if self._watch is not None and part == "validation":
            index = sum(1 for key in self._known if key[0] == "evaluation" and key[2] == part)
            self._watch(Evaluation(self._member, index, epoch, step, self._done / max(self._samples, 1), heads))

    def _write(self, line: dict[str, Any]) -> bool:
        key = _key(line)
        if key in self._known:
            return False
        assert self._file is not None, "Journal.member comes first"
        self._known.add(key)
        self._file.write(_dump(line).encode())  # unbuffered: a killed process leaves whole lines, or a torn last one
        return True

    def _scalars(self, values: Mapping[str, float | None], step: int) -> None:
        if self._board is None:
            return
        for tag, value in values.items():
            if value is not None and math.isfinite(value):
                self._board.add_scalar(tag, value, step, walltime=time.time())
        self._board.flush()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``train.jsonl``, none where there is no file; a torn last line is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:  # asked for, not looked for before: its folder may be renamed at any moment
        return []
    return [json.loads(line) for line in lines[:-1]]  # what follows the last line feed is empty or torn


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["kind"], line["step"], line.get("part")


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(_plain(line), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            found += _flat(inner, f"{prefix}{name}/")
        elif isinstance(inner, int | float):
            found.append((prefix + name, float(inner)))
    return found


def _say(name: str, line: Mapping[str, Any]) -> str:
    text = f"{name} epoch {line['epoch']}, step {line['step']:,}, {line['part']}:"
    parts = []
    for head, found in line["heads"].items():
        shown = [(k, found.get(m)) for k, m in (("NE", "normalized_entropy"), ("AUC", "auc"), ("GAUC", "gauc"),
                                                     ("loss of the softmax", "softmax_loss"))]
        words = ", ".join(f"{k} {v:.5f}" for k, v in shown if v is not None)
        parts.append((f" {head}" if len(line["heads"]) > 1 else "") + f" {words or 'labels all alike'}")
    return text + ";".join(parts)


def _event_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError("TensorBoard files need the package tensorboardX", column="training.tensorboard", got=True,
                         expected="pip install 'recsys-ads[tensorboard]', or training.tensorboard: false") from None
    return SummaryWriter
