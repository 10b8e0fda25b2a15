"""The command line: one function per verb. Heavy libraries are imported inside, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys import __version__
from recsys.errors import InputError, RecsysError, Refused, Stopped
from recsys.evaluation.ab.commands import power
from recsys.evaluation.certify.commands import certify
from recsys.evaluation.offpolicy.commands import ope, thompson_policy
from recsys.experiment.ab import ab
from recsys.experiment.commands import ledger, tune, tune_encoder
from recsys.log import log, setup_logging
from recsys.planning.commands import plan
from recsys.remote import addresses_at_hand
from recsys.retrieval.commands import index, search
from recsys.serving.commands import export, score, serve
from recsys.serving.log_commands import join_feedback, load_users

app = typer.Typer(name="recsys", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None,  # rich help takes twice as long to answer
                  help="An open ad-recommendation engine that keeps the books on AI.")

_Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override a key of the experiment "
                                                                               "file. May be repeated.")]
_Home = Annotated[Path | None, typer.Option("--data-home", envvar="RECSYS_DATA_HOME", show_envvar=True,
                                            help="Folder that holds the raw data sets.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
_File = Annotated[str, typer.Argument(help="Experiment file: a path, or the name of a shipped one.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"recsys {__version__}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version."
                                          )] = False,
) -> None:
    """Options of every verb; they stand before it."""
    setup_logging("DEBUG" if verbose else "INFO", log_json)


def _say(result: dict[str, Any], as_json: bool, text: str) -> None:
    typer.echo(json.dumps(result, indent=2, default=str) if as_json else text)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/demo"),
    overrides: _Set = None,
    as_json: _Json = False,
) -> None:
    """The whole engine on the simulated marketplace: what lift did an open model bring, and what did it cost?"""
    experiment("marketplace", out, overrides, None, as_json)


@app.command()
def prepare(
    recipe: Annotated[str, typer.Argument(help="Recipe: a path, or a shipped name (see --list).")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Output folder.")] = None,
    home: _Home = None,
    file: Annotated[list[str] | None, typer.Option("--file", metavar="TABLE=PATH", help="Read a table of the recipe "
                                                   "from this file instead.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of a simulated data set.")] = 0,
    show: Annotated[bool, typer.Option("--list", help="List the shipped recipes.")] = False,
    as_json: _Json = False,
) -> None:
    """Raw files to contracts: impressions.parquet, ads.parquet, dataset.json."""
    from recsys.datasets.prepare import prepare as run
    from recsys.datasets.recipe import list_recipes

    if show:
        typer.echo("\n".join(f"{r.name:<20} {r.title}" for r in list_recipes()))
        return
    if not recipe or out is None:
        raise InputError("a recipe and --out are needed", file="prepare", expected="recsys prepare RECIPE --out FOLDER")
    files = dict(_pair(item) for item in file or [])
    manifest = run(recipe, out, data_home=home, files=files or None, seed=seed)
    _say(manifest, as_json, f"{out}: " + ", ".join(f"{n:,} {k}" for k, n in manifest["rows"].items()))


def _pair(item: str) -> tuple[str, str]:
    key, sep, value = item.partition("=")
    if not sep:
        raise InputError("malformed option", file="--file", got=item, expected="TABLE=PATH")
    return key, value


@app.command()
def embed(
    dataset: Annotated[Path, typer.Argument(help="Prepared data set (recsys prepare) with ads.parquet.")],
    model: Annotated[str, typer.Option(help="smollm2-135m, minilm, hashed, length; or a folder, GGUF file or hub id "
                                            "of a Llama-architecture model.")] = "smollm2-135m",
    kind: Annotated[str | None, typer.Option(help="llama, sentence, hashed or length; default: by the model's name.")
                    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Store; default DATASET/content/MODEL.")] = None,
    option: Annotated[list[str] | None, typer.Option("--set", metavar="key=value", help="Further keys of an encoder: "
                                                     "pooling, layer, prompt, max_tokens ...")] = None,
    machine: Annotated[str, typer.Option(help="Price row of this machine, for the cost rows.")] = "",
    as_json: _Json = False,
) -> None:
    """Content embeddings of a data set's ads, into a store that is never computed twice."""
    from recsys.config import EncoderConfig, MoneyConfig, apply_overrides, parse_model
    from recsys.content import embed_texts
    from recsys.contracts import read_parquet
    from recsys.ledger import book, load_card, write_costs

    plain = model in ("hashed", "length")
    value: dict[str, Any] = {"kind": kind or ("sentence" if model == "minilm" else model if plain else "llama")}
    value |= {} if plain else {"model": model}
    encoder = parse_model(EncoderConfig, apply_overrides(value, option or []), "embed")
    store = out or dataset / "content" / Path(model).name
    manifest = embed_texts(read_parquet(dataset / "ads.parquet"), encoder, store)
    usage = json.loads((store / "usage.json").read_text())
    money = MoneyConfig()
    costs = book([usage], load_card(money.price_card), machine or money.machine, "embed", model)
    write_costs(costs, store / "costs.parquet")
    _say({**manifest, "usage": usage}, as_json,
         f"{store}: {'up to date; it took ' if manifest['cached'] else ''}{usage['texts']:,} texts, "
         f"{usage['tokens']:,} tokens, {usage['seconds']:.1f} s, ${sum(costs['EffectiveCost'].to_pylist()):.6f}")


