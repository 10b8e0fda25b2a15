"""The decision rule is written down when a run starts, and held to: ``decision.json`` in the experiment's folder.

    {"rule": {...}, "sha256": of the rule, "registered": when, "config_sha256": of everything else,
     "looks": [{"data_sha256", "at"}]}

Two things are noticed. A rule that is no longer the one that was written down, once a report exists. And looks: each
time the same experiment is reported on other data (the log grew) is one more, and a rule that planned a fixed number
refuses the next.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

from recsys.config import ExperimentConfig
from recsys.errors import InputError, Refused
from recsys.stage import sha256_json, write_json

REGISTRATION = "decision.json"


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _rest(config: ExperimentConfig) -> str:
    # Where the raw files lie says nothing about the experiment; what is in them is the looks' data_sha256.
    plain = config.resolved()
    plain["data"] = {k: v for k, v in plain["data"].items() if k != "home"}
    return sha256_json({k: v for k, v in plain.items() if k != "decision"})


def read_registration(out: Path) -> dict[str, Any] | None:
    """The registered rule of an experiment's folder, or None where none was written.

    Raises:
        InputError: the file is not what this module writes.
    """
    path = out / REGISTRATION
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        return {"rule": dict(found["rule"]), "sha256": str(found["sha256"]), "registered": str(found["registered"]),
                "config_sha256": str(found["config_sha256"]), "looks": list(found["looks"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("damaged registration of the decision rule", file=path, got=str(error),
                         expected="the file as the run wrote it") from None


def require_unchanged(config: ExperimentConfig, out: Path) -> None:
    """The rule of ``config`` must be the one that was registered, if a report was ever made of this folder.

    Raises:
        Refused: it is another, or the registered one does not match its own hash.
    """
    from recsys.evaluation.decision import decision_rule, rule_sha256

    found = read_registration(out)
    if found is None:
        return
    if rule_sha256(found["rule"]) != found["sha256"]:
        raise Refused(f"{out / REGISTRATION}: the rule does not have the hash that was registered with it: it was "
                      "edited after the run; restore the file, or run the experiment again into a new folder")
    rule = decision_rule(config)
    if found["looks"] and rule_sha256(rule) != found["sha256"]:
        changed = sorted(k for k in rule.keys() | found["rule"].keys() if rule.get(k) != found["rule"].get(k))
        raise Refused(f"the decision rule was changed after results existed ({', '.join(changed)}; registered "
                      f"{found['sha256'][:12]}, now {rule_sha256(rule)[:12]}): restore it, or state the new rule and "
                      "run it on data that it has not seen, into a new folder")


def register(config: ExperimentConfig, out: Path) -> None:
    """Write the rule down, unless this very rule and experiment already are; called before anything is computed."""
    from recsys.evaluation.decision import decision_rule, rule_sha256

    require_unchanged(config, out)
    rule, rest, found = decision_rule(config), _rest(config), read_registration(out)
    if found and found["sha256"] == rule_sha256(rule) and found["config_sha256"] == rest:
        return
    write_json(out / REGISTRATION, {"rule": rule, "sha256": rule_sha256(rule), "registered": _now(),
                                    "config_sha256": rest, "looks": []})


def look(config: ExperimentConfig, out: Path, data_sha256: str) -> dict[str, Any]:
    """Count a report on this data as a look.

    Returns:
        {"registered": when or None, "looks": how many different data this rule has seen}; None and 1 where the run
        registered no rule.

    Raises:
        Refused: the rule was changed, or plans fewer looks.
    """
    require_unchanged(config, out)
    found = read_registration(out)
    if found is None:
        return {"registered": None, "looks": 1}
    seen = [item["data_sha256"] for item in found["looks"]]
    if data_sha256 not in seen:
        if config.decision.peeking == "fixed" and len(seen) >= config.decision.looks:
            raise Refused(f"this is look {len(seen) + 1} at growing data, and the rule plans {config.decision.looks}: "
                          "its error rate holds for those alone. Wait for the planned size in a new folder, plan the "
                          "looks beforehand (decision.looks), or use decision.peeking: always_valid")
        found["looks"].append({"data_sha256": data_sha256, "at": _now()})
        write_json(out / REGISTRATION, found)
    return {"registered": found["registered"], "looks": len(found["looks"])}
