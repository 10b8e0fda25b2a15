"""Filters over ads' columns: ``surface=feed``, a dict, or a pyarrow.compute expression; all become an expression.

    where("surface=feed", "language=en,de", "budget_left>0")
    where({"surface": "feed", "language": ["en", "de"], "budget_left": (">", 0)})
    where((pc.field("surface") == "feed") & (pc.field("budget_left") > 0))

A null passes no filter: what is not known to be safe is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError

Where: TypeAlias = "pc.Expression | Mapping[str, Any] | str | list[str] | tuple[str, ...] | None"

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}
_TERM = re.compile(r"^\s*([^\s=!<>]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*$")


def rows_where(table: pa.Table, where: Where) -> np.ndarray:
    """Which rows of a table pass: bool [n].

    Raises:
        InputError: a malformed filter, an unknown column, or a value that its column cannot hold.
    """
    expression = where if isinstance(where, pc.Expression) else _expression(table.schema, where)
    numbered = table.append_column("__row", pa.array(np.arange(table.num_rows)))
    try:
        kept = numbered.filter(expression)["__row"].to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError) as error:
        raise InputError("the filter does not fit the ads' columns", file="where", got=str(expression),
                         expected=f"columns {', '.join(table.column_names)} ({str(error).splitlines()[0]})") from None
    mask = np.zeros(table.num_rows, bool)
    mask[kept] = True
    return mask


def _expression(schema: pa.Schema, where: Any) -> pc.Expression:
    terms: list[tuple[str, str, Any]] = []
    if isinstance(where, Mapping):
        for name, value in where.items():
            operator, operand = value if isinstance(value, tuple) else ("=", value)
            terms.append((name, operator, operand))
    else:
        for text in [where] if isinstance(where, str) else where:
            match = _TERM.match(text)
            if match is None:
                raise InputError("malformed filter", file="where", got=text,
                                 expected="COLUMN=VALUE, or !=, <, <=, >, >=")
            name, operator, value = match.groups()
            terms.append((name, operator, value.split(",") if operator in ("=", "!=") and "," in value else value))
    whole = pc.scalar(True)
    for name, operator, value in terms:
        whole = whole & _term(schema, name, operator, value)
    return whole


def _term(schema: pa.Schema, name: str, operator: str, value: Any) -> pc.Expression:
    if name not in schema.names:
        raise InputError("no such column to filter on", file="where", got=name, expected=", ".join(schema.names))
    if operator not in _OPERATORS:
        raise InputError("no such comparison", file="where", column=name, got=operator, expected=" ".join(_OPERATORS))
    kind = schema.field(name).type
    many = isinstance(value, list | set | frozenset)
    try:
        values = pa.array(list(value) if many else [value]).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        raise InputError("a value that the column cannot hold", file="where", column=name, got=value,
                         expected=str(kind)) from None
    if many and operator not in ("=", "!="):
        raise InputError("several values are compared by = or != only", file="where", column=name, got=operator)
    if many:
        inside = pc.field(name).isin(values)
        return (inside if operator == "=" else ~inside) & pc.field(name).is_valid()
    return _OPERATORS[operator](pc.field(name), values[0])
