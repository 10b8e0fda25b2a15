"""The simulated marketplace: a log with known propensities from a world whose truth can be asked.

``simulate_dataset`` draws a world (:mod:`.marketplace_world`), lets a legacy ad server with a known random
ranking serve it, and writes a prepared dataset plus ``truth/``. :class:`.marketplace_truth.Marketplace`
reads ``truth/`` and answers the exact click rate, engagement and revenue of any policy.
Why it is simulated and what it cannot show: docs/decisions/0003-simulated-marketplace.md.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.auction import gsp_price, sample_slots, slot_marginals
from recsys.config import parse_model
from recsys.contracts import ADS, IMPRESSIONS, SURFACES, validate
from recsys.datasets.info import DatasetInfo, Label, save_dataset_info
from recsys.datasets.marketplace_text import brand_names, vocabulary, write_creatives
from recsys.datasets.marketplace_truth import identifiers
from recsys.datasets.marketplace_world import (
    DWELL_SD,
    ENGAGED_MS,
    SLOTS,
    SURFACE_SHARE,
    VALUE_SD,
    MarketplaceParams,
    World,
    build_world,
    stream,
)
from recsys.datasets.text import content_hashes
from recsys.row_groups import ROWS
from recsys.stage import write_json

HISTORY = 20
POLICY_ID = "legacy"
DEVICES = ("mobile", "desktop", "tablet")
_DAY_US = 86_400_000_000
_BLOCK_HOURS = 6  # ads come and go between blocks; within one the choice of candidates is one matrix
_ROWS = 256  # requests of a block at a time: the work stays in the processor's cache
_utc = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Requests:
    """R ad requests in order of time.

    Attributes:
        user, surface: int64[R].
        ts: int64[R], microseconds since the start.
        candidates: int64[R, K], ad indices, ascending.
    """

    user: np.ndarray
    surface: np.ndarray
    ts: np.ndarray
    candidates: np.ndarray


@dataclass(frozen=True)
class Shown:
    """N impressions in order of (request, slot): indices and what the ad server logged."""

    request: np.ndarray
    slot: np.ndarray
    ad: np.ndarray
    propensity: np.ndarray
    price: np.ndarray


def simulate_dataset(params: dict[str, Any], seed: int, out: Path) -> dict[str, int]:
    """Write impressions.parquet, ads.parquet, dataset.json and truth/ into a folder.

    Args:
        params: fields of :class:`MarketplaceParams`; what is left out has its default.
        seed: the same parameters and seed give the same bytes.
        out: an existing folder; a stage's, so that it appears as a whole.

    Returns:
        Rows: ``{"impressions": N, "ads": A, "requests": R}``.

    Raises:
        InputError: an unknown or impossible parameter.
    """
    p = parse_model(MarketplaceParams, params, "simulate")
    world = build_world(p, seed)
    requests = draw_requests(p, world, seed)
    shown = serve(p, world, requests, seed)
    impressions = _impressions_table(p, world, requests, shown, seed)
    ads = _ads_table(p, world, seed)
    pq.write_table(validate(impressions, IMPRESSIONS), out / "impressions.parquet", compression="zstd",
                   row_group_size=ROWS)
    pq.write_table(validate(ads, ADS), out / "ads.parquet", compression="zstd")
    save_dataset_info(_info(p, seed), out)
    (out / "truth").mkdir()
    world.save(out / "truth" / "world.npz")
    write_json(out / "truth" / "params.json", p.model_dump(mode="json"))
    return {"impressions": impressions.num_rows, "ads": ads.num_rows, "requests": p.requests}


def _info(p: MarketplaceParams, seed: int) -> DatasetInfo:
    extra: dict[str, Any] = {"seed": seed, "days": p.days}
    return DatasetInfo(
        name="marketplace", source="simulated by recsys.datasets.simulate", licence="Apache-2.0",
        dense=("hour_sin", "hour_cos", "weekend", "account_age", "user_requests", "user_clicks"),
        sparse=("user_id", "ad_id", "advertiser_id", "category", "surface", "slot", "user_segment", "device"),
        sequence=("history",), ad_features=("advertiser_id", "category"),
        label={"click": Label(kind="binary", column="click"), "engage": Label(kind="binary", column="engaged"),
               "convert": Label(kind="binary", column="conversion")},
        text=("title", "body"), simulated=True, **extra,
    )


def draw_requests(p: MarketplaceParams, world: World, seed: int) -> Requests:
    """Who comes when, where, and which ads are candidates: partly aimed at the user, partly not."""
    rng = stream(seed, "requests")
    weight = 1.0 + 0.7 * np.cos(2 * np.pi * (np.arange(24) - 19.5) / 24)
    hours = rng.choice(24, size=p.requests, p=weight / weight.sum())
    day = rng.integers(p.days, size=p.requests)
    ts = np.sort(day * _DAY_US + hours * (_DAY_US // 24) + rng.integers(_DAY_US // 24, size=p.requests))
    user = rng.choice(p.users, size=p.requests, p=world.activity)
    surface = rng.choice(3, size=p.requests, p=SURFACE_SHARE)
    return Requests(user, surface, ts, _candidates(p, world, user, ts, seed))


def _candidates(p: MarketplaceParams, world: World, user: np.ndarray, ts: np.ndarray, seed: int) -> np.ndarray:
    """K different ads of those alive, by an exponential race: the K smallest of Exp(1) / weight."""
    rng = stream(seed, "candidates")
    # The targeting profile is the user's interest seen through heavy noise.
    profile = world.interest * rng.lognormal(0.0, 1.0, world.interest.shape).astype(np.float32)
    block = ts // (_BLOCK_HOURS * _DAY_US // 24)
    edges = np.searchsorted(block, np.arange(p.days * 24 // _BLOCK_HOURS + 1))
    chosen = np.empty((len(user), p.candidates), np.int64)
    for b, (low, high) in enumerate(pairwise(edges)):
        start = b * _BLOCK_HOURS / 24
        alive = np.flatnonzero((world.created <= start) & (world.ended >= start + _BLOCK_HOURS / 24))
        for at in range(low, high, _ROWS):
            rows = slice(at, min(at + _ROWS, high))
            weight = np.take(profile[user[rows]], world.subtopic[alive], axis=1)
            weight *= p.targeting / weight.sum(axis=1, keepdims=True)
            weight += (1 - p.targeting) / len(alive)
            race = rng.standard_exponential(weight.shape, dtype=np.float32)
            race /= weight
            first = np.argpartition(race, p.candidates - 1, axis=1)[:, :p.candidates]
            chosen[rows] = np.sort(alive[first], axis=1)
    return chosen


def logging_probabilities(p: MarketplaceParams, world: World, requests: Requests, rows: np.ndarray,
                          slots: int) -> tuple[np.ndarray, np.ndarray]:
    """The legacy server's Plackett-Luce weights and its exact marginal probability of each (slot, candidate).

    With probability ``exploration`` the order is uniform, else Plackett-Luce on
    ``exp((bid_exponent * log bid + legacy relevance) / temperature)``; so no marginal is below exploration / K.

    Returns:
        (weights float64[n, K], marginals float64[n, slots, K]) for the n requests ``rows``.
    """
    ads = requests.candidates[rows]
    score = p.bid_exponent * np.log(world.bid[ads]) + world.legacy[world.declared_segment[requests.user[rows]][:, None],
                                                                   ads]
    weights = np.exp((score - score.max(axis=1, keepdims=True)) / p.temperature)
    uniform = 1.0 / ads.shape[1]
    return weights, (1 - p.exploration) * slot_marginals(weights, slots) + p.exploration * uniform


def serve(p: MarketplaceParams, world: World, requests: Requests, seed: int) -> Shown:
    """Rank every request by the legacy policy and price every slot by GSP on the legacy server's own scores."""
    rng, parts = stream(seed, "serve"), []
    for surface, slots in enumerate(SLOTS):
        rows = np.flatnonzero(requests.surface == surface)
        if not len(rows):
            continue
        weights, marginals = logging_probabilities(p, world, requests, rows, slots)
        explore = rng.random(len(rows)) < p.exploration
        position = sample_slots(np.where(explore[:, None], 1.0, weights), slots, rng)
        ads = requests.candidates[rows]
        relevance = world.legacy[world.declared_segment[requests.user[rows]][:, None], ads]
        price = gsp_price(world.bid[ads], np.exp(relevance), slots, bid_exponent=p.bid_exponent, reserve=p.reserve)
        at, slot = np.arange(len(rows))[:, None], np.arange(slots)[None, :]
        parts.append((np.repeat(rows, slots), np.tile(np.arange(slots), len(rows)), ads[at, position].ravel(),
                      marginals[at, slot, position].ravel(), price[at, slot, position].ravel()))
    request, slot, ad, propensity, price = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((slot, request))
    return Shown(request[order], slot[order], ad[order], propensity[order], price[order])


