"""The plan of an experiment: what training, embedding, index, serving and storage need in a year, and their price."""

from __future__ import annotations

import math
import re
from typing import Any

from recsys.config import ExperimentConfig, IndexConfig
from recsys.config.scale import ScaleConfig
from recsys.errors import InputError, Refused
from recsys.ledger.prices import PriceCard, PriceRow, load_card
from recsys.ledger.statement import break_even_lift, cost_per_mille, tokens_per_second
from recsys.models.embeddings.base import SparseOptions, Table, state_width
from recsys.models.embeddings.plan import placements, table_bytes
from recsys.planning.offers import cheapest_first, fleet, machines_of, offer, totals
from recsys.planning.speeds import SpeedCard, load_speeds
from recsys.planning.training import (
    Shape,
    benchmark_flops,
    cpu_rows_a_second,
    machines_needed,
    reference_share,
    shape_of,
)
from recsys.retrieval.engine import bytes_per_vector, factory_for

SECONDS_A_YEAR = 365 * 86_400.0
GIB = 2.0**30
_WIRE = {"float32": 4, "float16": 2, "bfloat16": 2}


def make_plan(config: ExperimentConfig, speeds: str = "2026-11") -> dict[str, Any]:
    """What the experiment's ``scale`` needs in a year and what it costs on each cloud.

    Args:
        config: an experiment file with a ``scale`` section.
        speeds: name of, or path to, a card of speeds.

    Returns:
        {"tables", "model", "needs": {component: facts}, "offers": {component: [see :func:`offers.offer`, cheapest
        first; empty where no machine does it, "left_out" says why]}, "totals", "per_mille", "left_out", "assumptions"};
        money is US dollars a year.

    Raises:
        InputError: no ``scale`` section, a card that is not there. Refused: a quarantined price was asked for by name.
    """
    scale = config.scale
    if scale is None:
        raise InputError("the experiment does not say how large it is", column="scale", got=None,
                         expected="a section scale: (experiments/internet_scale.yaml is one)")
    speed, card = load_speeds(speeds), load_card(config.money.price_card)
    rows, left_out = machines_of(card, speed, scale.machines)
    tables, shape = _tables(scale), _shape(config, scale)
    needs: dict[str, Any] = {}
    offers = {"train": _train(config, scale, tables, shape, speed, rows, left_out)}
    offers |= {f"embed {name}": _embed(scale, name, speed, rows, needs) for name in scale.parameters}
    if scale.dims:
        offers["index"] = _index(config, scale, speed, rows, needs)
    offers["serve"] = _serve(config, scale, tables, shape, speed, rows, needs)
    needs["users"] = {"users": scale.users, "gib": scale.users * scale.user_bytes / GIB}
    offers["users"] = fleet("users", rows, needs["users"]["gib"], scale.replicas, speed.memory_share.value,
                            lambda shards: 0.0, ["memory_share", "memory_only"])
    offers["store"] = _store(config, scale, tables, card, needs)
    offers = {c: cheapest_first(found) for c, found in offers.items()}
    whole = totals(offers)
    return {"experiment": config.name, "price_card": card.name, "speed_card": speed.name,
            "tables": _table_rows(config, tables), "model": _model(config, shape, tables), "needs": needs,
            "offers": offers, "totals": whole, "per_mille": _per_mille(config, scale, offers, whole),
            "left_out": left_out, "assumptions": _assumptions(speed)}


def _tables(scale: ScaleConfig) -> list[Table]:
    return [Table(n, t.rows, (n,), t.length > 1) for n, t in scale.tables.items()]


def _shape(config: ExperimentConfig, scale: ScaleConfig) -> Shape:
    widest = max((config.model.content_dim for a in config.arms.values() if a.encoders), default=None)
    state = state_width(config.training.sparse_optimizer, config.model.embedding_dim)
    return shape_of(config.model, {n: t.length for n, t in scale.tables.items()}, scale.dense, widest, state,
                    _WIRE[config.training.parallel.communication])


def _table_rows(config: ExperimentConfig, tables: list[Table]) -> list[dict[str, Any]]:
    options = SparseOptions.of(config.training)
    where = placements(tables, config.model.embedding_dim, options, config.training.parallel, 8)
    return [{"table": t.name, "rows": t.rows, "dim": config.model.embedding_dim,
             "gib": table_bytes(t, config.model.embedding_dim, options) / GIB,
             "sharding_on_8": "row_wise" if where[t.name] is None else "table_wise"} for t in tables]


def _tables_bytes(config: ExperimentConfig, tables: list[Table]) -> int:
    """Of all tables and their optimizers."""
    options = SparseOptions.of(config.training)
    return sum(table_bytes(t, config.model.embedding_dim, options) for t in tables)


def _model(config: ExperimentConfig, shape: Shape, tables: list[Table]) -> dict[str, Any]:
    return {"kind": config.model.kind, "tables_gib": _tables_bytes(config, tables) / GIB,
            "dense_parameters": shape.dense_parameters, "flops_per_row": shape.flops, "lookups_per_row": shape.lookups}


