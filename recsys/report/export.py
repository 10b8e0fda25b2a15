"""``lift.json`` as a table: one row per arm and metric, and per arm and segment, for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys.report.page import check
from recsys.stage import write_atomic

COLUMNS = ("experiment", "arm", "metric", "role", "value", "value_low", "value_high", "lift", "lift_low", "lift_high",
           "n", "verdict", "decision_sha256", "segment", "p_adjusted")


def write_csv(lift: Mapping[str, Any], out: str | Path) -> None:
    """Write the arms' values and lifts as CSV; an empty cell is something the report does not carry.

    Args:
        lift: the contents of ``lift.json``.
        out: the file; appears whole or not at all.

    Raises:
        InputError: ``lift`` lacks its arms or its baseline.
    """
    check(lift)
    decision = lift.get("decision") or {}
    guards = {g["metric"] for g in (decision.get("rule") or {}).get("guardrails") or []}
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    for name, arm in lift["arms"].items():
        metrics = {lift.get("goal", "goal"): arm, **(arm.get("secondary") or {})}
        for metric, found in metrics.items():
            role = "goal" if found is arm else "guardrail" if metric in guards else "other"
            row = {"experiment": lift["experiment"], "arm": name, "metric": metric, "role": role,
                   "value": found.get("value"), "n": arm.get("n"), "verdict": (decision.get("verdict") or {}).get(name),
                   "decision_sha256": decision.get("sha256")}
            for key, interval in (("value", found.get("value_interval")), ("lift", found.get("lift"))):
                row |= {f"{key}_{end}": (interval or {}).get(end) for end in ("low", "high")}
            row["lift"] = (found.get("lift") or {}).get("estimate")
            table.writerow({k: _safe(v) for k, v in row.items() if v is not None})
    for column, found in (lift.get("segments") or {}).items():
        for name, arm in found["arms"].items():
            for label, one in arm["values"].items():
                row = {"experiment": lift["experiment"], "arm": name, "metric": lift.get("goal", "goal"),
                       "role": "segment", "segment": f"{column}={label}", "n": found["values"][label]["n"],
                       "p_adjusted": one.get("p_adjusted"), "decision_sha256": decision.get("sha256")}
                ends = one.get("lift") or {}
                row |= {"lift": ends.get("estimate"), "lift_low": ends.get("low"), "lift_high": ends.get("high")}
                table.writerow({k: _safe(v) for k, v in row.items() if v is not None})
    write_atomic(out, buffer.getvalue())


def _safe(value: Any) -> Any:
    """A name that a spreadsheet would run as a formula is made text."""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
