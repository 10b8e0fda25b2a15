"""Run an experiment file: all arms, or the training of one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from recsys.config import ExperimentConfig
from recsys.content import make_encoder
from recsys.content.llama import require_peft
from recsys.datasets.split import prepare_split
from recsys.errors import InputError, RecsysError
from recsys.evaluation.segments import read_segments
from recsys.experiment.arms import arm_policy, index_content, train_arm, write_truth
from recsys.experiment.content import embed_arm, semantic_ids_of_arm
from recsys.experiment.registration import register, require_unchanged
from recsys.experiment.reporting import make_report, write_experiment_costs
from recsys.ledger import load_card
from recsys.log import log
from recsys.stage import write_atomic, write_json


@contextmanager
def nothing_left_of_bad_input(out: Path) -> Iterator[None]:
    """Where the data or settings are refused, remove what this call put into ``out``, and ``out`` if it was new."""
    there = out.exists()
    before = {p.name for p in out.iterdir()} if out.is_dir() else set()
    try:
        yield
    except RecsysError:
        if out.is_dir():
            for path in out.iterdir():
                if path.name not in before:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not there:
                out.rmdir()
        raise


def prepare_data(config: ExperimentConfig, arms: list[str], out: Path, data_home: str | Path | None,
                 retrievers: Sequence[str] = ()) -> None:
    """Check what can be checked at once (encoders, prices), then prepare and split the data.

    Raises:
        InputError: bad settings or data; nothing of them is left in ``out``.
    """
    with nothing_left_of_bad_input(out):
        card = load_card(config.money.price_card)
        card.storage_beside(card.get(config.money.machine, "machine"), config.money.storage)
        first = [a.retrieval.retriever for n in arms if (a := config.arms[n]).retrieval is not None]
        for reader in [*(config.arms[n] for n in arms), *(config.retrievers[n] for n in (*retrievers, *first))]:
            for content in reader.encoders:
                make_encoder(config.encoders[content])  # knows its architecture without loading weights
                if config.encoders[content].adapt is not None:
                    require_peft()
                if (price := config.encoders[content].price) is not None:
                    card.get(price)
        prepare_split(config, out, data_home)
        save_config(config, out)


def check_segments(config: ExperimentConfig, out: Path) -> None:
    """Refuse segments that the report could not tell apart, before hours of training.

    Raises:
        InputError: a column of ``decision.segments`` is missing, or differs within a request.
    """
    if wanted := config.decision.segments:
        file = out / "split" / "test.parquet"
        names = [n for n in ("request_id", *wanted) if n in pq.read_schema(file).names]
        read_segments(pq.read_table(file, columns=names), wanted, config.decision.segment_values)


def save_config(config: ExperimentConfig, out: Path) -> None:
    """Write the resolved experiment file beside the results."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "config.yaml", yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True))


def run_experiment(config: ExperimentConfig, out: str | Path, data_home: str | Path | None = None) -> dict[str, Any]:
    """Run every arm of an experiment and write its report.

    Finished stages of an earlier run with the same configuration and data are not done again, and a killed run
    goes on where it was.

    Args:
        config: the experiment.
        out: its folder (docs/architecture.md says what lies where).
        data_home: folder of raw files; default: the experiment's, then RECSYS_DATA_HOME.

    Returns:
        The contents of ``out/report/lift.json``.

    Raises:
        Refused: a report was made here under another decision rule, or of other data than this rule planned to see.
    """
    out, started = Path(out), time.perf_counter()
    if len(config.arms) < 2:
        raise InputError("an experiment compares arms", file="experiment", column="arms", got=sorted(config.arms),
                         expected="at least two arms")
    require_unchanged(config, out)
    with nothing_left_of_bad_input(out):
        prepare_data(config, list(config.arms), out, data_home)
        check_segments(config, out)
    register(config, out)
    retrieval: dict[str, Any] = {}
    for name in sorted({a.retrieval.retriever for a in config.arms.values() if a.retrieval is not None}):
        retrieval[name] = make_retriever(config, name, out)
    for at, (name, arm) in enumerate(config.arms.items(), 1):
        log.info("arm %d of %d: %s", at, len(config.arms), name)
        embed_arm(config, arm, out)
        for content in arm.encoders:
            retrieval[content] = index_content(config, content, out)
        semantic_ids_of_arm(arm, name, out)
        train_arm(config, name, out)
        arm_policy(config, name, out)
    write_json(out / "retrieval.json", retrieval)
    write_truth(config, out)
    write_experiment_costs(config, out)
    lift = make_report(out)
    log.info("%s: done in %.0f s; the report is %s", config.name, time.perf_counter() - started,
             out / "report" / "lift.html")
    return lift


