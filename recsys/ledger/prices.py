"""Price cards: what an hour of a machine or a million tokens costs, where that was read, and which rows to distrust.

Every public price feed has poison rows. A row that breaks a rule below stays on the card, carries
the reason, and prices nothing: asking for it is :class:`recsys.errors.Refused`.

1. The host is billed apart from the accelerator: the two are summed; a missing host price is a reason.
2. The spot price equals the list price to the cent: the feed fell back to the list price.
3. The spot price is exactly a tenth of the list price: a placeholder of feeds, not a market price.
4. The list price is blank.
5. The spot price is above the list price.
6. A price is zero: zero means unknown.
"""

from __future__ import annotations

import datetime as dt
import difflib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from recsys.config import Strict, find_resource, parse_model, read_yaml
from recsys.errors import InputError, Refused

Kind = Literal["machine", "embedding", "generation", "storage"]
UNITS = {"machine": "hour", "embedding": "million tokens", "generation": "million tokens", "storage": "GB-month"}


class Spot(Strict):
    """Lowest and highest spot price over the zones of the region, US dollars an hour."""

    low: float = Field(ge=0)
    high: float = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Spot:
        if self.low > self.high:
            raise ValueError(f"low <= high, not {self.low} > {self.high}")
        return self


class PriceRow(Strict):
    """One thing that can be bought: a machine by the hour, input tokens by the million, storage by the GB and month.

    ``on_demand`` is the list price of the thing without ``host``; use :attr:`list_price`, which adds the host.
    """

    id: str
    kind: Kind
    provider: str
    service: str
    sku: str
    region: str = "global"
    unit: Literal["hour", "million tokens", "GB-month"]
    on_demand: float | None = Field(None, ge=0, allow_inf_nan=False)
    spot: Spot | None = None
    host: float | None = Field(None, ge=0, description="price of the host, where it is billed apart")
    host_included: bool = True
    accelerator: str | None = None
    accelerators: int = Field(0, ge=0)
    vcpus: int | None = Field(None, ge=1)
    memory_gib: float | None = Field(None, gt=0)
    source: str
    as_of: str = ""
    quarantined: str | None = Field(None, description="a reason given by hand")
    note: str = ""

    @property
    def list_price(self) -> float | None:
        """List price of the whole, host added where it is billed apart; None where a part is missing."""
        if self.on_demand is None:
            return None
        if self.host_included:
            return self.on_demand
        return None if self.host is None else self.on_demand + self.host

    @property
    def price_range(self) -> tuple[float, float]:
        """Lowest spot price (or the list price where there is none) and the list price; only of a usable row."""
        if self.list_price is None:
            raise Refused(f"price row {self.id!r} has no list price")
        return (self.list_price if self.spot is None else self.spot.low), self.list_price

    @property
    def dated(self) -> bool:
        """True where ``as_of`` is a day; some sources do not say when they read a price."""
        try:
            dt.date.fromisoformat(self.as_of)
        except ValueError:
            return False
        return True

    def reasons(self) -> list[str]:
        """Why the row must not price anything; empty for a usable row."""
        found = [self.quarantined] if self.quarantined else []
        if not self.host_included and self.host is None:
            found.append("host and accelerator are billed apart and the host's price is missing")
        if self.on_demand is None:
            found.append("the list price is blank")
        prices = [self.on_demand, self.host, *((self.spot.low, self.spot.high) if self.spot else ())]
        if any(p == 0 for p in prices):
            found.append("a price is zero, which means unknown")
        if self.spot is not None and self.list_price:
            found += _spot_reasons(self.spot, self.list_price)
        return found


def _spot_reasons(spot: Spot, listed: float) -> list[str]:
    # "To the cent" would swallow real spot prices of machines that cost a few cents: half a per cent there.
    same, found = min(0.005, 0.005 * listed), []
    if spot.high - listed >= same:
        found.append("the spot price is above the list price")
    elif any(abs(p - listed) < same for p in (spot.low, spot.high)):
        found.append("the spot price equals the list price to the cent")
    if any(p > 0 and abs(p - listed / 10) <= 5e-5 for p in (spot.low, spot.high)):  # feeds round to four decimals
        found.append("the spot price is exactly a tenth of the list price")
    return found


class Accelerator(Strict):
    """What an accelerator can do, to turn FLOPs into hours of it."""

    peak_flops: float = Field(gt=0, description="dense bfloat16 FLOP a second, from the data sheet")
    utilisation: float = Field(gt=0, le=1, description="share of the peak that is assumed to be reached")
    source: str


