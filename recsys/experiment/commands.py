"""The verbs that show an experiment's books and search its settings.

Heavy libraries are imported inside: ``recsys --help`` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.errors import InputError, Refused


def ledger(
    folder: Annotated[Path, typer.Argument(help="An experiment's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """The cost rows by arm and stage, the same work on every cloud, and the profit-and-loss statement."""
    from recsys.contracts import open_parquet
    from recsys.ledger import read_costs

    open_parquet(folder / "costs.parquet")
    costs = read_costs(folder / "costs.parquet").to_pylist()
    file = folder / "report" / "statement.json"
    if not file.is_file():
        report = folder / "report" / "lift.json"
        if report.is_file() and (reason := json.loads(report.read_text()).get("refused")):
            raise Refused(f"no statement without a lift: {reason}")
        raise InputError("no such file", file=file, expected="a report: run recsys lift first")
    books = json.loads(file.read_text())
    typer.echo(json.dumps(books, indent=2) if as_json else "\n".join(text(costs, books)))


def tune(
    file: Annotated[str, typer.Argument(help="Experiment file: a path, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the search: best.yaml, trials.json, tuning.png. A "
                                                    "search that was interrupted goes on.")],
    trials: Annotated[int, typer.Option(help="Trials in all; the first is the experiment as it stands.")] = 20,
    space: Annotated[Path | None, typer.Option(help="YAML file of what to search (docs/tuning.md); default: the "
                                                    "shipped one.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that the trials are spread over.")] = 1,
    metric: Annotated[str, typer.Option(help="Of the validation slice: normalized_entropy, log_loss, auc, gauc or "
                                             "ece.")] = "normalized_entropy",
    arm: Annotated[str | None, typer.Option(help="Which arm, where there are several.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override a key of the "
                                                        "experiment file. May be repeated.")] = None,
    home: Annotated[Path | None, typer.Option("--data-home", envvar="RECSYS_DATA_HOME", show_envvar=True,
                                              help="Folder that holds the raw data sets.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Search over an arm's model and training settings, judged on validation data; writes best.yaml."""
    from recsys.config import load_config
    from recsys.experiment.tuning import run_tuning

    found = run_tuning(load_config(file, overrides), out, home, arm, trials=trials, space=space, metric=metric,
                       jobs=jobs)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(tuning_text(found, out)))


def tune_encoder(
    file: Annotated[str, typer.Argument(help="Experiment file of headline tests: a path, or a shipped name.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the search: encoder.json, vectors.")],
    arm: Annotated[str | None, typer.Option(help="Which arm; it has one encoder, of kind llama or sentence.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Hidden layer to try; may be repeated. Default: every "
                                                         "third.")] = None,
    pooling: Annotated[list[str] | None, typer.Option(help="mean, mean_all or last; may be repeated.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Template with {text}; may be repeated.")] = None,
    most: Annotated[int, typer.Option(help="Layers at most.")] = 4,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override a key of the "
                                                        "experiment file. May be repeated.")] = None,
    home: Annotated[Path | None, typer.Option("--data-home", envvar="RECSYS_DATA_HOME", show_envvar=True,
                                              help="Folder that holds the raw data sets.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Search an encoder's layers, pooling and prompt by cross-validation over training stories."""
    from recsys.config import load_config
    from recsys.experiment.encoder_tuning import tune_encoder as run

    found = run(load_config(file, overrides), out, home, arm, layers=layer or (), poolings=pooling or ("mean",),
                prompts=prompt or (), most=most)
    best = found["best"]
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join([
        f"{len(found['tried'])} tried; cross-validated error {found['before']:.4f} as it stands, {best['error']:.4f} "
        "at best", *(f"  --set '{one}'" for one in found["set"])]))


def tuning_text(found: Mapping[str, Any], out: Path) -> list[str]:
    """A search's result as lines of plain text."""
    counts, best, own = found["counts"], found["best"], found["experiment"]
    lines = [f"{len(found['trials'])} trials: {counts['complete']} complete, {counts['pruned']} pruned, "
             f"{counts['fail']} failed",
             f"validation {found['metric']}: {'failed' if own is None else format(own, '.5f')} as it stands, "
             f"{best['value']:.5f} at best (trial {best['number']})"]
    lines += [f"  --set '{o}'" for o in found["set"]]
    return [*lines, f"recsys train {out / 'best.yaml'} --out FOLDER"]


def text(costs: Iterable[Mapping[str, Any]], books: Mapping[str, Any]) -> list[str]:
    """The books as lines of plain text."""
    from recsys.report.words import money

    lines = ["booked: arm, stage, measured, list price x quantity [lowest spot, list]"]
    lines += [f"{r['x_ArmId']:<16} {r['x_Stage']:<9} {_measured(r):>14}  {money(r['EffectiveCost'])}"
              f"  [{money(r['x_CostLow'])}, {money(r['x_CostHigh'])}]  {r['ChargeDescription']}" for r in costs]
    lines += _clouds(books.get("clouds") or {})
    lines.append("\nstatement, per thousand impressions")
    for name, arm in books["arms"].items():
        net, extra = arm["net_per_mille"], arm["incremental_revenue_per_mille"]
        lines.append(f"{name:<16} revenue of the model 0 by construction; cost "
                     f"{money(arm['cost_per_mille']['estimate'])}; extra ad revenue {money(extra['estimate'])} "
                     f"[{money(extra['low'])}, {money(extra['high'])}]; net {money(net['estimate'])} "
                     f"[{money(net['low'])}, {money(net['high'])}]; {_break_even(arm)}")
    return lines + [f"  {note}" for note in books["notes"]]


def _measured(row: Mapping[str, Any]) -> str:
    if row.get("x_Bytes") is not None:
        return f"{row['x_Bytes'] / 1e6:,.2f} MB"
    return f"{row['x_Seconds'] or 0:,.1f} s"


def _clouds(clouds: Mapping[str, Any]) -> list[str]:
    from recsys.report.words import money

    rows = clouds.get("rows") or []
    if not rows:
        return []
    lines = ["\nthe same work elsewhere: arm, stage, basis, list price [spot]"]
    for row in rows:
        spot = "no spot price"
        if row["spot"] is not None:
            spot = f"{money(row['spot']['low'])}, {money(row['spot']['high'])}"
        lines.append(f"{row['arm']:<16} {row['stage']:<6} {row['basis']:<8} {row['provider']:<13} {row['offer']:<36} "
                     f"{money(row['on_demand'])}  [{spot}]  {row['price_row']}, as of {row['as_of']}")
    lines.append("the whole arm on each cloud (seconds and bytes)")
    lines += [f"{t['arm']:<16} {t['provider']:<13} {money(t['on_demand'])}  "
              f"[{money(t['spot']['low'])}, {money(t['spot']['high'])}]{_undated(t)}" for t in clouds["totals"]]
    lines += [f"  assumed: {line}" for line in clouds["assumptions"]]
    return lines + [f"  left out: {name}: {'; '.join(why)}" for name, why in clouds["left_out"].items()]


def _undated(total: Mapping[str, Any]) -> str:
    rows = total.get("undated") or []
    return f"  undated price: {', '.join(rows)}" if rows else ""


def _break_even(arm: Mapping[str, Any]) -> str:
    price = arm.get("break_even_price")
    if price is None:
        return "the baseline"
    months = price["months"]["estimate"]
    if months is None:
        return "no extra revenue: no fall of prices makes it pay"
    if months > 0:
        return f"pays after {months:.0f} months of falling prices"
    if price["multiple"] is None:
        return "pays today"
    return f"pays until prices are {price['multiple']['estimate']:.3g} times today's"
