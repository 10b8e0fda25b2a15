"""The verb ``recsys ab``: an experiment's log to numbers on the terminal, JSON and a page, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import InputError, Refused

_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def ab(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Parquet file, or folder of them: a row per exposure, "
                                                                "or per unit.")],
    arm: Annotated[str, typer.Option(help="Column of the arm.")],
    baseline: Annotated[str, typer.Option(help="Name of the arm that the others are compared with.")],
    metric: Annotated[list[str], typer.Option(metavar="NAME[/DENOMINATOR]", help="Column summed per unit, over units "
                      "or over another column; the denominator `rows` counts rows. May be repeated.")],
    unit: Annotated[str, typer.Option(help="Column of the randomised unit.")] = "user_id",
    covariate: Annotated[list[str] | None, typer.Option(metavar="[METRIC=]COLUMN", help="Column known before the "
                         "experiment, one value per unit, for CUPED. May be repeated.")] = None,
    alpha: Annotated[float, typer.Option(help="1 - coverage of the intervals.")] = 0.05,
    looks: Annotated[int, typer.Option(help="How often results are looked at before the decision.")] = 1,
    method: Annotated[str | None, typer.Option(help="fixed or sequential; default: by --looks.")] = None,
    tuning: Annotated[float, typer.Option(help="Units at which sequential intervals are tightest.")] = 5000.0,
    multiplicity: Annotated[str, typer.Option(help="holm, bh or none; over all variants and metrics.")] = "holm",
    share: Annotated[list[str] | None, typer.Option(metavar="ARM=SHARE", help="Planned share of an arm; default "
                                                                              "equal. May be repeated.")] = None,
    winsorise: Annotated[float | None, typer.Option(help="Quantile above which units' numerators are cut.")] = None,
    aa: Annotated[int, typer.Option(help="A/A draws on the same units, to see that the test keeps its level.")] = 0,
    segment: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Column known before the experiment, by "
                       "whose values lifts are told apart. May be repeated.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of the time: the lift as the data grew, with bounds that "
                                                  "hold at every look.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the result as a page, with the "
                                              "first metric as the goal.")] = None,
    as_json: _Json = False,
) -> None:
    """A randomised experiment from its log: health checks, then every variant's lift, or a refusal (exit code 3)."""
    from recsys.evaluation.ab.analysis import Plan, analyse, check_duplicates, check_unit
    from recsys.evaluation.ab.parts import LOOKS, read_segment_parts, read_time_parts
    from recsys.evaluation.ab.units import parse_metric, read_units

    shares = {k: _number(v, "--share") for k, v in (_pair(s, "--share", "ARM=SHARE") for s in share or [])}
    if bad := [k for k, v in shares.items() if not v > 0]:
        raise InputError("share not allowed", file="--share", got=bad[0], expected="shares > 0")
    if shares and abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError("shares do not sum to 1", file="--share", got=sum(shares.values()), expected="1")
    plan = Plan(baseline, alpha, looks, method, multiplicity, tuning, winsorise, shares or None)  # type: ignore[arg-type]
    if aa < 0 or 0 < aa < 100:
        raise InputError("setting not allowed", file="--aa", got=aa, expected="0, or at least 100 draws")
    covariates = dict(_covariate(c) for c in covariate or [])
    if unknown := sorted(set(covariates) - {"", *metric}):
        raise InputError("covariate of no metric", file="--covariate", got=unknown[0], expected=", ".join(metric))
    metrics = [parse_metric(m, covariates) for m in dict.fromkeys(metric)]
    try:
        _ = plan.sequential  # refused before ten million rows are read
        units = read_units(table, arm, unit, metrics)
        parts = {c: read_segment_parts(table, arm, unit, metrics, c) for c in dict.fromkeys(segment or [])}
        grown = None if time is None else (time, read_time_parts(table, arm, unit, metrics, time, LOOKS))
        result = analyse(units, metrics, plan, unit, [check_unit(table, unit), *check_duplicates(table, unit)], parts,
                         grown, aa)
    except Refused as reason:  # without arms and health lines there is no page either
        if not as_json:
            raise
        typer.echo(json.dumps({"refused": str(reason)}, indent=2, allow_nan=False))
        raise typer.Exit(Refused.exit_code) from None
    if html is not None:
        from recsys.report.experiment import render_experiment

        render_experiment(result, html, table.stem)
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        from recsys.evaluation.ab.text import render

        typer.echo(render(result))
    if "refused" in result:
        raise typer.Exit(Refused.exit_code)


def _covariate(text: str) -> tuple[str, str]:
    return _pair(text, "--covariate", "[METRIC=]COLUMN") if "=" in text else ("", text)


def _pair(item: str, option: str, expected: str) -> tuple[str, str]:
    key, sep, value = item.partition("=")
    if not (sep and key and value):
        raise InputError("malformed option", file=option, got=item, expected=expected)
    return key, value


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError("not a number", file=option, got=text, expected="a number") from None
