"""A report whose health failed carries no estimate: a reason, and what would mend it, in the place of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ESTIMATES = ("estimators", "estimator_se", "clip_sensitivity", "agreement", "bootstrap_check", "oracle_lift",
             "clicks_of_picks")
"""Diagnostics that an arm's value, or its lift, could be read from."""
MENDS = {
    "sample ratio": "mend the splitter, or leave out the tests that it made",
    "unit of analysis": "set evaluation.unit to the wider unit",
    "duplicate exposures": "log each impression once, and evaluate again",
    "exposure": "log the candidates that the policy chose among, or mend the join of the two logs",
    "logging loss": "find where slots are lost between serving and the log, and log again",
    "support": "evaluate a policy nearer the logging one, or log more exploration",
    "split audit": "split by story, or by request, and train again",
    "A/A": "analyse by a wider unit, or log more: a few units carry these numbers",
}


def refusal(checks: Sequence[Mapping[str, Any]]) -> str | None:
    """The failed checks in words, each with what would mend it; None where all passed."""
    failed = [f"{line['check']}: {line['detail']}; {MENDS.get(line['check'], 'mend the log')}"
              for line in checks if not line["ok"]]
    return " | ".join(failed) + ". No lift is shown" if failed else None


def withhold(report: dict[str, Any], reason: str) -> None:
    """Take every estimate out of a lift report, and say why; what describes the log stays."""
    report["refused"] = reason
    for arm in report["arms"].values():
        arm |= dict.fromkeys(("lift", "absolute_lift", "p_value", "se", "value", "value_interval"))
        arm |= {"refused": reason, "secondary": {m: {"value": None, "value_interval": None, "lift": None,
                                                     "refused": reason} for m in arm["secondary"]},
                "diagnostics": {k: v for k, v in arm["diagnostics"].items() if k not in ESTIMATES}}
        for key in ("numerator", "unadjusted", "true_value", "true_lift", "covers_truth", "value_covers_truth"):
            arm.pop(key, None)
    report["pairwise"], report["segments"], report["growth"] = {}, {}, {"refused": reason}
