"""Simulated users who ask a service for ads and react to what they are shown: an experiment whose truth is known.

    traffic = Traffic("work/marketplace", requests=20_000, seed=7)
    body = traffic.request(0)                         # what POST /v1/rank takes
    events = traffic.events(0, [(0, "a0017")])        # what came of (slot, ad): what POST /v1/feedback takes

Users, ads and clicks are those of a simulated dataset (:mod:`.simulate`); the requests are new draws from its days.
What a user does depends on (seed, request, slot, ad) alone, not on the order of calls.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.contracts import SURFACES, read_parquet
from recsys.datasets.marketplace_truth import Marketplace, identifiers
from recsys.datasets.marketplace_world import DWELL_SD, ENGAGED_MS, SLOTS, VALUE_SD
from recsys.datasets.simulate import draw_requests

CONTEXT = {"hour_sin": "number", "hour_cos": "number", "weekend": "number"}
"""Columns of a request's context, and their types."""
USER_FEATURES = ("user_segment", "device", "history", "account_age", "user_requests", "user_clicks")
_HOUR_US = 3_600_000_000
_SECOND_US = 1_000_000


class Traffic:
    """New requests of a simulated marketplace.

    Args:
        dataset: folder of a simulated dataset, with ``truth/``.
        requests: how many.
        seed: of requests and reactions; another than the dataset's.

    Raises:
        InputError: not a simulated dataset.
    """

    def __init__(self, dataset: str | Path, requests: int, seed: int) -> None:
        self._folder, self._seed = Path(dataset), seed
        self._market = Marketplace.load(dataset)
        p = self._market.params.model_copy(update={"requests": requests})
        self._drawn = draw_requests(p, self._market.world, seed)
        self._ads, self._users = identifiers("a", p.ads).to_pylist(), identifiers("u", p.users).to_pylist()
        self._rows = {ad: i for i, ad in enumerate(self._ads)}
        self._start = dt.datetime.fromisoformat(p.start).replace(tzinfo=dt.UTC)

    def __len__(self) -> int:
        return len(self._drawn.user)

    @cached_property
    def users(self) -> pa.Table:
        """``user_id`` and features of every user as the dataset's log last had them: a snapshot for serving."""
        log = read_parquet(self._folder / "impressions.parquet", columns=["user_id", *USER_FEATURES])
        codes = log["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        last = np.zeros(codes.max() + 1, np.int64)
        last[codes] = np.arange(len(codes))  # rows are in order of time, so the latest one stays
        return log.take(pa.array(np.sort(last)))

    def request(self, i: int) -> dict[str, Any]:
        """The body of request number ``i``: its own candidates, as the marketplace's targeting chose them."""
        d, ts = self._drawn, int(self._drawn.ts[i])
        moment = self._start + dt.timedelta(microseconds=ts)
        angle = 2 * np.pi * (ts % (24 * _HOUR_US)) / (24 * _HOUR_US)
        surface = int(d.surface[i])
        return {"request_id": f"q{i}", "user_id": self._users[d.user[i]], "surface": SURFACES[surface],
                "k": SLOTS[surface], "ts": moment.isoformat(), "candidates": [self._ads[a] for a in d.candidates[i]],
                "context": {"hour_sin": float(np.float32(np.sin(angle))), "hour_cos": float(np.float32(np.cos(angle))),
                            "weekend": float(moment.weekday() >= 5)}}

    def events(self, i: int, shown: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
        """What the user of request ``i`` does with the ads shown in its slots: events without their impression_id.

        Returns:
            ``slot``, ``kind``, ``ts`` and, by kind, ``dwell_ms`` or ``value``.
        """
        found: list[dict[str, Any]] = []
        for slot, ad in shown:
            index, user, surface = self._rows[ad], self._drawn.user[i], self._drawn.surface[i]
            hour = np.array([(self._drawn.ts[i] % (24 * _HOUR_US)) / _HOUR_US])
            chance = {n: float(np.ravel(v)[0]) for n, v in self._market.world.outcomes(
                np.array([user]), np.array([index]), np.array([surface]), np.array([slot]), hour).items()}
            rng = np.random.default_rng([self._seed, i, slot, index])
            if rng.random() >= chance["click"]:
                if rng.random() < chance["hide"]:
                    found.append(self._event(i, slot, "hide", 1.0))
                continue
            dwell = float(np.exp(rng.normal(chance["dwell_mu"], DWELL_SD)).round())
            found.append(self._event(i, slot, "click", 2.0, dwell_ms=dwell))
            if dwell >= ENGAGED_MS:
                found.append(self._event(i, slot, "engage", 2.0 + dwell / 1000))
            if rng.random() < chance["convert"]:
                value = chance["value"] * np.exp(rng.normal(-VALUE_SD**2 / 2, VALUE_SD))
                late = 3.0 + rng.exponential(3600.0)
                found.append(self._event(i, slot, "convert", late, value=float(value.round(2))))
        return found

    def _event(self, i: int, slot: int, kind: str, seconds: float, **more: float) -> dict[str, Any]:
        after = dt.timedelta(microseconds=int(self._drawn.ts[i] + seconds * _SECOND_US))
        return {"slot": slot, "kind": kind, "ts": (self._start + after).isoformat(), **more}

    def true_lift(self, log: pa.Table, baseline: pa.Table, treatment: pa.Table) -> float:
        """The relative lift in click rate of one policy over another on the same requests, exactly.

        Args:
            log: impressions of the requests.
            baseline: POLICY over their (request, slot, candidate).
            treatment: likewise.
        """
        old, new = (self._market.true_outcomes(log, policy)["click_rate"] for policy in (baseline, treatment))
        return new / old - 1.0

    def true_click_rate(self, log: pa.Table, policy: pa.Table) -> float:
        """Exact click rate of a policy on a log's requests."""
        return self._market.true_outcomes(log, policy)["click_rate"]
