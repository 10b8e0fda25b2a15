"""Search over settings: random draws, pruned by asynchronous successive halving, judged on the validation slice alone.

ASHA (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"): a trial goes on past a tenth and past
three tenths of its training only while it is among the best third of those that came so far. Trial 0 is the experiment
as it stands, so that the best is never worse than it. The study lies in a SQLite file; a trial that was killed keeps
its number and its settings and goes on from its checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recsys.config import ExperimentConfig
from recsys.errors import InputError, RecsysError
from recsys.log import log
from recsys.stage import sha256_json, write_atomic
from recsys.training.journal import JOURNAL_FILE, Evaluation, Watch, read_journal
from recsys.training.space import Choices, Space, configured, draw

if TYPE_CHECKING:
    import optuna

METRICS: dict[str, Literal["minimize", "maximize"]] = {
    "normalized_entropy": "minimize", "log_loss": "minimize", "ece": "minimize", "auc": "maximize",
    "gauc": "maximize"}
FIRST_RUNG, REDUCTION = 10, 3  # percent of the training, and of the trials one in so many goes on
SHARE = 0.1  # validation slice where the experiment has none
BUSY_TIMEOUT = 600.0  # seconds to wait while another process of the search writes to the study

Train = Callable[[ExperimentConfig, Path, Watch], Mapping[str, Any]]
"""Trains an experiment's arm into a folder, without its test part, telling a watcher; returns the metrics."""


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        config: the experiment.
        space: what the settings are drawn from.
        metric: a key of :data:`METRICS`, of the first head, or its mean over several heads.
        trials: how many, trial 0 (the experiment as it stands) included.
        out: folder; ``study.db``, and ``trials/NUMBER`` while a trial runs, ``trials/NUMBER.jsonl`` after it.
    """

    config: ExperimentConfig
    space: Space
    metric: str
    trials: int
    out: Path

    def settings(self, number: int) -> dict[str, Any]:
        """What trial ``number`` changes."""
        return draw(self.space, self.config.seed, number) if number else {}

    def trial_config(self, number: int) -> ExperimentConfig:
        """The experiment that trial ``number`` trains: one ranker, with a validation slice to be judged on."""
        own: dict[str, Any] = {"training.ensemble": 1}
        if not self.config.training.validation_share:
            own["training.validation_share"] = SHARE
        return configured(self.config, {**self.settings(number), **own})


def require_optuna() -> None:
    """Raise the line that mends it where optuna is missing."""
    try:
        import optuna
    except ImportError:
        raise InputError("the search needs the package optuna", file="recsys tune", got="not installed",
                         expected="pip install 'recsys-ads[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_study(search: Search) -> optuna.Study:
    """The folder's study, made where there is none.

    Raises:
        InputError: the folder holds the study of another search; optuna is missing; an unknown metric.
    """
    require_optuna()
    import optuna

    if search.metric not in METRICS:
        raise InputError("no such metric", file="--metric", got=search.metric, expected=f"one of {sorted(METRICS)}")
    space = {k: list(e.values) if isinstance(e, Choices) else [e.low, e.high, e.log] for k, e in search.space.items()}
    identity = sha256_json({"config": search.config.resolved(), "space": space, "metric": search.metric})
    search.out.mkdir(parents=True, exist_ok=True)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=REDUCTION)
    # Each commit is an fsync: on a busy disk a few of them take longer than the 5 s that SQLite's clients wait for.
    storage = optuna.storages.RDBStorage(f"sqlite:///{(search.out / 'study.db').resolve()}",
                                         engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT}})
    study = optuna.create_study(storage=storage, study_name="recsys",
                                sampler=_sampler(search), pruner=pruner, direction=METRICS[search.metric],
                                load_if_exists=True)
    known = study.user_attrs.get("identity")
    if known not in (None, identity):
        raise InputError("the folder holds another search", file=search.out,
                         got="other experiment, space or metric", expected="the same, or another --out")
    study.set_user_attr("identity", identity)
    return study


def _sampler(search: Search) -> optuna.samplers.BaseSampler:
    import optuna

    class Drawn(optuna.samplers.BaseSampler):
        """Gives what :meth:`Search.settings` says, whichever process asks and however often."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            value = search.settings(trial.number)[param_name]
            return _label(value) if isinstance(search.space[param_name], Choices) else value

    return Drawn()


def _label(value: Any) -> Any:
    # Studies hold plain values only: lists of layers are choices by their text.
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def interrupted(study: optuna.Study) -> list[int]:
    """Numbers of the trials that a process which is no more left running."""
    import optuna

    return [t.number for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.RUNNING]


def next_trial(study: optuna.Study, search: Search, left: list[int]) -> optuna.Trial | None:
    """A trial to run, None where all are begun; one process at a time may ask.

    Args:
        left: interrupted trials that are this process's to go on with; they come first and are taken off the list.
    """
    import optuna

    trials = study.get_trials(deepcopy=False)
    if left:
        trial = optuna.trial.Trial(study, trials[left.pop(0)]._trial_id)
        log.info("trial %d was interrupted and goes on", trial.number)
    elif len(trials) < search.trials:
        trial = study.ask()
    else:
        return None
    for key, entry in search.space.items() if trial.number else ():
        if isinstance(entry, Choices):
            trial.suggest_categorical(key, [_label(v) for v in entry.values])
        elif entry.whole:
            trial.suggest_int(key, int(entry.low), int(entry.high), log=entry.log)
        else:
            trial.suggest_float(key, entry.low, entry.high, log=entry.log)
    return trial


