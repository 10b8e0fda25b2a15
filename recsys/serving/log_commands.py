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
    experiment: Annotated[str | None, typer.Option(help="Only impressions of this experiment.")] = None,
    as_json: _Json = False,
) -> None:
    """Served impressions with what came of them: clicks, engagement, conversions, hides."""
    import datetime as dt

    from recsys.serving.feedback import join_feedback as run

    moment = None
    if as_of is not None:
        try:
            moment = dt.datetime.fromisoformat(as_of)
        except ValueError:
            raise InputError("not a time", file="--as-of", got=as_of, expected="ISO 8601") from None
        moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment
    counts = run(folder, out, window_hours=window, as_of=moment, experiment=experiment)
    typer.echo(json.dumps(counts) if as_json else f"{out}: " + ", ".join(
        f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items()))
