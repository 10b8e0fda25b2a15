"""Propensities must be logged: missing, estimated, reconstructed, rounded and wrong ones are refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import chdtr, gammaln, ndtr

from recsys.contracts import IMPRESSIONS
from recsys.errors import Refused

CHANCE_EQUAL = 1e-2  # chance that honest frequencies equal round propensities exactly, below which they were counted
CHANCE_NEAR = 1e-6  # chance that honest propensities come as near to the log's own frequencies as counted ones do
# Smallest variance of a count, and fewest such counts, for that chance to mean anything. At a variance of 5 one honest
# log in a thousand was refused: cells that are kept for having many rows miss their propensities by too little.
MOVED, FEWEST = 12.0, 5
COARSEST, FINEST = 2, 4  # decimals to which propensities may have been rounded, with an effect
GRAINS, GRAIN_ERROR = 12, 0.01  # distinct values (a designer sets fewer) and mean error of a weight: from there on
UNBALANCED, UNBALANCED_COUNT = 0.01, 30  # excess of sum 1 / p over the rows, and rows of a cell, that are looked at
SEGMENTS, SEGMENT_VALUES = 6, 64  # columns outside the contract that are tried as segments, and their distinct values
SUMS = ("count", "inverse", "moved", "spread")
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


def segments(schema: pa.Schema) -> list[str]:
    """Columns within which propensities may have been counted: slot, surface, and categories outside the contract."""
    known = {c.name for c in IMPRESSIONS.columns}
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary, pa.types.is_boolean,
             pa.types.is_integer)
    own = [f.name for f in schema if f.name not in known and any(is_kind(f.type) for is_kind in kinds)]
    return [n for n in ("slot", "surface") if n in schema.names] + own[:SEGMENTS]


class Cells:
    """Counts and propensities of every ad, and of every ad in a segment, added up over batches of a log."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, ...], list[pa.Table]] = {}
        self._decimals, self._values = COARSEST, np.zeros(0)

    def add(self, table: pa.Table) -> None:
        """Add a batch with ``ad_id``, ``propensity`` and any of its :func:`segments`."""
        first, p = not self._parts, table.column("propensity").to_numpy()
        self._look_for_grain(p)
        columns = {"p": p, "inverse": 1 / p, "moved": 1 - p, "spread": (1 - p) / p**2}
        how = [("p", "min"), ("p", "max"), ("p", "count"), *((n, "sum") for n in SUMS[1:])]
        for keys in [("ad_id",), *(("ad_id", n) for n in segments(table.schema))]:
            if first and len(keys) > 1 and len(pc.unique(table.column(keys[1]))) > SEGMENT_VALUES:
                continue  # a number, not a segment
            if first or keys in self._parts:
                batch = pa.table({**{k: table.column(k) for k in keys}, **{f"_{n}": x for n, x in columns.items()}})
                made = batch.group_by(list(keys)).aggregate([(f"_{n}", f) for n, f in how])
                parts = self._parts.setdefault(keys, [])
                parts.append(made.rename_columns([*keys, "low", "high", *SUMS]))
                if len(parts) >= 32:  # many batches of the same ads: keep what is held small
                    parts[:] = [self._merged(keys)]

    def _look_for_grain(self, p: NDArray[np.float64]) -> None:
        """Find the fewest decimals that hold all propensities so far, and collect the distinct ones."""
        while self._decimals <= FINEST:
            scaled = p * 10**self._decimals
            if (np.abs(scaled - np.rint(scaled)) < 1e-3 * 10**(self._decimals - FINEST)).all():  # float32 as well
                self._values = np.union1d(self._values, np.rint(p * 10**FINEST))
                return
            self._decimals += 1

    def _merged(self, keys: tuple[str, ...]) -> pa.Table:
        how = [("low", "min"), ("high", "max"), *((n, "sum") for n in SUMS)]
        made = pa.concat_tables(self._parts[keys]).group_by(list(keys)).aggregate(how)
        return made.rename_columns([*keys, "low", "high", *SUMS])

    @property
    def ads(self) -> pa.Array:
        """Distinct shown ads."""
        column = pa.concat_tables(self._parts["ad_id",]).column("ad_id")
        return pc.unique(column)

    @property
    def constant(self) -> bool:
        """Is the propensity the same in every row (a uniformly random log)?"""
        table = self._merged(("ad_id",))
        return pc.max(table.column("high")).as_py() - pc.min(table.column("low")).as_py() < 1e-9

    def require_not_reconstructed(self) -> None:
        """Raise :class:`Refused` where propensities are the log's own frequencies.

        Two tests, of the whole log and within every segment column:

        1. Where an ad's propensity is constant: equality to the last digit with its frequency.
        2. The sum of 1 / p over the rows that show an ad estimates the number of rows, whatever the policy saw, and
           misses it by chance: squared misses over their variance, sum (1 - p) / p^2, add up to about the number of
           ads. Counted propensities (in whatever segments each ad was shown in, rounded, smoothed or jittered by a
           few per cent) miss by next to nothing, which is less than chance allows.

        What neither sees: logs of fewer than FEWEST ads with inexact ones. A fitted model's are looked for by
        :mod:`recsys.evaluation.offpolicy.fitted`.
        """
        rows = pc.sum(self._merged(("ad_id",)).column("count")).as_py()
        if rows < 100 or self.constant:
            return
        for keys in self._parts:
            if _are_frequencies(self._merged(keys), keys):
                within = " x ".join(keys) if len(keys) > 1 else "ad_id, in the whole log or in segments of it"
                raise Refused(f"propensities equal the frequencies of {within}, nearer than chance allows: they were "
                              f"reconstructed from this log, not logged by the policy that chose; {LOG_IT}")


    def require_exact(self) -> None:
        """Raise :class:`Refused` where propensities are rounded, or ads were shown more often than theirs allow.

        1. Many distinct values, all of few decimals, that are no designed distribution (one value per ad, or per ad and
           segment, summing to 1): weights are off by about half a unit of the last decimal over p.
        2. The sum of 1 / p over the rows that show an ad has mean N, the rows (of a slot, of a surface), or less where
           the ad was not always a candidate. Far more than N is too small a propensity: of another policy, of another
           slot, of a model that does not know the surface. Where a rare p falls, the sum and its estimated variance
           sum (1 - p) / p^2 rise together, which makes the test of the upper side a careful one.
        """
        tables = {keys: self._merged(keys) for keys in self._parts}
        whole = tables["ad_id",]
        rows, inverse = (pc.sum(whole.column(n)).as_py() for n in ("count", "inverse"))
        error = 0.5 * 10.0**-self._decimals * inverse / rows
        if (self._decimals <= FINEST and len(self._values) >= GRAINS and error > GRAIN_ERROR
                and not any(_is_designed(t, keys) for keys, t in tables.items())):
            raise Refused(f"propensities are rounded to {self._decimals} decimals ({len(self._values)} distinct "
                          f"values): weights are off by up to {100 * error:.1f} % on average; {LOG_IT}, unrounded")
        for keys in (("ad_id",), *(("ad_id", n) for n in ("slot", "surface"))):
            if keys not in tables:  # other columns may say which ad was shown: known for slot and surface, not for them
                continue
            cells = tables[keys]
            count, inverse, _, spread = (cells.column(n).to_numpy().astype(np.float64) for n in SUMS)
            total = np.bincount(_groups(cells, keys), count)[_groups(cells, keys)]
            away = (inverse - total) / np.sqrt(np.maximum(spread, 1e-300))
            chance = ndtr(-away) * len(count)
            wrong = (chance < CHANCE_NEAR) & (count >= UNBALANCED_COUNT) & (inverse > (1 + UNBALANCED) * total)
            if wrong.any():
                at = int(np.argmax(np.where(wrong, away, -np.inf)))
                where = " and ".join(f"{k} {cells.column(k)[at].as_py()}" for k in keys)
                raise Refused(f"propensities do not balance: {where} was shown {inverse[at] / total[at] - 1:.1%} more "
                              f"often than its propensities say ({away[at]:.1f} standard errors): they are of another "
                              f"policy, of another slot, or of a model; {LOG_IT}")