def run_trial(study: optuna.Study, trial: optuna.Trial, search: Search, train: Train) -> None:
    """Train one trial to its end or until it is pruned, and tell the study.

    A configuration that does not validate or diverges is a failed trial; an error in the data ends the search.
    """
    import optuna

    folder = search.out / "trials" / f"{trial.number:04d}"
    told = dict(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def watch(evaluation: Evaluation) -> None:
        value = mean_metric(evaluation.heads, search.metric)
        percent = round(100 * evaluation.share)
        if value is None or not math.isfinite(value):
            return
        if percent not in told:
            told[percent] = value
            trial.report(value, percent)
        if percent < 100 and trial.should_prune() and trial.number:  # trial 0 is what all are compared with
            raise optuna.TrialPruned

    try:
        config = search.trial_config(trial.number)
    except InputError as error:
        _tell(study, trial, search, folder, error)
        return
    try:
        train(config, folder / "model", watch)
    except optuna.TrialPruned as pruned:
        _tell(study, trial, search, folder, pruned)
    except InputError:
        raise
    except RecsysError as error:
        _tell(study, trial, search, folder, error)
    else:
        _tell(study, trial, search, folder, None)


def _tell(study: optuna.Study, trial: optuna.Trial, search: Search, folder: Path, end: Exception | None) -> None:
    import optuna

    state, value = optuna.trial.TrialState.COMPLETE, None
    lines = _journal(folder)
    if isinstance(end, optuna.TrialPruned):
        state = optuna.trial.TrialState.PRUNED
    elif end is None:
        value = _value(lines, search)
        if value is None:
            end = InputError(f"validation has no {search.metric}", got="labels all alike, or no user ids")
    if end is not None and state == optuna.trial.TrialState.COMPLETE:
        state = optuna.trial.TrialState.FAIL
        trial.set_user_attr("reason", str(end))
        log.warning("trial %d failed: %s", trial.number, end)
    seconds = [line["sums"]["seconds"] for line in lines if line["kind"] == "step"]
    trial.set_user_attr("training_seconds", seconds[-1] if seconds else 0.0)
    if lines:  # before the study is told: a trial that has ended is not run again to leave its record
        write_atomic(folder.parent / f"{folder.name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    study.tell(trial, value, state)
    shutil.rmtree(folder, ignore_errors=True)


def _journal(folder: Path) -> list[dict[str, Any]]:
    """The trial's record, whether its model folder was published or it was pruned before."""
    found = [*folder.glob(f"model/{JOURNAL_FILE}"), *folder.glob(f".model.*/{JOURNAL_FILE}")]
    return read_journal(found[0]) if found else []


def _value(lines: list[dict[str, Any]], search: Search) -> float | None:
    """What the trial is judged by: the weights that the experiment itself would end with.

    With a validation slice of its own those of the lowest loss, without one the last.
    """
    done = [line["heads"] for line in lines if line["kind"] == "evaluation" and line["part"] == "validation"]
    if not done:
        return None
    if search.config.training.validation_share:
        done.sort(key=lambda heads: sum(h["log_loss"] or 0.0 for h in heads.values()), reverse=True)
    return mean_metric(done[-1], search.metric)


def mean_metric(heads: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    """Mean over the heads that have it, None where none has."""
    values = [h[metric] for h in heads.values() if h.get(metric) is not None]
    return sum(values) / len(values) if values else None


def clear_finished(study: optuna.Study, search: Search) -> None:
    """Remove the folders of trials that ended just before their process was killed."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            shutil.rmtree(search.out / "trials" / f"{trial.number:04d}", ignore_errors=True)


def summary(study: optuna.Study, search: Search) -> dict[str, Any]:
    """The search so far.

    Returns:
        metric, direction, trials (list of number, state, value, settings, steps by percent of the training,
        training_seconds, reason), counts by state, ``experiment`` (value of trial 0), ``best`` (number, value,
        settings) or None.
    """
    import optuna

    rows: list[dict[str, Any]] = []
    for trial in study.get_trials(deepcopy=False):
        complete = trial.state == optuna.trial.TrialState.COMPLETE
        rows.append({
            "number": trial.number, "state": trial.state.name.lower(), "value": trial.value if complete else None,
            "settings": search.settings(trial.number),
            "steps": {str(k): v for k, v in sorted(trial.intermediate_values.items())},
            "training_seconds": trial.user_attrs.get("training_seconds"), "reason": trial.user_attrs.get("reason"),
        })
    # From the rows and not from the study: another process may have ended a trial since they were read.
    ended = [row for row in rows if row["state"] == "complete"]
    pick = min if METRICS[search.metric] == "minimize" else max
    best = pick(ended, key=lambda row: row["value"]) if ended else None
    states = ("complete", "pruned", "fail", "running")
    return {"metric": search.metric, "direction": METRICS[search.metric],
            "counts": {s: sum(r["state"] == s for r in rows) for s in states},
            "experiment": rows[0]["value"] if rows else None,
            "best": None if best is None else {k: best[k] for k in ("number", "value", "settings")}, "trials": rows}
