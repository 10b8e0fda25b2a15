"""The verbs ``recsys load-users`` and ``recsys join-feedback``. Heavy libraries are imported inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import InputError

_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def load_users(
    users: Annotated[Path, typer.Argument(help="Parquet: user_id and feature columns, one row per user.")],
    redis: Annotated[str, typer.Option(help="redis://HOST:PORT/DB")],
    prefix: Annotated[str, typer.Option(help="Of the keys.")] = "recsys",
    ttl: Annotated[int | None, typer.Option(min=1, help="Seconds after which a user's features are gone; default: "
                                                        "never.")] = None,
    as_json: _Json = False,
) -> None:
    """Fill Redis with features of users, for the ranking service."""
    from recsys.serving.user_store import load_users as run

    rows = run(users, redis, prefix, ttl)
    typer.echo(json.dumps({"users": rows}) if as_json else f"{redis}: {rows:,} users")


def join_feedback(
    folder: Annotated[Path, typer.Argument(metavar="LOG", help="Folder that the ranking service logs into.")],
    out: Annotated[Path, typer.Option("--out", help="IMPRESSIONS, one Parquet file, for recsys ab and recsys ope.")],
    window: Annotated[float, typer.Option(min=0, help="Hours in which an impression's events count.")] = 24.0,
    as_of: Annotated[str | None, typer.Option(help="End of the log, ISO 8601; later impressions' windows are open. "
                                                   "Default: now.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Only impressions of this experiment; say how it is judged by "
                                                        "its registered rule.")] = None,
    state: Annotated[Path | None, typer.Option(help="The log's state folder; default LOG/_state.")] = None,
    as_json: _Json = False,
) -> None:
    """Served impressions with what came of them: clicks, engagement, conversions, hides."""
    import datetime as dt
    import shlex

    from recsys.serving.arms import ab_arguments, registered_experiment
    from recsys.serving.feedback import join_feedback as run

    moment = None
    if as_of is not None:
        try:
            moment = dt.datetime.fromisoformat(as_of)
        except ValueError:
            raise InputError("not a time", file="--as-of", got=as_of, expected="ISO 8601") from None
        moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment
    rule = None if experiment is None else registered_experiment(state or folder / "_state", experiment)
    counts = run(folder, out, window_hours=window, as_of=moment, experiment=experiment)
    if rule is not None:
        counts["ab"] = ab_arguments(rule, str(out))
    if as_json:
        typer.echo(json.dumps(counts))
        return
    typer.echo(f"{out}: " + ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items() if name != "ab"))
    if rule is not None:
        typer.echo(f"by the registered rule: recsys ab {shlex.join(counts['ab'])}")
