"""The verb ``recsys certify``. Heavy libraries are imported inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def certify(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run: cells/, certification.json, certification.md, "
                                                    "coverage.png.")] = Path("runs/certify"),
    small: Annotated[bool, typer.Option("--small", help="A few cells instead of the whole grid.")] = False,
    replications: Annotated[int, typer.Option(min=1, help="Simulated logs per cell.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the worlds; the thresholds were chosen on 1.")] = 2,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    home: Annotated[Path | None, typer.Option("--data-home", envvar="RECSYS_DATA_HOME", show_envvar=True,
                                              help="Folder of raw data sets, for the Upworthy trap.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Measure the intervals, the A/B analysis and the refusals on simulated logs (exit code 1: a requirement fails).

    A killed run goes on from the cells it has finished.
    """
    from recsys.evaluation.certify.run import certify as run

    result = run(out, small, replications, seed, jobs, home)
    write(result, out)
    typer.echo(json.dumps(result, indent=2, allow_nan=False) if as_json else summary(result, out))
    if not all(line["met"] for line in result["requirements"]):
        raise typer.Exit(1)


def write(result: dict[str, Any], out: Path) -> None:
    """certification.json, certification.md and coverage.png."""
    from recsys.evaluation.certify.page import page, picture
    from recsys.stage import write_atomic, write_json

    write_json(out / "certification.json", result)
    write_atomic(out / "certification.md", page(result))
    picture(result, out / "coverage.png")


def summary(result: dict[str, Any], out: Path) -> str:
    """For a terminal."""
    lines = [f"{'met    ' if line['met'] else 'NOT MET'} {line['requirement']} ({line['checked']} checked)"
             for line in result["requirements"]]
    for line in result["requirements"]:
        lines += [f"  {failure}" for failure in line["failures"]]
    skipped = [t["trap"] for t in result["traps"] if t["caught"] is None]
    lines += [f"skipped: {name}" for name in skipped]
    return "\n".join([*lines, f"certificate {result['certificate']['id']}", str(out / "certification.md")])
