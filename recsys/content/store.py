"""The content store: one vector per distinct ad text and encoder, made once.

    manifest = embed_texts(ads, EncoderConfig(kind="sentence"), Path("work/content/minilm"))

A store is a folder with ``content.parquet`` (the CONTENT contract; ``vector`` is a fixed-size list of float16) and
``usage.json`` (what making the vectors took, whenever it was done). Vectors are keyed by content hash, model, revision
and pooling: a second run embeds nothing, ads added later are all that is embedded, and a killed run leaves its finished
chunks in a hidden folder beside the store, where the next run finds them.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.config import EncoderConfig
from recsys.content.encoders import Encoder, make_encoder
from recsys.content.parts import Parts, read_store, write_content
from recsys.content.ranks import Ranks
from recsys.errors import InputError
from recsys.log import log, progress
from recsys.stage import Stage, alone_in, read_manifest, run_stage, sha256_json, write_json

CONTENT_FILE, USAGE_FILE = "content.parquet", "usage.json"


def ad_text(title: str, body: str | None = None) -> str:
    """The text that is embedded: ``title``, or ``title. body`` where there is a body that is not blank."""
    title, body = title.strip(), (body or "").strip()
    return f"{title}. {body}" if title and body else title or body


def read_usage(store: str | Path) -> dict[str, Any]:
    """A store's usage.json (keys: see :func:`embed_texts`)."""
    path = Path(store) / USAGE_FILE
    if not path.is_file():
        raise InputError("not a content store", file=path, got="no such file", expected="a folder made by recsys embed")
    return dict(json.loads(path.read_text()))


def embed_texts(ads: pa.Table, config: EncoderConfig, out: str | Path, *, device: str = "auto",
                chunk: int | None = None) -> dict[str, Any]:
    """Embed every distinct text among the ads that the store does not hold yet.

    Where torchrun started several processes, each embeds its share and all return when the store is there
    (:mod:`recsys.content.ranks`).

    Args:
        ads: needs ``content_hash`` and ``title``; ``body`` is used where it is there.
        config: the encoder. A store made by another encoder is replaced.
        out: the store's folder.
        device: ``auto`` | ``cpu`` | ``cuda``.
        chunk: texts encoded and saved at a time, so what a kill can lose; default 256 on a CPU, 8192 on a GPU.

    Returns:
        The manifest, with ``cached`` true where there was nothing to embed. ``usage.json`` beside it says::

            stage "embed", model_id, model_revision, pooling, texts, tokens, seconds (of a machine while it encoded,
            loading left out; processes that torchrun started on one machine share its time), device, device_name,
            parameters, flops (2 * parameters * tokens), utilisation (flops a second over the fastest matrix product
            measured on the device; null without a network), positions (tokens and padding that were computed),
            padding_share (of positions), tokens_per_second, price_row (of a hosted model, else null),
            cached_texts (already there when the store was last added to)

        all but the last of them totals over every run that added to the store.

    Raises:
        InputError: a column is missing, a hash or title is null, or the model cannot be read.
    """
    out = Path(out)
    _refuse_other_folder(out)
    wanted = _distinct_texts(ads)
    encoder = make_encoder(config, device)
    identity = {"model_id": encoder.model_id, "model_revision": encoder.revision, "pooling": encoder.pooling}
    parts = Parts(out.parent / f".{out.name}.{sha256_json(identity)[:12]}.parts", identity, encoder.dim)
    ranks = Ranks.of_environment()
    # Of two runs that add to one store, the second would write it without what the first has added meanwhile.
    with alone_in(parts.folder) if ranks.rank == 0 else nullcontext():
        return _add(wanted, encoder, config, identity, parts, ranks, out, chunk)


def _add(wanted: dict[str, str], encoder: Encoder, config: EncoderConfig, identity: dict[str, str], parts: Parts,
         ranks: Ranks, out: Path, chunk: int | None) -> dict[str, Any]:
    held = read_store(out / CONTENT_FILE, identity, encoder.dim) if read_manifest(out) is not None else None
    have = set() if held is None else set(held["content_hash"].to_pylist())
    if ranks.rank == 0:
        parts.discard(have)  # of a run that was killed after its store appeared, before it had cleared up
    missing = {h: t for h, t in wanted.items() if h not in have}
    if held is not None and not missing:
        log.info("embed: up to date, all %d texts have vectors of %s, nothing to do (%s)",
                 len(wanted), encoder.model_id, out)
        return {**(read_manifest(out) or {}), "cached": True}
    before = read_usage(out) if held is not None else None
    hashes = sha256_json(sorted(have | wanted.keys()))
    _encode_missing(encoder, missing, parts, chunk, ranks)
    if ranks.rank:
        return ranks.wait(lambda: _finished(out, hashes), "rank 0 to write the store")
    if ranks.world > 1:
        ranks.wait(lambda: parts.hashes() >= missing.keys() or None, "the other ranks' texts")

    def build(stage: Stage) -> None:
        table, usage = parts.collect(missing)
        whole = table if held is None else pa.concat_tables([held, table])
        write_content(whole, stage.path(CONTENT_FILE))
        write_json(stage.path(USAGE_FILE),
                   {**_usage(encoder, usage, before, cached=len(have)), "price_row": config.price})
        stage.rows = {"content": whole.num_rows}
        stage.facts = {**identity, "dim": encoder.dim, "embedded": table.num_rows, "cached": len(have),
                       "blocks": config.blocks, "encoder": config.model_dump(mode="json")}

    manifest = run_stage("embed", out, config={**identity, "dim": encoder.dim, "texts_sha256": hashes}, inputs={},
                         build=build)
    parts.clear()
    return manifest