def make_retriever(config: ExperimentConfig, name: str, out: Path) -> dict[str, Any]:
    """A retriever with all that it reads, from the split data on; returns its recall."""
    from recsys.experiment.retrieval import train_retriever

    own = config.retrievers[name]
    embed_arm(config, own, out)
    semantic_ids_of_arm(own, f"retriever.{name}", out)
    return train_retriever(config, name, out)


def run_retriever(config: ExperimentConfig, out: str | Path, name: str, data_home: str | Path | None = None
                  ) -> dict[str, Any]:
    """Train one retriever, index the ads by it and measure it: ``out/retrievers/NAME/{model,index,recall.json}``.

    Args:
        config: the experiment; its split decides what is trained on and what is tested on.
        out: folder of the run.
        name: among ``config.retrievers``.
        data_home: folder of raw files.

    Returns:
        Recalls, as :func:`recsys.experiment.retrieval.measure` gives them.
    """
    if name not in config.retrievers:
        raise InputError("no such retriever", file="--retriever", got=name,
                         expected=f"one of {sorted(config.retrievers)}")
    if int(os.environ.get("WORLD_SIZE", "1")) != 1:
        raise InputError("a retriever is trained by one process", file="torchrun",
                         got=f"{os.environ['WORLD_SIZE']} processes", expected="recsys train, without torchrun")
    out = Path(out)
    prepare_data(config, [], out, data_home, [name])
    return make_retriever(config, name, out)


def one_ranker(config: ExperimentConfig, arm: str | None) -> str:
    """The named arm, or the only one with a ranker.

    Raises:
        InputError: there is no such arm, or there are several and none is named.
    """
    rankers = [n for n, a in config.arms.items() if a.policy == "ranker"]
    if arm is None and len(rankers) != 1:
        raise InputError("which arm?", file="--arm", got=None, expected=f"one of {rankers}")
    name = arm or rankers[0]
    if name not in rankers:
        raise InputError("no such arm with a ranker", file="--arm", got=name, expected=f"one of {rankers}")
    return name


def run_training(config: ExperimentConfig, out: str | Path, data_home: str | Path | None = None,
                 arm: str | None = None) -> dict[str, Any]:
    """Train one arm's ranker and write ``out/metrics.json``; under torchrun, all ranks together.

    Rank 0 prepares the data and writes; ``out`` must be a folder that all ranks see.

    Args:
        config: the experiment; its split decides what is trained on and what is tested on.
        out: folder of the run; the model lies in ``out/model``.
        data_home: folder of raw files.
        arm: name of the arm; default: the only arm with a ranker, else an error that lists them.

    Returns:
        The metrics: ``train`` and ``test`` parts, ``samples_per_second``, ``input_stall_share``.
    """
    out, name = Path(out), one_ranker(config, arm)
    own = config.arms[name]
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        prepare_data(config, [name], out, data_home)
        embed_arm(config, own, out)
        semantic_ids_of_arm(own, name, out)
        metrics = train_arm(config, name, out, out / "model")
        write_json(out / "metrics.json", metrics)
        return metrics
    from recsys.training.world import World

    world = World.from_environment()
    with world.together():
        world.from_main(lambda: prepare_data(config, [name], out, data_home))
        embed_arm(config, own, out)  # each rank embeds its share of the texts
        world.from_main(lambda: semantic_ids_of_arm(own, name, out))
        metrics = train_arm(config, name, out, out / "model", world)
        if world.is_main:
            write_json(out / "metrics.json", metrics)
    world.close()
    return metrics
