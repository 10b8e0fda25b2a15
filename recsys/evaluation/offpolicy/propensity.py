"""Propensities must be logged: missing, estimated and reconstructed ones are refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import chdtr, gammaln

from recsys.errors import Refused

CHANCE_EQUAL = 1e-2  # chance that honest frequencies equal round propensities exactly, below which they were counted
CHANCE_NEAR = 1e-6  # chance that honest frequencies come as near as rounded counts do
KEYS = (("ad_id",), ("ad_id", "slot"), ("ad_id", "surface"))
LOG_IT = "log the probability at the moment of choosing"


def require_logged(table: pa.Table) -> None:
    """Raise :class:`Refused` unless every row has a propensity that calls itself logged."""
    if "propensity" not in table.column_names:
        raise Refused("column propensity is missing: off-policy evaluation needs the probability that the logging "
                      f"policy gave to the ad it showed, and it is never reconstructed; {LOG_IT}")
    column = table.column("propensity")
    if column.null_count:
        raise Refused(f"{column.null_count:,} of {len(column):,} rows have no logged propensity: off-policy evaluation "
                      "needs the probability that the logging policy wrote down, and it is never reconstructed; "
                      f"leave those rows out only if they are missing at random, or {LOG_IT}")
    if "propensity_source" in table.column_names:
        sources = set(pc.unique(table.column("propensity_source")).to_pylist())
        if sources != {"logged"}:
            raise Refused(f"propensity_source is {sorted(map(str, sources))}: only logged ones carry an estimate; "
                          f"{LOG_IT}")


class Cells:
    """Counts and propensities of every ad (x slot, x surface), added up over batches of a log."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, ...], list[pa.Table]] = {}

    def add(self, table: pa.Table) -> None:
        """Add a batch with ``ad_id``, ``propensity`` and, where the log has them, ``slot`` and ``surface``."""
        for keys in KEYS:
            if all(k in table.column_names for k in keys):
                parts = self._parts.setdefault(keys, [])
                parts.append(_grouped(table.select([*keys, "propensity"]), keys, "propensity", None))
                if len(parts) >= 32:  # many batches of the same ads: keep what is held small
                    parts[:] = [self._merged(keys)]

    def _merged(self, keys: tuple[str, ...]) -> pa.Table:
        table = pa.concat_tables(self._parts[keys])
        return _grouped(table, keys, "low", "high", "count")

    @property
    def ads(self) -> pa.Array:
        """Distinct shown ads."""
        column = pa.concat_tables(self._parts["ad_id",]).column("ad_id")
        return pc.unique(column)

    @property
    def constant(self) -> bool:
        """Is the propensity the same in every row (a uniformly random log)?"""
        low, high = self._range()
        return high - low < 1e-9

    def _range(self) -> tuple[float, float]:
        table = self._merged(("ad_id",))
        return pc.min(table.column("low")).as_py(), pc.max(table.column("high")).as_py()

    def require_not_reconstructed(self) -> None:
        """Raise :class:`Refused` where propensities are the log's own frequencies.

        Frequencies of a random log differ from the probabilities behind them: the chi-square distance between the
        two is about the number of ads. A distance that is smaller than chance allows, or equality to the last
        digit with fractions that nobody would have set, means that the log was counted.
        """
        rows = pc.sum(self._merged(("ad_id",)).column("count")).as_py()
        if rows < 100 or self.constant:
            return
        for keys in self._parts:
            if _are_frequencies(self._merged(keys), keys):
                raise Refused("propensities equal the frequencies of " + " x ".join(keys) + " in this log: they were "
                              f"reconstructed from it, not logged by the policy that chose; {LOG_IT}")


def _grouped(table: pa.Table, keys: tuple[str, ...], low: str, high: str | None, count: str | None = None) -> pa.Table:
    wanted = [(low, "min"), (high or low, "max"), (count or low, "sum" if count else "count")]
    made = table.group_by(list(keys)).aggregate(wanted)
    names = {f"{low}_min": "low", f"{high or low}_max": "high",
             f"{count}_sum" if count else f"{low}_count": "count"}
    return made.rename_columns([names.get(n, n) for n in made.column_names]).select([*keys, "low", "high", "count"])


def _are_frequencies(cells: pa.Table, keys: tuple[str, ...]) -> bool:
    low, high, count = (cells.column(n).to_numpy().astype(np.float64) for n in ("low", "high", "count"))
    if (high - low > 1e-9).any() or len(low) < 2:
        return False  # the propensity of an ad varies: it depends on the request
    group = np.zeros(len(low), dtype=np.int64)
    if len(keys) > 1:
        group = cells.column(keys[1]).combine_chunks().dictionary_encode("encode").indices.to_numpy()
    total = np.bincount(group, count)[group]
    if not np.allclose(np.bincount(group, low), 1.0, atol=1e-2):
        return False  # some ads were never shown, or these are no distributions over ads
    if np.allclose(low, count / total, rtol=1e-9, atol=0.0):
        return any(not _plain(p) for p in low) or _chance_of(low, count, group) < CHANCE_EQUAL
    distance = float(((count - total * low) ** 2 / (total * low)).sum())
    return float(chdtr(max(len(low) - int(group.max()) - 1, 1), distance)) < CHANCE_NEAR


def _plain(p: float) -> bool:
    """Could somebody have set this probability: a few decimals, or a small fraction?"""
    return abs(float(Fraction(p).limit_denominator(1000)) - p) < 1e-12


def _chance_of(p: NDArray[np.float64], count: NDArray[np.float64], group: NDArray[np.int64]) -> float:
    """Multinomial probability of these very counts."""
    size = np.bincount(group, count)
    return float(np.exp(min(gammaln(size + 1).sum() - gammaln(count + 1).sum() + (count * np.log(p)).sum(), 0.0)))