class PriceCard(Strict):
    """A dated set of price rows in one currency."""

    name: str
    as_of: str
    currency: Literal["USD"] = "USD"
    sources: dict[str, str] = Field(default_factory=dict, description="short name used in rows -> full citation")
    accelerators: dict[str, Accelerator] = Field(default_factory=dict, description="by the rows' accelerator")
    rows: tuple[PriceRow, ...]

    @model_validator(mode="after")
    def _complete(self) -> PriceCard:
        seen: set[str] = set()
        for row in self.rows:
            if row.id in seen:
                raise ValueError(f"unique row ids, but {row.id!r} stands twice")
            seen.add(row.id)
            if row.source not in self.sources:
                raise ValueError(f"row {row.id!r}: source one of {sorted(self.sources)}, not {row.source!r}")
            if row.unit != UNITS[row.kind]:
                raise ValueError(f"row {row.id!r}: machines priced by the hour, models by the million tokens, storage "
                                 "by the GB-month")
        for name, accelerator in self.accelerators.items():
            if accelerator.source not in self.sources:
                raise ValueError(f"accelerator {name!r}: source one of {sorted(self.sources)}")
        return self

    def find(self, row_id: str) -> PriceRow:
        """The row of that id, quarantined or not.

        Raises:
            InputError: no such row; the nearest ids are named.
        """
        for row in self.rows:
            if row.id == row_id:
                return row
        ids = [r.id for r in self.rows]
        near = difflib.get_close_matches(row_id, ids, 3) or ids
        raise InputError("no such price row", file=f"price card {self.name}", got=row_id, expected=f"one of {near}")

    def get(self, row_id: str, kind: Kind | None = None) -> PriceRow:
        """The row of that id, fit to price something of that kind.

        Raises:
            InputError: no such row, or a row of another kind.
            Refused: the row is quarantined; the message says why and what to do.
        """
        row = self.find(row_id)
        if kind is not None and row.kind != kind:
            raise InputError("price row of another kind", file=f"price card {self.name}", column=row_id, got=row.kind,
                             expected=f"a row of kind {kind}: {[r.id for r in self.rows if r.kind == kind][:6]}")
        if reasons := row.reasons():
            others = [r.id for r in self.usable(row.kind) if r.accelerator == row.accelerator] or \
                     [r.id for r in self.usable(row.kind)]
            raise Refused(f"price row {row_id!r} of card {self.name} is quarantined ({'; '.join(reasons)}): mend the "
                          f"row in a copy of the card with a cited price, or use one of {others[:4]}")
        return row

    def storage_beside(self, machine: PriceRow, named: str | None = None) -> PriceRow | None:
        """The named storage row, or the first usable one of the machine's provider; None where the card has none.

        Raises:
            InputError: the named row is not there, or prices something else. Refused: it is quarantined.
        """
        if named is not None:
            return self.get(named, "storage")
        return next((r for r in self.usable("storage") if r.provider == machine.provider), None)

    def usable(self, kind: Kind | None = None) -> list[PriceRow]:
        """Rows without a reason for distrust, of one kind or all."""
        return [r for r in self.rows if (kind is None or r.kind == kind) and not r.reasons()]

    def quarantined(self) -> dict[str, list[str]]:
        """Id of every quarantined row -> its reasons."""
        return {r.id: reasons for r in self.rows if (reasons := r.reasons())}

    def token_price_range(self, kind: Kind = "embedding") -> tuple[float, float] | None:
        """Lowest and highest usable list price of a million tokens, or None where the card has none."""
        prices = [p for r in self.usable(kind) if (p := r.list_price) is not None]
        return (min(prices), max(prices)) if prices else None

    def citation(self, row: PriceRow) -> str:
        """The full words of a row's source."""
        return self.sources[row.source]


@lru_cache(maxsize=8)
def _read(path: Path, mtime_ns: int) -> PriceCard:
    value = read_yaml(path)
    as_of = str(value.get("as_of", ""))
    for row in value.get("rows") or []:
        if isinstance(row, dict):
            row.setdefault("as_of", as_of)
    return parse_model(PriceCard, _plain(value), path)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    # YAML reads a bare 2026-11-23 as a date; the card's dates are text.
    return {k: str(v) if k in ("name", "as_of") else v for k, v in value.items()}


def load_card(name: str) -> PriceCard:
    """Read and check a price card.

    Args:
        name: a path, or the name of a card shipped in ``data/prices/``.

    Raises:
        InputError: no such card (the shipped ones are named), malformed YAML, unknown key, negative price,
            a row without a known source.
    """
    path = Path(name) if Path(name).is_file() else find_resource("data", f"prices/{name}")
    return _read(path.resolve(), path.stat().st_mtime_ns)
