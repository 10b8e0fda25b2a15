"""The simulator's truth: the exact value of any policy, as a sum over the hidden model.

>>> market = Marketplace.load("work/marketplace/truth")          # doctest: +SKIP
>>> market.true_outcomes(impressions, policy)["click_rate"]       # doctest: +SKIP
0.0913
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

from recsys.contracts import POLICY, SURFACES, validate
from recsys.datasets.marketplace_world import SLOTS, MarketplaceParams, World, load_params
from recsys.errors import InputError

_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Marketplace:
    """The hidden world of a simulated dataset; see :meth:`load`."""

    params: MarketplaceParams
    world: World

    @classmethod
    def load(cls, folder: str | Path) -> Marketplace:
        """Read ``truth/`` (or the dataset folder that holds it).

        Raises:
            InputError: the folder holds no simulator state, or a damaged one.
        """
        path = Path(folder)
        path = path / "truth" if (path / "truth").is_dir() else path
        return cls(load_params(path), World.load(path / "world.npz"))

    @cached_property
    def _ad_ids(self) -> pa.Array:
        return identifiers("a", self.params.ads)

    def _index(self, ids: Any, known: pa.Array, column: str) -> np.ndarray:
        at = pc.index_in(ids, value_set=known)
        if at.null_count:
            row = int(pc.index(pc.is_null(at), True).as_py())
            raise InputError("not of this simulated marketplace", column=column, row=row, got=ids[row].as_py(),
                             expected=f"an id like {known[0].as_py()}")
        index: np.ndarray = at.to_numpy()
        return index

    def _rows(self, impressions: pa.Table, rows: pa.Table) -> dict[str, np.ndarray]:
        """Indices that the hidden model wants, for (request_id, slot, ad_id) rows of the impressions' requests."""
        at = self._index(rows["request_id"], impressions["request_id"].combine_chunks().unique(), "request_id")
        first = _first_rows(impressions["request_id"])
        request = impressions.select(["user_id", "surface", "ts"]).take(pa.array(first))
        user = self._index(request["user_id"], identifiers("u", self.params.users), "user_id")
        surface = self._index(request["surface"], pa.array(SURFACES), "surface")
        hour = (request["ts"].cast(pa.int64()).to_numpy() % (24 * _HOUR_US)) / _HOUR_US
        slot = rows["slot"].to_numpy()
        beyond = slot >= np.take(SLOTS, surface[at])
        if beyond.any():
            row = int(np.argmax(beyond))
            raise InputError("no such slot on this surface", column="slot", row=row, got=int(slot[row]),
                             expected=f"below {SLOTS[surface[at][row]]} on {SURFACES[surface[at][row]]}")
        return {"user": user[at], "ad": self._index(rows["ad_id"], self._ad_ids, "ad_id"), "surface": surface[at],
                "slot": slot, "hour": hour[at]}

    def click_probability(self, impressions: pa.Table, rows: pa.Table) -> np.ndarray:
        """True P(click) of showing an ad in a slot of a logged request.

        Args:
            impressions: rows of the log that say user, surface and time of every request (any rows of it).
            rows: request_id, slot, ad_id; any number of rows, any ads of the marketplace.

        Returns:
            float64[rows].

        Raises:
            InputError: a request, ad or user that the marketplace or the log does not have, or no such slot.
        """
        click: np.ndarray = self.world.outcomes(**self._rows(impressions, rows))["click"]
        return click

    def true_outcomes(self, impressions: pa.Table, policy: pa.Table) -> dict[str, float]:
        """Exact expected outcomes per impression of a policy on logged requests.

        The click model has no effects between ads shown together, so the marginal probabilities of
        (request, slot, ad) decide all of it: E = sum p * outcome / sum p.

        Args:
            impressions: as in :meth:`click_probability`.
            policy: POLICY; (request, slot) pairs that it does not name do not count.

        Returns:
            ``click_rate``, ``engagement_rate`` (clicked and dwelt at least ENGAGED_MS), ``conversion_rate``,
            ``hide_rate``: per impression; ``value_per_mille`` (USD of conversions) and, where the policy has
            ``price_per_click``, ``revenue_per_mille`` (USD of clicks) and, where it has ``bid``,
            ``welfare_per_mille`` (the same at the bids): per 1,000 impressions;
            ``impressions``: sum of probabilities.
        """
        policy = validate(policy, POLICY, "policy")
        chance = self.world.outcomes(**self._rows(impressions, policy))
        p = policy["probability"].to_numpy()
        shown = float(p.sum())
        if shown <= 0:
            raise InputError("the policy shows nothing", file="policy", column="probability", got=shown,
                             expected="probabilities that sum to more than 0")
        click = p * chance["click"]
        convert = click * chance["convert"]
        out = {"click_rate": click.sum(), "engagement_rate": (click * chance["engage"]).sum(),
               "conversion_rate": convert.sum(), "hide_rate": (p * (1 - chance["click"]) * chance["hide"]).sum(),
               "value_per_mille": 1000 * (convert * chance["value"]).sum()}
        if "price_per_click" in policy.column_names:
            out["revenue_per_mille"] = 1000 * (click * policy["price_per_click"].to_numpy()).sum()
        if "bid" in policy.column_names:
            out["welfare_per_mille"] = 1000 * (click * policy["bid"].to_numpy()).sum()
        return {name: float(total) / shown for name, total in out.items()} | {"impressions": shown}

    def reference_policy(self, impressions: pa.Table, knows: Literal["nothing", "meaning", "everything"],
                         seen: set[str] | None = None) -> pa.Table:
        """A policy that knows part of the truth: the floor and the ceiling of what a ranker can reach.

        Args:
            impressions: the log's rows, with ``candidates``.
            knows: ``nothing`` shows candidates uniformly; ``meaning`` ranks by what the text, the user and the
                surface say; ``everything`` adds the ad's own quality: the oracle of click rate.
            seen: where given, only these ads are known; the others get the mean logit of the known ones.

        Returns:
            POLICY over every (request, slot, candidate); slots are filled in falling order of the score, which is
            optimal because examination falls with the slot.
        """
        first = _first_rows(impressions["request_id"])
        requests = impressions.take(pa.array(first))
        lists = requests["candidates"].combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = pa.concat_arrays(lists.chunks)
        k = self.params.candidates
        ids, surface = lists.flatten(), self._index(requests["surface"], pa.array(SURFACES), "surface")
        ad = self._index(ids, self._ad_ids, "candidates").reshape(-1, k)
        rank = np.argsort(np.argsort(-self._scores(requests, ad, surface, knows, seen), axis=1), axis=1)
        slots = np.take(SLOTS, surface)
        request = np.repeat(np.arange(len(slots)), slots * k)
        at = np.arange(len(request)) - np.repeat(np.cumsum(slots * k) - slots * k, slots * k)
        slot, candidate = at // k, at % k
        probability = np.full(len(request), 1.0 / k) if knows == "nothing" else (
            rank[request, candidate] == slot).astype(np.float64)
        return pa.table({"request_id": requests["request_id"].combine_chunks().take(pa.array(request)),
                         "slot": pa.array(slot, pa.int32()), "ad_id": ids.take(pa.array(request * k + candidate)),
                         "probability": probability})

    def _scores(self, requests: pa.Table, ad: np.ndarray, surface: np.ndarray, knows: str,
                seen: set[str] | None) -> np.ndarray:
        user = self._index(requests["user_id"], identifiers("u", self.params.users), "user_id")
        wide = np.broadcast_to(np.arange(len(user))[:, None], ad.shape)
        score = self.world.meaning_logit(user[wide], ad, surface[wide], np.zeros(ad.shape))
        if knows == "everything":
            score = score + self.world.quality[ad]
        if seen is None:
            return score
        known = np.isin(np.arange(self.params.ads), self._index(pa.array(sorted(seen)), self._ad_ids, "seen"))[ad]
        rate = float(expit(score[known]).mean()) if known.any() else 0.5
        filled: np.ndarray = np.where(known, score, np.log(rate / (1 - rate)))
        return filled


def identifiers(prefix: str, count: int) -> pa.Array:
    """Ids of ``count`` things, zero-padded so that they sort in order: a000, a001, ..."""
    width = len(str(count - 1))
    return pa.array([f"{prefix}{i:0{width}d}" for i in range(count)])


def _first_rows(request_id: pa.ChunkedArray) -> np.ndarray:
    """Row of the first appearance of every distinct request, in order of appearance."""
    codes = request_id.combine_chunks().dictionary_encode()
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.combine_chunks()
    rows: np.ndarray = np.unique(codes.indices.to_numpy(), return_index=True)[1]
    return rows
