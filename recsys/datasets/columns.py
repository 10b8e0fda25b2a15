"""A recipe's rules applied to a batch of raw rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.contracts import Column, Contract, validate
from recsys.datasets.recipe import ColumnRule, RowFilter
from recsys.datasets.text import content_hashes
from recsys.errors import InputError

TYPES = {"string": pa.string(), "int": pa.int64(), "float": pa.float64()}
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_TIME = pa.timestamp("us", "UTC")


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def cast(column: pa.ChunkedArray, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast losslessly, or raise an InputError that names column, row and value."""
    return validate(pa.table({name: column}), Contract("raw", (Column(name, kind),))).column(name)


def keep_rows(raw: pa.Table, keep: RowFilter) -> np.ndarray:
    """Rows of a raw table that a filter keeps, as a boolean mask of length N; null fails every condition."""
    column = _find(raw, {}, (keep.column,))[1]
    tests = []
    if keep.present:
        text = column.cast(pa.string())
        tests.append(pc.and_(pc.is_valid(text), pc.not_equal(pc.utf8_trim_whitespace(text), "")))
    for bounds, inside in ((keep.between, True), (keep.not_between, False)):
        if bounds is not None:
            number = cast(column, keep.column, pa.float64())
            within = pc.and_(pc.greater_equal(number, bounds[0]), pc.less_equal(number, bounds[1]))
            tests.append(within if inside else pc.invert(within))
    if keep.equals is not None:
        tests.append(pc.equal(column.cast(pa.string()), keep.equals))
    mask = np.ones(raw.num_rows, bool)
    for test in tests:
        mask &= pc.fill_null(test, False).to_numpy(zero_copy_only=False) if isinstance(test, pa.Array) \
            else pc.fill_null(test, False).combine_chunks().to_numpy(zero_copy_only=False)
    return mask


def build_columns(raw: pa.Table, rules: Mapping[str, ColumnRule], rows: np.ndarray, fingerprint: str,
                  ad_ids: list[str] | None) -> tuple[pa.Table, dict[str, str]]:
    """Apply rules in order.

    Args:
        raw: N raw rows.
        rules: column name -> rule.
        rows: int64 [N], row number of each within the raw file.
        fingerprint: short id of the raw file, part of every row id.
        ad_ids: all ads, for lists of candidates.

    Returns:
        The table, and for each column the raw name to blame for a bad value.

    Raises:
        InputError: a raw column is missing, or a value does not fit; ``row`` counts within ``raw``.
    """
    made: dict[str, pa.ChunkedArray] = {}
    blame: dict[str, str] = {}
    for name, rule in rules.items():
        if rule.optional and not any(n in raw.column_names or n in made for n in rule.reads()):
            continue
        source, column = _origin(raw, made, rule, rows, fingerprint, ad_ids)
        made[name] = _transform(column, source or name, rule)
        # A rule that reads an earlier column passes the blame on to what that one was made of.
        blame[name] = blame.get(source, source) if source and source not in raw.column_names else source or name
    return pa.table(made), blame


def _find(raw: pa.Table, made: Mapping[str, pa.ChunkedArray], names: tuple[str, ...]) -> tuple[str, pa.ChunkedArray]:
    for name in names:
        if name in raw.column_names:
            return name, raw.column(name)
        if name in made:
            return name, made[name]
    raise InputError("missing column", column=" or ".join(names), got=sorted(raw.column_names),
                     expected="a column of that name")


def _constant(value: pa.Scalar, n: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(value, n)])


def _origin(raw: pa.Table, made: Mapping[str, pa.ChunkedArray], rule: ColumnRule, rows: np.ndarray, fingerprint: str,
            ad_ids: list[str] | None) -> tuple[str | None, pa.ChunkedArray]:
    n = raw.num_rows
    if rule.source is not None:
        return _find(raw, made, rule.source)
    if rule.constant is not None:
        return None, _constant(pa.scalar(rule.constant), n)
    if rule.row_id:
        numbers = pa.array(rows).cast(pa.string())
        return None, pa.chunked_array([pc.binary_join_element_wise(fingerprint, numbers, "-")])
    if rule.all_ads:
        return None, _constant(pa.scalar(ad_ids or [], pa.list_(pa.string())), n)
    if rule.join is not None:
        parts = [_find(raw, made, (name,))[1].cast(pa.string()) for name in rule.join]
        return rule.join[0], pc.binary_join_element_wise(*parts, rule.separator)
    name, column = _find(raw, made, (rule.text_hash or "",))
    if not is_text(column.type):
        raise InputError("wrong type", column=name, row=0 if n else None, got=column[0].as_py() if n else None,
                         expected="a text")
    return name, pa.chunked_array([content_hashes(column)])


def _transform(column: pa.ChunkedArray, name: str, rule: ColumnRule) -> pa.ChunkedArray:
    if rule.time is not None:
        return _time(column, name, rule)
    if rule.split is not None:
        return pc.split_pattern(cast(column, name, pa.string()), rule.split)
    if rule.contains is not None:
        return pc.match_substring(cast(column, name, pa.string()), rule.contains).cast(pa.float64())
    if rule.extract is not None:
        found = pc.extract_regex(cast(column, name, pa.string()), rule.extract)
        column = pa.chunked_array([pc.struct_field(c, "value") for c in found.chunks], pa.string())
    if rule.at_least is not None:
        return pc.greater_equal(cast(column, name, pa.float64()), rule.at_least).cast(pa.int8())
    if rule.multiply is not None or rule.add is not None:
        column = cast(column, name, pa.float64())
        column = column if rule.multiply is None else pc.multiply(column, rule.multiply)
        column = column if rule.add is None else pc.add(column, rule.add)
    return column if rule.type is None else cast(column, name, TYPES[rule.type])


def _time(column: pa.ChunkedArray, name: str, rule: ColumnRule) -> pa.ChunkedArray:
    kind = rule.time or "iso"
    if kind in _UNITS:
        micro = pc.multiply(cast(column, name, pa.int64()), _UNITS[kind])
    elif kind == "iso":
        if is_text(column.type):  # a zone that is written wins over the recipe's
            zoned = pc.fill_null(pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$"), False)
            if pc.any(zoned).as_py():
                return cast(column, name, _TIME)
        micro = cast(cast(column, name, pa.timestamp("us")), name, pa.int64())
    else:
        micro = _strptime(cast(column, name, pa.string()), name, kind, rule.fraction_digits)
    shift = int(rule.utc_offset_hours * 3_600_000_000)
    return pc.subtract(micro, shift).cast(_TIME)


def _strptime(text: pa.ChunkedArray, name: str, form: str, digits: int) -> pa.ChunkedArray:
    whole = pc.utf8_slice_codeunits(text, 0, -digits) if digits else text
    parsed = pc.strptime(whole, format=form, unit="us", error_is_null=True)
    bad = pc.and_(pc.is_valid(text), pc.is_null(parsed))
    if (row := pc.index(bad, True).as_py()) >= 0:
        raise InputError("not a time", column=name, row=row, got=text[row].as_py(), expected=form + "f" * digits)
    micro = parsed.cast(pa.int64())
    if digits:
        fraction = cast(pc.utf8_slice_codeunits(text, -digits), name, pa.int64())
        micro = pc.add(micro, pc.multiply(fraction, 10 ** (6 - digits)))
    return micro