@app.command()
def train(
    file: _File,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run: metrics.json, model/.")],
    arm: Annotated[str | None, typer.Option(help="Which arm, where there are several.")] = None,
    retriever: Annotated[str | None, typer.Option(help="Train this retriever instead, and index the ads by it: "
                                                       "retrievers/NAME/.")] = None,
    overrides: _Set = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Train one arm's ranker, or a retriever, and measure it on the test part."""
    from recsys.config import load_config
    from recsys.experiment import run_retriever, run_training

    if retriever is not None:
        found = run_retriever(load_config(file, overrides), out, retriever, home)
        _say(found, as_json, f"{out / 'retrievers' / retriever}: test clicks among the best k of {found['ads']:,} ads: "
             + ", ".join(f"@{k} {v:.4f}" for k, v in found["recall"].items()))
        return
    metrics = run_training(load_config(file, overrides), out, home, arm)
    if os.environ.get("RANK", "0") != "0":
        return  # torchrun's other ranks have nothing to add
    shown = {k: v for k, v in metrics["test"].items() if isinstance(v, int | float)}
    _say(metrics, as_json, f"{out}: " + ", ".join(f"{k} {v:.5g}" for k, v in shown.items()))


@app.command()
def experiment(
    file: _File,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    overrides: _Set = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Run every arm of an experiment: data, content, training, policies, costs, report."""
    from recsys.config import load_config
    from recsys.experiment import run_experiment

    result = run_experiment(load_config(file, overrides), out, home)
    _report(result, out, as_json)


@app.command()
def lift(
    folder: Annotated[Path, typer.Argument(help="An experiment's folder.")],
    as_json: _Json = False,
) -> None:
    """Make the report again from an experiment's logs alone: report/lift.json, then report/lift.html."""
    from recsys.experiment import make_report

    _report(make_report(folder), folder, as_json)


def _report(result: dict[str, Any], out: Path, as_json: bool) -> None:
    from recsys.report import render_terminal

    _say(result, as_json, "" if as_json else f"{render_terminal(result)}\n{out / 'report' / 'lift.html'}")
    if result["refused"]:
        raise typer.Exit(Refused.exit_code)


@app.command()
def doctor(as_json: _Json = False) -> None:
    """Versions, accelerator, models and data found, what is missing, and the line that mends it."""
    from recsys.doctor import examine

    found = examine()
    lines = []
    for check in found:
        lines.append(f"{'ok  ' if check['ok'] else 'MISS'} {check['name']}: {check['found']}")
        lines += [f"     mend: {check['mend']}"] if check["mend"] else []
    _say({"checks": found}, as_json, "\n".join(lines))
    if any(not c["ok"] and c["needed"] for c in found):
        raise typer.Exit(1)


app.command("index")(index)
app.command("search")(search)
app.command("tune")(tune)
app.command("tune-encoder")(tune_encoder)
app.command("ledger")(ledger)
app.command("plan")(plan)
app.command("ab")(ab)
app.command("power")(power)
app.command("export")(export)
app.command("score")(score)
app.command("serve")(serve)
app.command("load-users")(load_users)
app.command("join-feedback")(join_feedback)
app.command("ope")(ope)
app.command("thompson-policy")(thompson_policy)
app.command("certify")(certify)


def main(arguments: list[str] | None = None) -> None:
    """Run a verb; a :class:`RecsysError` becomes one line on standard error and its exit code."""
    code = _run(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from recsys.training.world import end_rank

        end_rank(code)
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    try:
        with addresses_at_hand(sys.argv[1:] if arguments is None else arguments) as words:
            app(words)
    except RecsysError as error:
        if not error.reported:
            typer.echo(f"error: {error}", err=True)
        return error.exit_code
    except OSError as error:  # a full disk, a read-only folder: the user's to mend, so no traceback
        typer.echo(f"error: {error.filename or 'input/output'}: {error.strerror or error}", err=True)
        return 1
    except Stopped as stopped:
        log.warning("%s; the same command goes on from here", stopped)
        return stopped.exit_code
    except KeyboardInterrupt:
        log.warning("interrupted; the same command goes on from here")
        return 130
    except SystemExit as end:  # typer's own, after --help or a usage error, too
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


if __name__ == "__main__":
    main()
