"""The verbs ``recsys index`` and ``recsys search``. Heavy libraries are imported inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def index(
    dataset: Annotated[Path, typer.Argument(help="Prepared data set whose ads were embedded (recsys embed).")],
    model: Annotated[str, typer.Option(help="Which content store: DATASET/content/MODEL.")] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option("--out", help="Index folder; default DATASET/index/MODEL.")] = None,
    recall: Annotated[float, typer.Option(help="Recall against exact search that the index is tuned to.")] = 0.95,
    k: Annotated[int, typer.Option(help="Neighbours that recall counts.")] = 100,
    factory: Annotated[str | None, typer.Option(help="FAISS factory string; default: by the number of ads.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Serve the previous version again; build nothing."
                                           )] = False,
    as_json: _Json = False,
) -> None:
    """A FAISS index over the ads' content, tuned to a recall, published as a new version with checksums."""
    from recsys.config import IndexConfig, parse_model
    from recsys.contracts import read_parquet
    from recsys.retrieval import build_index
    from recsys.retrieval import rollback as go_back

    target = out or dataset / "index" / model
    if rollback:
        name = go_back(target)
        typer.echo(json.dumps({"version": name}) if as_json else f"{target}: serving {name} again")
        return
    config = parse_model(IndexConfig, {"recall": recall, "k": k, "factory": factory}, "index")
    manifest = build_index(dataset / "content" / model, target, read_parquet(dataset / "ads.parquet"), config=config)
    facts, found = manifest["facts"], manifest["facts"]["recall"]
    typer.echo(json.dumps({**manifest, "recall": found}, indent=2, default=str) if as_json else
               f"{target}: {facts['n']:,} ads, {facts['factory']}, nprobe {facts['nprobe']}; recall@{found['k']} "
               f"{found['recall']:.4f} on {found['queries']} held-out queries of the corpus")


def search(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Index folder (recsys index).")],
    text: Annotated[str, typer.Argument(help="The query.")],
    k: Annotated[int, typer.Option(min=1, help="How many ads.")] = 10,
    where: Annotated[list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Only ads whose column compares so "
                                                    "(= != < <= > >=; = takes a,b,c). May be repeated.")] = None,
    ads: Annotated[Path | None, typer.Option(help="ads.parquet: show titles beside the ids.")] = None,
    as_json: _Json = False,
) -> None:
    """The ads nearest in meaning to a text."""
    from recsys.contracts import ADS, read_parquet
    from recsys.retrieval import search_text

    titles: dict[str, str] = {}
    if ads is not None:
        table = read_parquet(ads, ADS)
        titles = dict(zip(table["ad_id"].to_pylist(), table["title"].to_pylist(), strict=True))
    found = [{**r, **({"title": titles.get(r["ad_id"])} if ads else {})}
             for r in search_text(folder, text, k, where or None)]
    typer.echo(json.dumps({"results": found}, indent=2) if as_json else "\n".join(
        f"{r['score']:.4f}  {r['ad_id']}  {r.get('title') or ''}".rstrip() for r in found))
