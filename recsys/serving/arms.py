"""Which arm of a served experiment a unit belongs to: always the same one, wherever and whenever it is asked.

The arm follows from SHA-256 of the experiment's id and the unit alone: no state, no drift between workers, and
independent between experiments. Arms and decision rule are written down when the experiment is first served, beside the
log's state; a service whose rule is another one does not start.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from pathlib import Path
from typing import Any

from recsys.config import ServedExperimentConfig, parse_model
from recsys.errors import InputError, Refused
from recsys.stage import sha256_json, write_json

CONFIDENCE = 0.95  # where the rule says none; as recsys.config.EvaluationConfig


def assign_arm(experiment: ServedExperimentConfig, unit: str) -> str:
    """The unit's arm: its hash as a number in [0, 1) against the arms' cumulated shares, in order of the names."""
    digest = hashlib.sha256(f"{experiment.id}\x00{unit}".encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    names = sorted(experiment.arms)
    for name in names:
        at -= experiment.arms[name].share
        if at < 0:
            return name
    return names[-1]  # the shares' sum fell short of 1 by a rounding


def experiment_rule(experiment: ServedExperimentConfig) -> dict[str, Any]:
    """All that defines the experiment, as plain values."""
    return experiment.model_dump(mode="json")


def ab_arguments(experiment: ServedExperimentConfig, log: str) -> list[str]:
    """The options of ``recsys ab`` that judge the experiment by its registered rule, on a joined log.

    Several looks at a fixed-horizon test share its level evenly; an always-valid one needs no share.
    """
    d = experiment.decision
    alpha = 1 - (d.confidence or CONFIDENCE)
    arguments = [log, "--arm", "arm_id", "--baseline", experiment.baseline, "--metric", "click/rows", "--unit",
                 experiment.unit, "--multiplicity", d.multiplicity]
    if d.peeking == "always_valid":
        arguments += ["--method", "sequential", "--tuning", f"{d.tuning:g}"]
    else:
        alpha /= d.looks
    arguments += ["--alpha", f"{alpha:.12g}"]
    for name, arm in sorted(experiment.arms.items()):
        arguments += ["--share", f"{name}={arm.share:g}"]
    return arguments


def registered_experiment(state: Path, name: str) -> ServedExperimentConfig | None:
    """The experiment of this id as it was registered, or None.

    Raises:
        InputError: the file is damaged.
        Refused: it was edited.
    """
    path = _path(state, name)
    if not path.is_file():
        return None
    found = _read(path)
    if found["sha256"] != sha256_json(found["experiment"]):
        raise Refused(f"{path}: the rule does not have the hash that was registered with it: it was edited after the "
                      "experiment began; restore the file")
    return parse_model(ServedExperimentConfig, found["experiment"], path)


def _path(state: Path, name: str) -> Path:
    return state / f"experiment-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = dict(json.loads(path.read_text()))
        return {name: found[name] for name in ("experiment", "sha256", "registered")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("damaged registration of an experiment", file=path, got=str(error),
                         expected="the file as the service wrote it") from None


def register_experiment(experiment: ServedExperimentConfig, state: Path) -> dict[str, Any]:
    """Write the experiment down, or check that it is the one that was.

    Returns:
        ``{"experiment": arms and rule, "sha256": of it, "registered": when}``, as in ``experiment-ID.json``.

    Raises:
        Refused: an experiment of this id was served by another rule or with other arms.
        InputError: the file is damaged, or the folder cannot be made.
    """
    rule = experiment_rule(experiment)
    path = _path(state, experiment.id)
    if path.is_file():
        found = _read(path)
        same = found["sha256"] == sha256_json(found["experiment"])
        if not same or found["sha256"] != sha256_json(rule):
            changed = ", ".join(sorted(k for k in rule if rule[k] != found["experiment"].get(k)))
            raise Refused(f"experiment {experiment.id!r} was registered with another rule on {found['registered']} "
                          f"({changed if same else 'the file was edited'}; {path}): serve what was registered, or "
                          "give the new one another id")
        return found
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("the log's state folder cannot be made", file=state, got=error.strerror,
                         expected="a folder that may be written") from None
    made = {"experiment": rule, "sha256": sha256_json(rule),
            "registered": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}
    write_json(path, made)
    return made
