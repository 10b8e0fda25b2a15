"""Integer ids to table rows without strings, equal to what the string path gives, at a few nanoseconds a value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_LOOKUP_ROWS = 1 << 22  # widest range of ids that is looked up by position: 16 MiB of int32
_CHUNK = 10_000  # a hash reads four decimal digits at a time
_SEED = 0x9E3779B97F4A7C15
PRIME = 0x100000001B3
_U64 = (1 << 64) - 1


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014), uint64 [n]; arithmetic wraps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


BYTE_CODES = splitmix64(np.arange(1, 257, dtype=np.uint64) * np.uint64(_SEED))


def finish_hash(sums: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The polynomials' values (uint64 [n]) and the texts' lengths in bytes (uint64 [n]) to hashes."""
    return splitmix64(sums + lengths * np.uint64(_SEED))


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polynomials of all four-digit groups, read from the right: with leading zeros, and without; and p^(length - 1).

    The string's polynomial is sum code(c_k) p^k from the left; with q = 1/p modulo 2^64 (p is odd) that is
    p^(length - 1) sum code(d_j) q^j from the right, where groups of digits stand at fixed places.
    """
    inverse = pow(PRIME, -1, 1 << 64)
    number = np.arange(_CHUNK)
    padded, bare = np.zeros(_CHUNK, np.uint64), np.zeros(_CHUNK, np.uint64)
    for j in range(4):
        digit = number // 10**j % 10
        term = BYTE_CODES[digit + ord("0")] * np.uint64(pow(inverse, j, 1 << 64))
        padded += term
        bare += np.where((number >= 10**j) | (j == 0), term, np.uint64(0))
    powers = np.array([pow(PRIME, n, 1 << 64) for n in range(21)], np.uint64)
    return padded, bare, powers


_PADDED, _BARE, _POWERS = _tables()
_INVERSE_STEP = pow(pow(PRIME, -1, 1 << 64), 4, 1 << 64)
_TENS = np.array([10**k for k in range(1, 20)], np.uint64)


def hash_integers(values: np.ndarray) -> np.ndarray:
    """``stable_hash`` of the integers' decimal texts.

    Args:
        values: int64 [n].

    Returns:
        uint64 [n].
    """
    if len(values) == 0:
        return np.zeros(0, np.uint64)
    negative = values < 0
    # The magnitude of the smallest int64 is no int64, but it is this uint64.
    rest = np.where(negative, -values.view(np.int64), values).astype(np.uint64) if negative.any() \
        else values.astype(np.uint64)
    largest = int(rest.max())
    lengths = np.ones(len(rest), np.uint64)
    for ten in _TENS[: len(str(largest)) - 1]:
        lengths += rest >= ten
    sums, factor = np.zeros(len(rest), np.uint64), 1
    for group in range(-(-len(str(largest)) // 4)):
        high = rest // np.uint64(_CHUNK)
        low = (rest - high * np.uint64(_CHUNK)).astype(np.int64)
        # The leftmost group has no leading zeros; a number that ended further right adds nothing.
        term = np.where(high > 0, _PADDED[low], _BARE[low]) if group == 0 else \
            np.where(high > 0, _PADDED[low], np.where(rest > 0, _BARE[low], np.uint64(0)))
        sums += term * np.uint64(factor)
        factor = factor * _INVERSE_STEP & _U64
        rest = high
    if negative.any():  # the sign is one more place on the left
        places = np.array([pow(PRIME, -int(n), 1 << 64) for n in range(21)], np.uint64)
        sums += np.where(negative, BYTE_CODES[ord("-")] * places[lengths.astype(np.int64)], np.uint64(0))
        lengths = lengths + negative
    return finish_hash(sums * _POWERS[(lengths - np.uint64(1)).astype(np.int64)], lengths)


def plain_integers(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None] | None:
    """An integer column as int64 [n] and its nulls (bool [n], None where there are none).

    None where the column is no integer column, or one of uint64, whose large values are no int64.
    """
    kind = column.type
    if not pa.types.is_integer(kind) or pa.types.is_uint64(kind):
        return None
    missing = None
    if column.null_count:
        missing = pc.is_null(column).to_numpy(zero_copy_only=False)
        column = column.fill_null(0)
    values = column.to_numpy(zero_copy_only=False)
    return (values if values.dtype == np.int64 else values.astype(np.int64)), missing


@dataclass(frozen=True)
class IntegerIndex:
    """The row of each integer that a vocabulary lists; of all others 0.

    Attributes:
        low: the smallest listed integer, where ``rows`` is read by position.
        keys: int64 sorted, the listed integers, where their range is too wide for that; else None.
        rows: int32. By position: the row of ``low + i - 1``, with a 0 at either end; else the row of ``keys[i]``.
    """

    low: int
    keys: np.ndarray | None
    rows: np.ndarray

    @staticmethod
    def of(values: pa.Array) -> IntegerIndex:
        """Index a vocabulary's strings; those that are not an int64 in canonical form cannot be met by an integer."""
        number = np.flatnonzero(pc.match_substring_regex(values, r"^(0|-?[1-9][0-9]{0,17})$")
                                .to_numpy(zero_copy_only=False)) if len(values) else np.zeros(0, np.int64)
        keys = values.take(pa.array(number)).cast(pa.int64()).to_numpy(zero_copy_only=False) if len(number) \
            else np.zeros(0, np.int64)
        longer = values.filter(pc.match_substring_regex(values, r"^-?[1-9][0-9]{18}$")) if len(values) else values
        for text in longer.to_pylist():  # nineteen digits: some are an int64, some are not
            if -(1 << 63) <= int(text) < 1 << 63:
                keys = np.append(keys, np.int64(int(text)))
                number = np.append(number, values.index(text).as_py())
        if not len(keys):
            return IntegerIndex(0, None, np.zeros(2, np.int32))
        low, high = int(keys.min()), int(keys.max())
        if high - low < max(_LOOKUP_ROWS, 16 * len(keys)):
            rows = np.zeros(high - low + 3, np.int32)
            rows[keys - low + 1] = number + 1
            return IntegerIndex(low, None, rows)
        order = np.argsort(keys)
        return IntegerIndex(0, keys[order], (number[order] + 1).astype(np.int32))

    def find(self, values: np.ndarray) -> np.ndarray:
        """Rows int32 [n] of int64 [n]."""
        if self.keys is None:
            # Far outside the range the difference may wrap, but never into the range, as it is taken modulo 2^64.
            at = values.astype(np.int64) - np.int64(self.low) + np.int64(1)
            return self.rows.take(at, mode="clip")
        at = np.minimum(np.searchsorted(self.keys, values), len(self.keys) - 1)
        return np.where(self.keys[at] == values, self.rows[at], np.int32(0))