def _train(config: ExperimentConfig, scale: ScaleConfig, tables: list[Table], shape: Shape, speeds: SpeedCard,
           rows: list[PriceRow], left_out: dict[str, list[str]]) -> list[dict[str, Any]]:
    found, work = [], scale.training_rows * config.training.epochs
    tables_gib = _tables_bytes(config, tables) / GIB
    for row in rows:
        if row.accelerator is not None:
            try:
                fact = machines_needed(config, tables, shape, speeds, row.accelerator, row.accelerators)
            except Refused as why:
                left_out.setdefault(row.id, []).append(f"train: {why}")
                continue
            found.append(offer("train", row, fact.pop("machines"), fact["run_hours"] * scale.runs_a_year, **fact,
                               assumes=["roofline", "input", "memory_share", "network_share"]))
            continue
        assert row.vcpus is not None
        assert row.memory_gib is not None
        speed = cpu_rows_a_second(shape, speeds, row.vcpus)
        hours = work / speed / 3600
        if tables_gib > row.memory_gib * speeds.memory_share.value:
            left_out.setdefault(row.id, []).append("train: the tables do not fit")
        elif scale.training_hours is not None and hours > scale.training_hours:
            left_out.setdefault(row.id, []).append("train: it does not end in time")
        else:
            found.append(offer("train", row, 1, hours * scale.runs_a_year, run_hours=hours, rows_a_second=speed,
                               gib_per_rank=tables_gib, accelerators=0, because="nothing", bound="arithmetic",
                               assumes=["cpu", "linear", "memory_share"]))
    return found


def _embed(scale: ScaleConfig, name: str, speeds: SpeedCard, rows: list[PriceRow],
           needs: dict[str, Any]) -> list[dict[str, Any]]:
    refresh = scale.ads * scale.tokens_an_ad
    year = refresh * scale.refreshes_a_year + scale.new_ads_a_year * scale.tokens_an_ad
    needs[f"embed {name}"] = {"tokens_a_refresh": refresh, "tokens_a_year": year,
                              "parameters": scale.parameters[name]}
    found = []
    for row in rows:
        if row.accelerator is None:
            rate = speeds.cpu.embed
            assert row.vcpus is not None
            tokens = rate.tokens_a_second / rate.cores * rate.parameters / scale.parameters[name] * row.vcpus
            assumes = ["cpu_embed", "linear"]
        else:
            peak = speeds.accelerators[row.accelerator].peak_flops
            tokens = row.accelerators * tokens_per_second(scale.parameters[name], peak, speeds.embed_utilisation.value)
            assumes = ["embed_utilisation"]
        machines = max(math.ceil(refresh / tokens / 3600 / scale.refresh_hours), 1)
        found.append(offer(f"embed {name}", row, machines, year / tokens / machines / 3600, assumes=assumes,
                           tokens_a_second=tokens * machines))
    return found


def _index(config: ExperimentConfig, scale: ScaleConfig, speeds: SpeedCard, rows: list[PriceRow],
           needs: dict[str, Any]) -> list[dict[str, Any]]:
    dim = max(scale.dims.values())
    factory = factory_for(scale.ads, dim, config.index)
    gib = scale.ads * bytes_per_vector(factory, dim) / GIB
    queries = _requests(scale) * scale.peak

    def cores(shards: int) -> float:
        return queries * shards * seconds_a_query(math.ceil(scale.ads / shards), dim, config.index, speeds)

    needs["index"] = {"vectors": scale.ads, "dim": dim, "factory": factory, "gib": gib,
                      "queries_a_second_at_peak": queries}
    return fleet("index", rows, gib, scale.replicas, speeds.memory_share.value, cores,
                 ["memory_share", "search", "linear", "busiest_hour"])


def seconds_a_query(n: int, dim: int, index: IndexConfig, speeds: SpeedCard) -> float:
    """Seconds of one core that a query of a shard of ``n`` vectors of length ``dim`` takes.

    The numbers that it reads (the centroids of all lists, unless a graph finds them, and the lists probed) by the
    numbers a second that the benchmark's index reads. Lists probed for the same recall grow with the root of n, as
    between the benchmark's 100,000 (19) and 1,000,000 (62) vectors.
    """
    rate = speeds.cpu.search
    a_second = rate.queries_a_second / rate.cores * (rate.lists + rate.vectors * rate.probes / rate.lists) * rate.dim
    found = re.match(r"IVF(\d+)(_HNSW)?", factory_for(n, dim, index))
    if found is None:
        return n * dim / a_second
    lists = int(found[1])
    probes = min(rate.probes * math.sqrt(n / rate.vectors), lists)
    return ((0 if found[2] else lists) + n * probes / lists) * dim / a_second


