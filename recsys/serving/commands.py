"""The verbs ``recsys score`` and ``recsys serve``, which ``serve.py`` offers as ``batch`` and ``http``.

Heavy libraries are imported inside, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.errors import RecsysError
from recsys.log import setup_logging

_Model = Annotated[Path, typer.Option("--model", help="Model folder (recsys train).")]
_Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def score(
    model: _Model,
    input: Annotated[list[str], typer.Option("--input", help="Parquet file or glob of impressions, or of requests "
                                                             "with a candidates list. May be repeated.")],
    output: Annotated[Path, typer.Option("--output", help="Output folder: part-*.parquet, rejected.parquet, "
                                                          "manifest.json.")],
    more: Annotated[list[str] | None, typer.Argument(help="Further input files, as a shell expands a glob.",
                                                        show_default=False)] = None,
    ads: Annotated[Path | None, typer.Option(help="ads.parquet: score every candidate of a row, not only its own "
                                                     "ad.")] = None,
    shard_rows: Annotated[int, typer.Option(help="Input rows of a shard, the unit that a rerun skips.")] = 200_000,
    batch_rows: Annotated[int, typer.Option(help="Most pairs that the model sees at once.")] = 16_384,
    keep: Annotated[list[str] | None, typer.Option(help="Input column to carry into the output. May be "
                                                           "repeated.")] = None,
    device: _Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Score Parquet in bulk. Run again after a kill, it goes on; run again after the end, it does nothing."""
    from recsys.serving.batch import score_batch

    manifest = score_batch(model, [*input, *(more or [])], output, ads=ads, shard_rows=shard_rows,
                           batch_rows=batch_rows, keep=keep or (), device=device)
    typer.echo(json.dumps(manifest, indent=2) if as_json else _summary(manifest, output))


def serve(
    model: _Model,
    host: Annotated[str, typer.Option(help="Address; beyond loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    token: Annotated[str | None, typer.Option(envvar="RECSYS_TOKEN", show_envvar=True,
                                                 help="Bearer token that clients must send.")] = None,
    device: _Device = "auto",
) -> None:
    """Serve scores over HTTP until SIGTERM."""
    from recsys.serving.http import serve as run

    run(model, host, port, token, device)


def main(arguments: list[str] | None = None) -> None:
    """``serve.py``: batch and http; a RecsysError is one line on standard error and its exit code."""
    app = typer.Typer(name="serve.py", help="Score in bulk, or over HTTP.", no_args_is_help=True, add_completion=False,
                      pretty_exceptions_enable=False, rich_markup_mode=None)  # rich doubles the time of --help
    app.command("batch")(score)
    app.command("http")(serve)
    setup_logging()
    try:
        app(arguments)
    except RecsysError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def _summary(manifest: dict[str, Any], output: Path) -> str:
    rows = manifest["rows"]
    text = f"{output}: {rows['scored']:,} scored, {rows['rejected']:,} rejected"
    reasons = "; ".join(f"{n:,} {reason}" for reason, n in sorted(manifest["facts"]["reasons"].items()))
    return text + (f" ({reasons})" if reasons else "") + (" (finished before)" if manifest["cached"] else "")
