"""The verbs ``recsys score`` and ``recsys serve``, which ``serve.py`` offers as ``batch`` and ``http``.

Heavy libraries are imported inside, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.errors import InputError, RecsysError
from recsys.log import setup_logging

_Model = Annotated[Path, typer.Option("--model", help="Model folder (recsys train) or bundle (recsys export).")]
_Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def score(
    model: _Model,
    input: Annotated[list[str], typer.Option("--input", help="Parquet file, address (s3://...) or glob of impressions "
                                                             "or requests with a candidates list. May be repeated.")],
    output: Annotated[str, typer.Option("--output", help="Output folder or address: part-*.parquet, rejected.parquet, "
                                                         "manifest.json.")],
    more: Annotated[list[str] | None, typer.Argument(help="Further input files, as a shell expands a glob.",
                                                        show_default=False)] = None,
    ads: Annotated[Path | None, typer.Option(help="ads.parquet: score every candidate of a row, not only its own "
                                                     "ad.")] = None,
    shard_rows: Annotated[int, typer.Option(help="Input rows of a shard, the unit that a rerun skips.")] = 131_072,
    batch_rows: Annotated[int, typer.Option(help="Most pairs that the model sees at once.")] = 16_384,
    keep: Annotated[list[str] | None, typer.Option(help="Input column to carry into the output. May be "
                                                           "repeated.")] = None,
    device: _Device = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core, where there is work for "
                                                            "them.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: shards are tasks of a Ray cluster.")] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Score Parquet in bulk. Run again after a kill, it goes on; run again after the end, it does nothing; run it on
    several machines, they share the work."""
    from recsys.serving.batch import score_batch

    if engine not in ("local", "ray"):
        raise InputError("no such engine", file="--engine", got=engine, expected="local or ray")
    manifest = score_batch(model, [*input, *(more or [])], output, ads=ads, shard_rows=shard_rows,
                           batch_rows=batch_rows, keep=keep or (), device=device, workers=workers,
                           engine="ray" if engine == "ray" else "local")
    typer.echo(json.dumps(manifest, indent=2) if as_json else _summary(manifest, output))


