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

from recsys.config import ServedExperimentConfig
from recsys.errors import InputError, Refused
from recsys.stage import sha256_json, write_json


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


def register_experiment(experiment: ServedExperimentConfig, state: Path) -> dict[str, Any]:
    """Write the experiment down, or check that it is the one that was.

    Returns:
        ``{"experiment": arms and rule, "sha256": of it, "registered": when}``, as in ``experiment-ID.json``.

    Raises:
        Refused: an experiment of this id was served by another rule or with other arms.
        InputError: the file is damaged.
    """
    rule = experiment_rule(experiment)
    path = state / f"experiment-{hashlib.sha256(experiment.id.encode()).hexdigest()[:16]}.json"
    if path.is_file():
        try:
            found = dict(json.loads(path.read_text()))
            same = found["sha256"] == sha256_json(found["experiment"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("damaged registration of an experiment", file=path, got=str(error),
                             expected="the file as the service wrote it") from None
        if not same or found["sha256"] != sha256_json(rule):
            changed = ", ".join(sorted(k for k in rule if rule[k] != found["experiment"].get(k)))
            raise Refused(f"experiment {experiment.id!r} was registered with another rule on {found['registered']} "
                          f"({changed if same else 'the file was edited'}; {path}): serve what was registered, or "
                          "give the new one another id")
        return found
    state.mkdir(parents=True, exist_ok=True)
    made = {"experiment": rule, "sha256": sha256_json(rule),
            "registered": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}
    write_json(path, made)
    return made
