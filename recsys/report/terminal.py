"""The report for a terminal: the sentence, the checks that failed, and one line per arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys.report.findings import terminal_notes
from recsys.report.page import check
from recsys.report.words import (
    headline,
    healthy,
    interval_text,
    level,
    money,
    name_of,
    number,
    signed_percent,
    value_of,
    verdict,
)


def render_terminal(lift: Mapping[str, Any], statement: Mapping[str, Any] | None = None, width: int = 110) -> str:
    """The report as plain text of at most ``width`` columns.

    Raises:
        InputError: ``lift`` lacks its arms or its baseline.
    """
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table

    check(lift)
    goal, truth = lift.get("goal", "goal"), any(a.get("true_lift") is not None for a in lift["arms"].values())
    table = Table(box=box.SIMPLE, pad_edge=False)
    columns = ["arm", name_of(goal), f"lift over {lift['baseline']}",
               f"{level(lift)} interval", "", "$ per 1,000", "n"]
    whole = ("arm", columns[3], "")
    for column in columns[:4] + (["true lift"] if truth else []) + columns[4:]:
        table.add_column(column, justify="left" if column in ("arm", "") else "right", no_wrap=column in whole)
    for name, arm in lift["arms"].items():
        base = name == lift["baseline"] or not arm.get("lift")
        cells = [name, value_of(goal, arm.get("value")), ("refused" if arm.get("refused") else "baseline") if base else
                 signed_percent(arm["lift"]["estimate"]), "" if base else interval_text(arm["lift"])]
        cells += [signed_percent(arm.get("true_lift")) if not base else ""] if truth else []
        sign, word = verdict(arm)
        cells += ["" if base else f"{sign} {word}" if healthy(lift) else "do not use",
                  money(arm.get("cost_per_mille_usd")), number(arm.get("n"))]
        table.add_row(*cells)
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(f"{lift['experiment']}", markup=False, highlight=False)
    console.print(headline(lift, statement), markup=False, highlight=False)
    for health in lift.get("health") or []:
        if not health.get("ok", True):
            console.print(f"FAILED  {health['check']}: {health.get('detail', '')}", markup=False, highlight=False)
    if lift.get("refused"):
        console.print(f"refused: {lift['refused']}", markup=False, highlight=False)
    console.print(table)
    for note in terminal_notes(lift):
        console.print(note, markup=False, highlight=False)
    return buffer.getvalue()
