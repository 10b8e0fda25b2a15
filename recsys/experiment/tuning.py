"""``recsys tune``: search over the model and training settings of one arm of an experiment.

The data is prepared and split as ``recsys train`` does it; the search is then given a folder with the training part
alone, so that no trial can look at the test part.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from recsys.config import ExperimentConfig
from recsys.errors import InputError, RecsysError
from recsys.experiment.content import content_of_arm, embed_arm, semantic_ids_of_arm, semantic_of_arm
from recsys.experiment.run import one_ranker, prepare_data
from recsys.log import log, progress, setup_logging
from recsys.stage import write_atomic, write_json
from recsys.training.journal import Watch
from recsys.training.space import configured, load_space, override
from recsys.training.tune import (
    Search,
    clear_finished,
    interrupted,
    next_trial,
    open_study,
    require_optuna,
    run_trial,
    summary,
)

if TYPE_CHECKING:
    import optuna

TRAINING_FILES = ("train.parquet", "dataset.json", "ads.parquet")


def run_tuning(config: ExperimentConfig, out: str | Path, data_home: str | Path | None = None, arm: str | None = None,
               *, trials: int = 20, space: str | Path | None = None, metric: str = "normalized_entropy",
               jobs: int = 1) -> dict[str, Any]:
    """Search, or go on with a search that was interrupted.

    Args:
        config: the experiment; trial 0 is it as it stands.
        out: folder of the search: best.yaml, trials.json, tuning.png, study.db.
        data_home: folder of raw files.
        arm: which arm, where there are several with a ranker.
        trials: how many in all; more than before goes on from there.
        space: YAML file; default: the shipped one.
        metric: a key of :data:`recsys.training.tune.METRICS`, on the validation slice.
        jobs: processes that trials are spread over.

    Returns:
        :func:`recsys.training.tune.summary`, with ``set``: the best trial's overrides as ``--set`` takes them.

    Raises:
        InputError: optuna is missing; a bad space, metric or experiment; another search, or a running one, in ``out``.
        RecsysError: no trial came to its end.
    """
    require_optuna()
    out = Path(out)
    name = one_ranker(config, arm)
    if config.model.kind == "ridge":
        raise InputError("a ridge ranker has no settings to search", file="experiment", column="model.kind",
                         got="ridge", expected="dlrm, dcnv2 or finalmlp; its penalty is cross-validated in training")
    if trials < 1 or jobs < 1:
        raise InputError("out of range", file="--trials, --jobs", got=(trials, jobs), expected="at least 1")
    search = Search(config, load_space(space, config), metric, trials, out)
    study = open_study(search)
    try:
        lock = FileLock(out / ".tune.lock").acquire(timeout=0)
    except Timeout:
        raise InputError("a search is running in this folder", file=out, expected="another --out, or wait") from None
    with lock:
        prepare_data(config, [name], out, data_home)
        embed_arm(config, config.arms[name], out)
        semantic_ids_of_arm(config.arms[name], name, out)
        withhold_test(out)
        clear_finished(study, search)
        if jobs == 1:
            _work(study, search, name)
        else:
            _spread(study, search, name, jobs)
        return _finish(study, search)


def withhold_test(out: Path) -> None:
    """Make ``out/search``: the split without its test part."""
    folder = out / "search"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in TRAINING_FILES:
        if (out / "split" / name).is_file():
            try:
                os.link(out / "split" / name, folder / name)
            except OSError:  # a file system without hard links
                shutil.copyfile(out / "split" / name, folder / name)


def _trainer(search: Search, arm: str) -> Any:
    from recsys.training import train_model

    content = content_of_arm(search.config.arms[arm], search.out)
    semantic = semantic_of_arm(search.config.arms[arm], arm, search.out)

    def train(config: ExperimentConfig, folder: Path, watch: Watch) -> Mapping[str, Any]:
        return train_model(search.out / "search", config.model, config.training, folder, seed=config.seed,
                           content=content, semantic=semantic, name=f"trial-{folder.parent.name}", test=False,
                           watch=watch)

    return train


def _work(study: optuna.Study, search: Search, arm: str) -> None:
    """All trials in this process, one after another."""
    train, left = _trainer(search, arm), interrupted(study)
    with progress("trials") as bar:
        task = bar.add_task(f"tuning {search.config.name}", total=search.trials)
        _show(bar, task, study, search, 0)
        while (trial := next_trial(study, search, left)) is not None:
            run_trial(study, trial, search, train)
            _show(bar, task, study, search, 0)


def _show(bar: Any, task: Any, study: optuna.Study, search: Search, before: int) -> int:
    """Bring the bar up to date and say what is new since ``before`` finished trials; how many there are now."""
    found = summary(study, search)
    ended = [t for t in found["trials"] if t["state"] != "running"]
    best = found["best"]
    words = "" if best is None else f"best {search.metric} {best['value']:.5f} (trial {best['number']})"
    bar.update(task, completed=len(ended), info=words)
    if len(ended) > before:
        log.info("%d of %d trials ended, %d of them pruned%s", len(ended), search.trials, found["counts"]["pruned"],
                 f"; {words}" if words else "")
    return len(ended)


def _spread(study: optuna.Study, search: Search, arm: str, jobs: int) -> None:
    """The trials over ``jobs`` processes; this one watches."""
    context = multiprocessing.get_context("spawn")
    lock, left, ended = context.Lock(), interrupted(study), 0
    workers = [context.Process(target=_job, args=(search, arm, left[i::jobs], lock, jobs), daemon=True)
               for i in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        with progress("trials") as bar:
            task = bar.add_task(f"tuning {search.config.name}", total=search.trials)
            while any(worker.is_alive() for worker in workers) and not any(worker.exitcode for worker in workers):
                connection.wait([worker.sentinel for worker in workers if worker.is_alive()], timeout=2.0)
                ended = _show(bar, task, study, search, ended)
        failed = any(worker.exitcode for worker in workers)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    if failed:
        raise RecsysError("a process of the search ended early (see above); the same command goes on from there")


def _job(search: Search, arm: str, left: list[int], lock: Any, jobs: int) -> None:
    """One of several processes: takes trials until all are begun. Ends when its parent does, however that ended."""
    import torch

    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    setup_logging()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    try:
        study, train = open_study(search), _trainer(search, arm)
        while True:
            with lock:
                trial = next_trial(study, search, left)
            if trial is None:
                return
            run_trial(study, trial, search, train)
    except RecsysError as error:
        log.error("error: %s", error)
        sys.exit(error.exit_code)


def _finish(study: optuna.Study, search: Search) -> dict[str, Any]:
    from recsys.report.tuning import render_tuning

    found = summary(study, search)
    write_json(search.out / "trials.json", found)
    best = found["best"]
    if best is None:
        reasons = sorted({t["reason"] for t in found["trials"] if t["reason"]})
        raise RecsysError(f"none of {len(found['trials'])} trials came to its end: {'; '.join(reasons)[:300]}")
    overrides = [override(k, v) for k, v in best["settings"].items()]
    found["set"] = overrides
    head = [f"# Trial {best['number']} of recsys tune: validation {search.metric} {best['value']:.6g}.",
            "# " + " ".join(f"--set '{o}'" for o in overrides) if overrides else "# The experiment as it stands."]
    body = yaml.safe_dump(configured(search.config, best["settings"]).resolved(), sort_keys=False, allow_unicode=True)
    write_atomic(search.out / "best.yaml", "\n".join(head) + "\n" + body)
    render_tuning(found, search.out / "tuning.png")
    return found