def _serve(config: ExperimentConfig, scale: ScaleConfig, tables: list[Table], shape: Shape, speeds: SpeedCard,
           rows: list[PriceRow], needs: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = _requests(scale) * scale.candidates * scale.peak
    rate = speeds.cpu.train
    # Training spends three times a forward pass on a row.
    core = 3.0 * rate.rows_a_second / rate.cores * benchmark_flops() / shape.flops
    gib = sum(t.rows for t in tables) * (shape.dim + 8) / GIB  # int8 rows, each with a scale and an offset
    needs["serve"] = {"requests_a_second": _requests(scale), "pairs_a_second_at_peak": pairs, "tables_gib_int8": gib,
                      "pairs_a_second_a_core": core, "cores": pairs / core}
    return fleet("serve", rows, gib, scale.replicas, speeds.memory_share.value, lambda shards: pairs / core,
                 ["cpu", "linear", "memory_share", "busiest_hour"])


def _store(config: ExperimentConfig, scale: ScaleConfig, tables: list[Table], card: PriceCard,
           needs: dict[str, Any]) -> list[dict[str, Any]]:
    parts = {"logs": scale.impressions_a_year / 12 * scale.log_months * scale.log_bytes,
             "checkpoints": (config.training.keep_checkpoints + 1) * _tables_bytes(config, tables),
             "vectors": scale.ads * 2.0 * sum(scale.dims.values())}
    gb = sum(parts.values()) / 1e9
    needs["store"] = {**{f"{k}_gb": v / 1e9 for k, v in parts.items()}, "gb": gb}
    found = []
    for row in card.usable("storage"):
        price = row.list_price
        assert price is not None
        found.append({"component": "store", "provider": row.provider, "offer": row.sku, "price_row": row.id,
                      "machines": 0, "hours": 8760.0, "on_demand": price * gb * 12, "spot": None,
                      "source": row.source, "as_of": row.as_of, "dated": row.dated, "assumes": ["bytes"]})
    return found


def _requests(scale: ScaleConfig) -> float:
    return scale.impressions_a_year / scale.slots / SECONDS_A_YEAR


def _per_mille(config: ExperimentConfig, scale: ScaleConfig, offers: dict[str, list[dict[str, Any]]],
               whole: list[dict[str, Any]]) -> dict[str, Any]:
    """Cost a thousand impressions: of the whole at its cheapest provider, and of the open models alone."""
    cheapest = next((t for t in whole if not t["missing"]), None)
    content = [found for c, found in offers.items() if c.startswith("embed ") or c == "index"]
    ecpm = config.money.reference_ecpm
    parts = {"content": sum(found[0]["on_demand"] for found in content)} if all(content) else {}
    parts |= {} if cheapest is None else {"whole": cheapest["on_demand"]}
    found: dict[str, Any] = {"reference_ecpm": ecpm, "provider": None if cheapest is None else cheapest["provider"]}
    for name, cost in parts.items():
        mille = cost_per_mille(cost, scale.impressions_a_year)
        found[name] = {"usd": mille, "break_even_lift": break_even_lift(mille, ecpm)}
    return found


def _assumptions(speeds: SpeedCard) -> dict[str, str]:
    cpu, embed, search, known = speeds.cpu.train, speeds.cpu.embed, speeds.cpu.search, speeds.reference
    shares = {n: getattr(speeds, n) for n in ("memory_share", "embed_utilisation", "network_share")}
    said = {
        "memory_share": "of a machine's or accelerator's memory is filled",
        "embed_utilisation": "of the accelerator's peak is reached while texts are embedded",
        "network_share": "of links and network is reached by an all-to-all",
    }
    found = {n: f"{shares[n].value:.0%} {words} ({shares[n].basis}: {speeds.sources[shares[n].source]})"
             for n, words in said.items()}
    return found | {
        "roofline": f"an accelerator reaches {reference_share(speeds):.0%} of its roofline, as in "
                    f"{speeds.sources[known.source]} ({known.basis}, not repeated here)",
        "input": f"reading and encoding takes {speeds.cpu.input.microseconds_a_row:.2f} us of a core for "
                 f"{speeds.cpu.input.columns} columns, and as much for each other one ({speeds.cpu.input.basis}: "
                 f"{speeds.sources[speeds.cpu.input.source]}); {speeds.cores_an_accelerator.value:.0f} cores feed an "
                 f"accelerator ({speeds.cores_an_accelerator.basis})",
        "cpu": f"a core does the arithmetic of {cpu.rows_a_second / cpu.cores:,.0f} rows/s of the benchmark's model, "
               f"whatever the model ({cpu.basis}: {speeds.sources[cpu.source]}); serving spends a third of that a row",
        "cpu_embed": f"a core embeds {embed.tokens_a_second / embed.cores:,.0f} tokens/s of a model of "
                     f"{embed.parameters / 1e6:,.0f} M parameters ({embed.basis}: {speeds.sources[embed.source]})",
        "linear": "every virtual processor is as fast as the benchmark machine's; speed grows with their number, and "
                  "falls with the model's operations",
        "memory_only": "sized by memory; the arithmetic of reads is not reckoned with",
        "search": f"a core answers {search.queries_a_second / search.cores:,.0f} queries/s of {search.vectors:,} "
                  f"vectors of {search.dim} numbers ({search.basis}: {speeds.sources[search.source]}), in proportion "
                  "to the numbers read; lists probed grow with the root of a shard's vectors; codes of 4 bits are "
                  "taken to be no faster",
        "busiest_hour": "machines that serve run all year, sized for the busiest hour",
        "bytes": "capacity alone, without requests and traffic",
    }