def _groups(cells: pa.Table, keys: tuple[str, ...]) -> NDArray[np.int64]:
    """Code of each cell's segment."""
    if len(keys) == 1:
        return np.zeros(cells.num_rows, dtype=np.int64)
    codes: NDArray[np.int64] = cells.column(keys[1]).combine_chunks().dictionary_encode("encode").indices.to_numpy()
    return codes.astype(np.int64)


def _is_designed(cells: pa.Table, keys: tuple[str, ...]) -> bool:
    """One propensity per cell, that sum to 1 in each segment: somebody may have set them."""
    low, high = (cells.column(n).to_numpy().astype(np.float64) for n in ("low", "high"))
    return bool((high - low < 1e-9).all() and np.allclose(np.bincount(_groups(cells, keys), low), 1.0, atol=1e-6))


def _are_frequencies(cells: pa.Table, keys: tuple[str, ...]) -> bool:
    low, high = (cells.column(n).to_numpy().astype(np.float64) for n in ("low", "high"))
    count, inverse, moved, spread = (cells.column(n).to_numpy().astype(np.float64) for n in SUMS)
    group = _groups(cells, keys)
    total = np.bincount(group, count)[group]
    known = moved >= MOVED  # elsewhere a count hardly varies, and says nothing
    if known.sum() >= FEWEST:
        # Counts of a segment add up to its rows, so one of each segment's is not free.
        free = known.sum() - len(np.unique(group[known]))
        distance = float(((inverse - total)[known] ** 2 / spread[known]).sum())
        if free >= FEWEST - 1 and float(chdtr(free, distance)) < CHANCE_NEAR:
            return True
    if (high - low > 1e-9).any() or len(low) < 2 or not np.allclose(np.bincount(group, low), 1.0, atol=1e-2):
        return False  # the propensity depends on the request, some ads were never shown, or it is no distribution
    same = np.allclose(low, count / total, rtol=1e-9, atol=0.0)
    return same and (any(not _plain(p) for p in low) or _chance_of(low, count, group) < CHANCE_EQUAL)


def _plain(p: float) -> bool:
    """Could somebody have set this probability: a few decimals, or a small fraction?"""
    return abs(float(Fraction(p).limit_denominator(1000)) - p) < 1e-12


def _chance_of(p: NDArray[np.float64], count: NDArray[np.float64], group: NDArray[np.int64]) -> float:
    """Multinomial probability of these very counts."""
    size = np.bincount(group, count)
    return float(np.exp(min(gammaln(size + 1).sum() - gammaln(count + 1).sum() + (count * np.log(p)).sum(), 0.0)))