def _refuse_other_folder(out: Path) -> None:
    # Before hours of work, not after: run_stage would refuse the one and replace the other.
    manifest = read_manifest(out)
    if manifest is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("the output folder holds something that is not a content store", file=out,
                         expected="an empty or new folder, or a content store")
    if manifest is not None and manifest.get("stage") != "embed":
        raise InputError("the output folder is another stage's", file=out, column="stage", got=manifest.get("stage"),
                         expected="embed")


def _distinct_texts(ads: pa.Table) -> dict[str, str]:
    for name in ("content_hash", "title"):
        if name not in ads.column_names:
            raise InputError("missing column", file="ads", column=name, got=ads.column_names, expected="string")
        if ads[name].null_count:
            row = ads[name].to_pylist().index(None)
            raise InputError("null value", file="ads", column=name, row=row, got="null", expected="a string")
    if ads.num_rows == 0:
        raise InputError("no rows", file="ads", got="0 rows", expected="at least one ad")
    first: dict[str, int] = {}  # content hash -> its first row
    for row, key in enumerate(ads["content_hash"].to_pylist()):
        first.setdefault(key, row)
    chosen = ads.take(list(first.values()))
    bodies = chosen["body"].to_pylist() if "body" in ads.column_names else [None] * len(first)
    return {h: ad_text(t, b) for h, t, b in zip(first, chosen["title"].to_pylist(), bodies, strict=True)}


def _finished(out: Path, hashes: str) -> dict[str, Any] | None:
    manifest = read_manifest(out)
    return manifest if manifest is not None and manifest["config"].get("texts_sha256") == hashes else None


def _encode_missing(encoder: Encoder, missing: dict[str, str], parts: Parts, chunk: int | None, ranks: Ranks) -> None:
    done = parts.hashes()
    if done & missing.keys():
        log.info("embed: %d of %d texts were embedded by a run that did not finish, going on from there",
                 len(done & missing.keys()), len(missing))
    # Texts of like length together: a chunk's batches then hold hardly any padding. Longest first, for where memory is
    # short, it is the first chunk that fails.
    ordered = sorted(missing, key=lambda h: (-len(missing[h]), h))
    todo = [h for h in ranks.share(ordered) if h not in done]
    if not todo:
        return
    chunk = chunk or (8192 if encoder.device == "cuda" else 256)
    ceiling = _ceiling(encoder)  # loads the weights too, so that the clock below sees encoding only
    log.info("embed: %d texts with %s on %s", len(todo), encoder.model_id, encoder.device)
    began, told = time.perf_counter(), time.perf_counter()
    with progress("texts") as bar:
        task = bar.add_task(f"embed {encoder.model_id}", total=len(todo))
        for at in range(0, len(todo), chunk):
            keys = todo[at : at + chunk]
            start = time.perf_counter()
            batch = encoder.encode([missing[k] for k in keys])
            seconds = time.perf_counter() - start
            # In machine's time: the ranks on it run side by side, and together they can do so many times as much.
            parts.add(keys, batch, {"seconds": seconds / ranks.local,
                                    "ceiling": None if ceiling is None else ceiling * ranks.local})
            bar.update(task, advance=len(keys))
            if bar.disable and (now := time.perf_counter()) - told > 30:  # a log file gets a line every half minute
                rate, told = (at + len(keys)) / (now - began), now
                log.info("embed: %d/%d texts, %.0f texts/s, %.0f s left", at + len(keys), len(todo), rate,
                         (len(todo) - at - len(keys)) / rate)


def _ceiling(encoder: Encoder) -> float | None:
    if encoder.parameters == 0:
        return None
    from recsys.content.device import matmul_ceiling

    return matmul_ceiling(encoder.device, encoder.dtype)


def _usage(encoder: Encoder, runs: list[dict[str, Any]], before: dict[str, Any] | None, cached: int) -> dict[str, Any]:
    """Totals over the finished chunks and what the store already said."""
    from recsys.content.device import device_name

    before = before or {"texts": 0, "tokens": 0, "seconds": 0.0, "flops": 0, "utilisation": None}
    parameters = encoder.parameters
    tokens = sum(r["tokens"] for r in runs)
    flops = before["flops"] + 2 * parameters * tokens
    # What the device could have done in the time: utilisation is flops over it, in total as in each part.
    possible = sum(r["seconds"] * r["ceiling"] for r in runs if r["ceiling"])
    possible += before["flops"] / before["utilisation"] if before["utilisation"] else 0.0
    # A store of an earlier version says nothing of padding: its tokens count as unpadded.
    positions = before.get("positions", before["tokens"]) + sum(r.get("positions", r["tokens"]) for r in runs)
    tokens, seconds = before["tokens"] + tokens, before["seconds"] + sum(r["seconds"] for r in runs)
    return {
        "stage": "embed", "model_id": encoder.model_id, "model_revision": encoder.revision, "pooling": encoder.pooling,
        "texts": before["texts"] + sum(r["texts"] for r in runs), "tokens": tokens, "seconds": seconds,
        "positions": positions, "padding_share": 1 - tokens / positions if positions else 0.0,
        "tokens_per_second": tokens / seconds if seconds > 0 else None, "device": encoder.device,
        "device_name": device_name(encoder.device), "parameters": parameters, "flops": flops,
        # The ceiling is one short measurement: on a busy machine the work itself may do better than it.
        "utilisation": min(flops / possible, 1.0) if possible else None, "cached_texts": cached,
    }