def export(
    model: Annotated[Path, typer.Argument(help="Model folder (recsys train); where its run was killed or is going on, "
                                               "the best weights so far; or one checkpoint of the run.")],
    out: Annotated[Path, typer.Option("--out", help="The bundle.")],
    data: Annotated[Path, typer.Option("--data", help="Split folder: scores are compared on its valid.parquet, or "
                                                      "test.parquet where there is none.")],
    embeddings: Annotated[str, typer.Option(help="int8, int4 or fp32: how tables are kept.")] = "int8",
    precision: Annotated[str, typer.Option(help="bfloat16 or float32: of matrix products, on processors that have "
                                                "bfloat16.")] = "bfloat16",
    calibration: Annotated[str, typer.Option(help="none, platt or isotonic: fitted on valid.parquet.")] = "none",
    index: Annotated[Path | None, typer.Option(help="Index (recsys index) that the model is served with; one of other "
                                                          "ads, or of other content, is refused.")] = None,
    program: Annotated[bool, typer.Option(help="Also write scorer.pt2, a torch.export program.")] = True,
    rows: Annotated[int, typer.Option(min=1, help="Held-out rows at most.")] = 100_000,
    max_dp: Annotated[float, typer.Option(min=0, help="Refuse beyond this largest difference of a "
                                                      "probability.")] = 0.03,
    mean_dp: Annotated[float, typer.Option(min=0, help="Refuse beyond this mean difference.")] = 0.002,
    auc: Annotated[float, typer.Option(min=0, help="Refuse beyond this change of AUC.")] = 0.0005,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Publish a model for scoring: packed tables, checked against the model that was trained (exit code 3 beyond the
    bounds)."""
    from recsys.models.scoring import Scoring
    from recsys.serving.export import Bounds, export_bundle

    for name, value, choices in (("--embeddings", embeddings, ("int8", "int4", "fp32")),
                                 ("--precision", precision, ("bfloat16", "float32")),
                                 ("--calibration", calibration, ("none", "platt", "isotonic"))):
        if value not in choices:
            raise InputError("no such choice", file=name, got=value, expected=", ".join(choices))
    manifest = export_bundle(
        model, out, data=data, scoring=Scoring(embeddings, precision), index=index,  # type: ignore[arg-type]
        calibration=calibration, program=program, bounds=Bounds(max_dp, mean_dp, auc), rows=rows)  # type: ignore[arg-type]
    worst = max(d["max_dp"] for d in manifest["facts"]["differences"].values())
    typer.echo(json.dumps(manifest, indent=2) if as_json else
               f"{out}: {manifest['facts']['model_id']}, scores within {worst:.2g} of the trained model's"
               + (" (published before)" if manifest["cached"] else ""))


def serve(
    model: Annotated[list[str], typer.Option("--model", help="Model folder (recsys train), or folder of versions 1, 2, "
                                                            "... of one; NAME=FOLDER to serve it under another name "
                                                            "than ranker. May be repeated.")],
    host: Annotated[str, typer.Option(help="Address; beyond loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    token: Annotated[str | None, typer.Option(envvar="RECSYS_TOKEN", show_envvar=True,
                                                 help="Bearer token that clients must send.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the port.")] = 1,
    queue: Annotated[int, typer.Option(min=1, help="Most requests that wait, in each; the next is a 503.")] = 64,
    delay: Annotated[float, typer.Option(min=0.001, help="While the first in the queue has waited for more seconds "
                                                         "than this, requests are a 503.")] = 0.1,
    batch_rows: Annotated[int, typer.Option(min=1, help="Most rows of waiting requests that are scored "
                                                        "together.")] = 2048,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds after which a request that waits is dropped, where "
                                                           "it has no Timeout-Ms.")] = 1.0,
    connections: Annotated[int, typer.Option(min=1, help="Most open connections, in each; for one more, the one that "
                                                         "has waited longest for a request is closed.")] = 512,
    head_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds in which a request's headers must have "
                                                              "come.")] = 10.0,
    body_memory: Annotated[int, typer.Option(min=8, help="Most MiB of bodies that are on their way or not answered "
                                                         "yet, in each; the next is a 503.")] = 64,
    drain: Annotated[float, typer.Option(min=0, help="Seconds from SIGTERM, when the service says that it is not "
                                                     "ready, until it takes no more connections.")] = 0.0,
    access_log: Annotated[bool, typer.Option(help="One JSON object a request on standard output.")] = True,
    ranking: Annotated[Path | None, typer.Option(help="ranking.yaml: serve /v1/rank, /v1/retrieve and /v1/feedback, "
                                                      "too.")] = None,
    device: _Device = "auto",
) -> None:
    """Serve scores over HTTP until SIGTERM."""
    from recsys.serving.http import Limits, ServeOptions, Settings
    from recsys.serving.http import serve as run

    settings = Settings(token=token, connections=connections, head_timeout=head_timeout, max_bodies=body_memory << 20,
                        timeout=timeout, limits=Limits(requests=queue, delay=delay, batch_rows=batch_rows))
    run(ServeOptions(_models(model), host, port, workers=workers, device=device, drain=drain, access_log=access_log,
                     ranking=ranking, settings=settings))


def _models(given: list[str]) -> dict[str, Path]:
    """Name -> folder, of FOLDER or NAME=FOLDER."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals:
            name, folder = "ranker", text
        if name in found:
            raise InputError("two models of one name", file="--model", got=name, expected="NAME=FOLDER")
        found[name] = Path(folder)
    return found


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
    except OSError as error:  # a full disk, a read-only folder: the user's to mend, so no traceback
        typer.echo(f"error: {error.filename or 'input/output'}: {error.strerror or error}", err=True)
        sys.exit(1)


def _summary(manifest: dict[str, Any], output: str) -> str:
    rows = manifest["rows"]
    text = f"{output}: {rows['scored']:,} scored, {rows['rejected']:,} rejected"
    reasons = "; ".join(f"{n:,} {reason}" for reason, n in sorted(manifest["facts"]["reasons"].items()))
    return text + (f" ({reasons})" if reasons else "") + (" (finished before)" if manifest["cached"] else "")
