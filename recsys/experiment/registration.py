"""The decision rule is written down when a run starts, and held to: ``decision.json`` in the experiment's folder.

    {"rule": {...}, "sha256": of the rule, "registered": when, "config_sha256": of the whole file, as in lift.json,
     "settings_sha256": of everything but the rule, "looks": [{"data_sha256", "at", "settings_sha256"}],
     "history": [earlier registrations in this folder, without their looks]}

Two things are noticed. A rule that is no longer the one that was written down, once a report or a look exists. And
looks: each time a report is made on other data (the log grew) is one more, and a rule that planned a fixed number
refuses the next. Looks are only ever added: another seed or setting in the same folder does not begin a new count.
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
        # Before settings_sha256 was there, config_sha256 held it.
        return {"rule": dict(found["rule"]), "sha256": str(found["sha256"]), "registered": str(found["registered"]),
                "config_sha256": str(found["config_sha256"]),
                "settings_sha256": str(found.get("settings_sha256", found["config_sha256"])),
                "looks": list(found["looks"]), "history": list(found.get("history", []))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("damaged registration of the decision rule", file=path, got=str(error),
                         expected="the file as the run wrote it") from None


def _reported(out: Path) -> dict[str, Any]:
    """The decision of the folder's report; empty where there is none."""
    path = out / "report" / "lift.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text())["decision"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("damaged report", file=path, got=str(error), expected="the file as the run wrote it, or none"
                         ) from None


def require_unchanged(config: ExperimentConfig, out: Path) -> None:
    """The rule of ``config`` must be the registered and the reported one, if a report was ever made of this folder.

    Raises:
        Refused: it is another, or the registered one does not match its own hash.
    """
    from recsys.evaluation.decision import decision_rule, rule_sha256

    found, reported = read_registration(out), _reported(out)
    if found and rule_sha256(found["rule"]) != found["sha256"]:
        raise Refused(f"{out / REGISTRATION}: the rule does not have the hash that was registered with it: it was "
                      "edited after the run; restore the file, or run the experiment again into a new folder")
    rule = decision_rule(config)
    bound = [reported] if reported.get("sha256") else []
    bound += [found] if found and found["looks"] else []
    for known in bound:
        if rule_sha256(rule) != known["sha256"]:
            old = known.get("rule") or {}
            changed = sorted(k for k in rule.keys() | old.keys() if rule.get(k) != old.get(k))
            raise Refused(f"the decision rule was changed after results existed ({', '.join(changed)}; registered "
                          f"{known['sha256'][:12]}, now {rule_sha256(rule)[:12]}): restore it, or state the new rule "
                          "and run it on data that it has not seen, into a new folder")


def register(config: ExperimentConfig, out: Path) -> None:
    """Write the rule down, unless this very rule and experiment already are; called before anything is computed.

    What was registered before moves to ``history``, and its looks stay: they were looks at what lies in this folder.
    """
    from recsys.evaluation.decision import decision_rule, rule_sha256

    require_unchanged(config, out)
    rule, found = decision_rule(config), read_registration(out)
    new = {"rule": rule, "sha256": rule_sha256(rule), "registered": _now(),
           "config_sha256": sha256_json(config.resolved()), "settings_sha256": _rest(config), "looks": [],
           "history": []}
    if found:
        same = all(found[k] == new[k] for k in ("sha256", "settings_sha256"))
        if same and found["config_sha256"] == new["config_sha256"]:
            return
        earlier = {k: v for k, v in found.items() if k not in ("looks", "history")}
        new |= {"looks": found["looks"], "history": found["history"] + ([] if same else [earlier])}
        if found["sha256"] == new["sha256"]:
            new["registered"] = found["registered"]  # the rule is as old as it was
    write_json(out / REGISTRATION, new)


def look(config: ExperimentConfig, out: Path, data_sha256: str) -> dict[str, Any]:
    """Count a report on this data as a look.

    Returns:
        {"registered": when or None, "looks": how many different data were reported on in this folder}; None and 1
        where the run registered no rule.

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
        found["looks"].append({"data_sha256": data_sha256, "at": _now(), "settings_sha256": _rest(config)})
        write_json(out / REGISTRATION, found)
    return {"registered": found["registered"], "looks": len(found["looks"])}