def _hour(ts: np.ndarray) -> np.ndarray:
    hour: np.ndarray = (ts % _DAY_US) / (_DAY_US / 24)
    return hour


def _impressions_table(p: MarketplaceParams, world: World, requests: Requests, shown: Shown, seed: int) -> pa.Table:
    rng = stream(seed, "outcomes")
    r, n = shown.request, len(shown.request)
    user, surface, ts = requests.user[r], requests.surface[r], requests.ts[r]
    chance = world.outcomes(user, shown.ad, surface, shown.slot, _hour(ts))
    draw = rng.random((3, n))
    click = draw[0] < chance["click"]
    dwell = np.where(click, np.exp(rng.normal(chance["dwell_mu"], DWELL_SD)).round(), 0.0)
    conversion = click & (draw[1] < chance["convert"])
    value = np.where(conversion, chance["value"] * np.exp(rng.normal(-VALUE_SD**2 / 2, VALUE_SD, n)), 0.0).round(2)
    history, clicks_before = _history(user, ts // _DAY_US, shown.ad, click, p)
    hour_angle, day = 2 * np.pi * _hour(ts) / 24, ts // _DAY_US
    start = dt.date.fromisoformat(p.start)
    request_ids, ad_ids = identifiers("r", p.requests), identifiers("a", p.ads)
    request_id = request_ids.take(pa.array(r))
    lists = pa.ListArray.from_arrays(np.arange(0, requests.candidates.size + 1, p.candidates, dtype=np.int32),
                                     ad_ids.take(pa.array(requests.candidates.ravel())))
    return pa.table({
        "impression_id": pc.binary_join_element_wise(request_id, pa.array(shown.slot).cast(pa.string()), "-"),
        "request_id": request_id,
        "slot": pa.array(shown.slot, pa.int32()),
        "user_id": identifiers("u", p.users).take(pa.array(user)),
        "ts": _times(p, ts),
        "surface": pa.array(SURFACES).take(pa.array(surface)),
        "ad_id": ad_ids.take(pa.array(shown.ad)),
        "advertiser_id": identifiers("v", p.advertisers).take(pa.array(world.advertiser[shown.ad])),
        "candidates": lists.take(pa.array(r)),
        "propensity": shown.propensity,
        "policy_id": _constant(POLICY_ID, n),
        "bid": world.bid[shown.ad],
        "price_paid": np.where(click, shown.price, 0.0),
        "mechanism": _constant("gsp", n),
        "currency": _constant("USD", n),
        "click": pa.array(click.astype(np.int8)),
        "dwell_ms": dwell,
        "engaged": pa.array((dwell >= ENGAGED_MS).astype(np.int8)),
        "conversion": pa.array(conversion.astype(np.int8)),
        "value": value,
        "hide": pa.array((~click & (draw[2] < chance["hide"])).astype(np.int8)),
        "category": pa.array(vocabulary().categories).take(pa.array(world.declared_category[shown.ad])),
        "user_segment": identifiers("s", p.segments).take(pa.array(world.declared_segment[user])),
        "device": pa.array(DEVICES).take(pa.array(world.device[user])),
        "history": history,
        "hour_sin": np.sin(hour_angle).astype(np.float32),
        "hour_cos": np.cos(hour_angle).astype(np.float32),
        "weekend": ((start.weekday() + day) % 7 >= 5).astype(np.float32),
        "account_age": np.log1p(world.signup_days[user] + day).astype(np.float32),
        "user_requests": np.log1p(_before(requests.user, requests.ts // _DAY_US, user, day, p)).astype(np.float32),
        "user_clicks": np.log1p(clicks_before).astype(np.float32),
    })


def _before(event_user: np.ndarray, event_day: np.ndarray, user: np.ndarray, day: np.ndarray,
            p: MarketplaceParams) -> np.ndarray:
    """How many events the user had on days before ``day``: int64, elementwise over (user, day)."""
    events = np.sort(event_user * (p.days + 1) + event_day)
    count: np.ndarray = (np.searchsorted(events, user * (p.days + 1) + day)
                         - np.searchsorted(events, user * (p.days + 1)))
    return count


def _history(user: np.ndarray, day: np.ndarray, ad: np.ndarray, click: np.ndarray,
             p: MarketplaceParams) -> tuple[pa.ListArray, np.ndarray]:
    """The last ads each user clicked on earlier days, oldest first, and how many there were in all.

    As of the day before, as a nightly feature job would have it: nothing of the same day can leak.
    """
    who, when, what = user[click], day[click], ad[click]
    order = np.argsort(who, kind="stable")  # impressions are in order of time
    key, what = (who * (p.days + 1) + when)[order], what[order]
    end = np.searchsorted(key, user * (p.days + 1) + day)
    count = end - np.searchsorted(key, user * (p.days + 1))
    length = np.minimum(count, HISTORY)
    offsets = np.concatenate([[0], np.cumsum(length)])
    at = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length) + np.repeat(end - length, length)
    values = identifiers("a", p.ads).take(pa.array(what[at]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values), count


def _ads_table(p: MarketplaceParams, world: World, seed: int) -> pa.Table:
    rng = stream(seed, "text")
    brands = brand_names(p.advertisers, rng)
    late = np.where(world.created > 0, 0.05 + (p.late_vocabulary - 0.05) * world.created / p.days, 0.05)
    titles, bodies = write_creatives(world.subtopic, world.second, world.styles,
                                     [brands[a] for a in world.advertiser], np.clip(late, 0.0, 1.0), rng)
    title, body = pa.array(titles), pa.array(bodies)
    return pa.table({
        "ad_id": identifiers("a", p.ads),
        "advertiser_id": identifiers("v", p.advertisers).take(pa.array(world.advertiser)),
        "title": title,
        "body": body,
        "category": pa.array(vocabulary().categories).take(pa.array(world.declared_category)),
        "bid": world.bid,
        "created": _times(p, (world.created * _DAY_US).astype(np.int64)),
        "content_hash": content_hashes(title, body),
    })


def _constant(value: str, n: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(n, np.int64)))


def _times(p: MarketplaceParams, ts: np.ndarray) -> pa.Array:
    epoch = int(dt.datetime.fromisoformat(p.start).replace(tzinfo=dt.UTC).timestamp()) * 1_000_000
    return pa.array(epoch + ts, pa.int64()).cast(_utc)
