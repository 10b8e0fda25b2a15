"""From the bytes of a scoring request to a table, strictly: what is not plainly right is a 400 that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError
from recsys.features.dense import not_finite


def parse_rows(body: bytes, columns: list[str], max_rows: int) -> pa.Table:
    """The table of a request ``{"rows": [{column: value, ...}, ...]}``.

    Every row names every column of the model; a missing value is an explicit null; further keys are ignored.

    Args:
        body: JSON (RFC 8259: NaN and Infinity are no JSON).
        columns: input columns of the model.
        max_rows: most rows of a request.

    Returns:
        One row per entry of ``rows``, at least one; column types are those of the values.

    Raises:
        InputError: not JSON, another shape, a missing column, values of mixed or nested types, or beyond float32.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError("not valid JSON", got=str(error)) from None
    rows = request.get("rows") if isinstance(request, dict) else None
    if not isinstance(rows, list):
        raise InputError("malformed request", expected='{"rows": [{column: value, ...}, ...]}')
    if not 1 <= len(rows) <= max_rows:
        raise InputError("number of rows", got=len(rows), expected=f"1 to {max_rows}")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError("malformed row", row=i, got=row, expected="{column: value, ...}")
    return pa.table({name: _column(rows, name) for name in columns})


def _column(rows: list[dict[str, Any]], name: str) -> pa.Array:
    try:
        values = [row[name] for row in rows]
    except KeyError:
        at = next(i for i, row in enumerate(rows) if name not in row)
        raise InputError("missing column", column=name, row=at, got=sorted(rows[at]),
                         expected="a value, or null for a missing one") from None
    try:
        column = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise InputError("values of mixed types", column=name,
                         expected="numbers, strings, or lists of strings") from None
    kind = column.type.value_type if pa.types.is_list(column.type) else column.type
    if not (pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_null(kind)):
        raise InputError("wrong type", column=name, got=values[0], expected="a number, a string, or a list of strings")
    return finite(column, name)


def finite(flat: pa.Array, name: str) -> pa.Array:
    """The same column.

    Args:
        flat: [n].
        name: named in errors.

    Raises:
        InputError: a number of it is NaN, infinite, or beyond float32.
    """
    if pa.types.is_floating(flat.type):
        at = pc.index(not_finite(flat), True).as_py()
        if at >= 0:
            raise InputError("value not allowed", column=name, row=at, got=flat[at].as_py(), expected="a finite number "
                             "that float32 can hold; a missing one is null, or what the parameter missing names")
    return flat


def check_probabilities(heads: Mapping[str, np.ndarray]) -> None:
    """Refuse to answer with what is no probability.

    Raises:
        InputError: a row for which the model gives none.
    """
    for values in heads.values():
        bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
        if len(bad):
            raise InputError("no finite probability", row=int(bad[0]), got=float(values[bad[0]]),
                             expected="feature values that the model can take")


def format_scores(scores: Mapping[str, np.ndarray], model_id: str) -> bytes:
    """The answer ``{"model_id": ..., "scores": [{"p_click": ...}, ...]}``, in the order of the request's rows."""
    rows = zip(*(values.tolist() for values in scores.values()), strict=True)
    return orjson.dumps({"model_id": model_id, "scores": [dict(zip(scores, row, strict=True)) for row in rows]})


def warm_up_table(kinds: Mapping[str, str]) -> pa.Table:
    """One row of missing values: enough for the model to run before it is called ready.

    Args:
        kinds: column -> its kind (:attr:`recsys.serving.protocol.ScorerLike.kinds`).
    """
    empty = {"number": pa.nulls(1, pa.float32()), "category": pa.nulls(1, pa.string()), "row": pa.array([0]),
             "list": pa.nulls(1, pa.list_(pa.string()))}
    return pa.table({name: empty[kind] for name, kind in kinds.items()})
