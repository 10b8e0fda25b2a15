"""The ads that can be shown: their features, bids and budgets, and which of them are eligible for a request."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.contracts import ADS, Contract, read_parquet
from recsys.errors import InputError
from recsys.retrieval.filters import Where, rows_where

_CONTRACT = Contract("served ads", tuple(ADS[n] for n in ("ad_id", "advertiser_id", "bid", "budget")))
_PLACE = re.compile(r"\{(\w+)\}")
_VALUE = re.compile(r"[\w .:-]{1,64}")  # no comma and no operator: a value stays one value of one term
_CACHED_FILTERS = 256


class AdTable:
    """One version of the ads; immutable, read from several threads.

    Attributes:
        table: the ads; row i is ad i.
        columns: its columns' names.
        ids: of the ads, by row.
        bid: float64[A], currency per click; None where the table has no bids.
        budget: float64[A], currency a period; infinite where there is none.
        file: where it was read.

    Raises:
        InputError: unreadable, an id that is null or there twice, a bid or budget that is no amount, or a filter that
            does not fit the columns.
    """

    def __init__(self, path: str | Path, filters: Sequence[str] = (), reserve: float = 0.0) -> None:
        self.file, self._filters = path, tuple(filters)
        self.table = read_parquet(path, _CONTRACT).combine_chunks()
        self.columns = frozenset(self.table.column_names)
        self.ids: list[str] = self.table["ad_id"].to_pylist()
        ids = self.ids
        self._rows = {ad: row for row, ad in enumerate(ids)}
        if len(self._rows) < len(ids):
            row = next(r for r, ad in enumerate(ids) if self._rows[ad] != r)
            raise InputError("ad twice", file=path, column="ad_id", row=row, got=ids[row], expected="one row per ad")
        self.bid = self._numbers("bid", 0.0)
        budget = self._numbers("budget", np.inf)
        self.budget = np.full(len(ids), np.inf) if budget is None else budget
        # A bid below the reserve takes no part in the auction (recsys.auction.run_auctions).
        self._open = np.ones(len(ids), bool) if self.bid is None else (self.bid >= reserve) & (self.bid > 0)
        self._by_bid = np.arange(len(ids)) if self.bid is None else np.argsort(-self.bid, kind="stable")
        self._masks: dict[tuple[str, ...], np.ndarray] = {}
        self._lock = threading.Lock()
        for text in self._filters:
            if not _PLACE.search(text):
                rows_where(self.table, text)

    def _numbers(self, name: str, missing: float) -> np.ndarray | None:
        if name not in self.columns:
            return None
        return self.table[name].fill_null(missing).to_numpy().astype(np.float64)

    def __len__(self) -> int:
        return self.table.num_rows

    def rows_of(self, ads: Sequence[str]) -> np.ndarray:
        """Rows of ad ids, int64; -1 for an ad that the table does not have."""
        return np.array([self._rows.get(ad, -1) for ad in ads], np.int64)

    def where(self, values: Mapping[str, Any], more: Sequence[str] = ()) -> list[str]:
        """The eligibility filters of a request.

        Args:
            values: what stands for the placeholders: ``surface``, and texts of the request's context.
            more: the request's own filters.

        Raises:
            InputError: a placeholder without a value, or a value that is not a plain word.
        """
        def fill(match: re.Match[str]) -> str:
            value = values.get(match.group(1))
            if not isinstance(value, str) or not _VALUE.fullmatch(value):
                raise InputError("a filter needs this value", file="request", column=match.group(1), got=value,
                                 expected="letters, digits and . : - only")
            return value

        return [_PLACE.sub(fill, text) for text in self._filters] + list(more)

    def eligible(self, where: Sequence[str]) -> np.ndarray:
        """Which ads may be shown: bool [A]; they bid at least the reserve and pass the filters.

        Raises:
            InputError: a malformed filter, an unknown column, or a value that its column cannot hold.
        """
        key = tuple(where)
        with self._lock:
            if (mask := self._masks.get(key)) is not None:
                return mask
        mask = self._open & (rows_where(self.table, list(where)) if where else True)
        with self._lock:
            if len(self._masks) >= _CACHED_FILTERS:
                self._masks.clear()
            self._masks[key] = mask
        return mask

    def best(self, mask: np.ndarray, k: int) -> np.ndarray:
        """At most ``k`` of the ads of a mask: the highest bids, ties in the table's order; int64, ascending rows."""
        return np.sort(self._by_bid[mask[self._by_bid]][:k])


def as_filter(where: Sequence[str]) -> Where:
    """The same filters for an index (recsys.retrieval)."""
    return list(where) or None
