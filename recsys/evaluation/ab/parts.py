"""A log's units told apart by parts of it: segments named beforehand, or stretches of time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.contracts import open_parquet
from recsys.errors import InputError
from recsys.evaluation.ab.units import ROWS, Metric, Units, parquet_files
from recsys.evaluation.columns import encode
from recsys.evaluation.segments import Segments, segments_of

BATCH_ROWS = 1 << 20
LOOKS = 20  # at growing data, as evaluation.growth_looks of a report


@dataclass(frozen=True)
class Parts:
    """Sums of every unit within every part that it has rows in; L lines.

    Attributes:
        labels: names of the parts; of stretches of time: until when.
        lines: the sums, sorted by arm; units seen in several arms are left out.
        unit: int64[L], code of each line's unit.
        part: int64[L], position in ``labels``.
        rows: int64[G], rows of each part.
    """

    labels: list[str]
    lines: Units
    unit: NDArray[np.int64]
    part: NDArray[np.int64]
    rows: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> Parts:
        """Some of the lines."""
        lines = Units(self.lines.arms, self.lines.arm[mask], self.lines.rows,
                      {k: v[mask] for k, v in self.lines.values.items()}, self.lines.crossed)
        return Parts(self.labels, lines, self.unit[mask], self.part[mask], self.rows)

    def merged(self, part: NDArray[np.int64], labels: list[str], fixed: frozenset[str] = frozenset()) -> Parts:
        """One line per unit and new part, int64[L] into ``labels``: sums, and of ``fixed`` columns the unit's value."""
        key, first, code = np.unique(self.unit * len(labels) + part, return_index=True, return_inverse=True)
        order = np.argsort(self.lines.arm[first], kind="stable")
        values = {k: (v[first] if k in fixed else np.bincount(code, v, len(key)).astype(np.float64))[order]
                  for k, v in self.lines.values.items()}
        lines = Units(self.lines.arms, self.lines.arm[first][order], self.lines.rows, values, self.lines.crossed)
        rows = np.bincount(part, self.lines.values[ROWS], len(labels)).astype(np.int64)
        return Parts(labels, lines, self.unit[first][order], part[first][order], rows)

    def per_unit(self, fixed: frozenset[str] = frozenset()) -> Units:
        """One line per unit, all parts together."""
        return self.merged(np.zeros(len(self.unit), dtype=np.int64), ["all"], fixed).lines


def read_segment_parts(path: str | Path, arm: str, unit: str, metrics: list[Metric], column: str,
                       most: int = 12) -> Parts:
    """Parts by the values of a column that is known before anything is shown.

    Args:
        path: as of :func:`recsys.evaluation.ab.units.read_units`, which has read it before.
        arm: column of the arm.
        unit: column of the unit.
        metrics: which columns are needed.
        column: numbers with more than ``most`` values are cut at their quartiles, of others the most frequent are kept.
        most: see ``column``.

    Raises:
        InputError: the column is missing, or is one of those that are analysed.
    """
    used = {arm, unit, *(c for m in metrics for c in (m.numerator, m.denominator) if c is not None)}
    if column in used:
        raise InputError("a segment cannot be what is analysed", file=path, column=column,
                         expected="a column known before the experiment")
    return _read(path, arm, unit, metrics, segments_of(_column(path, column), most))


def read_time_parts(path: str | Path, arm: str, unit: str, metrics: list[Metric], column: str, looks: int) -> Parts:
    """Parts by time: the rows between one of ``looks`` evenly spaced looks and the next.

    A look takes all rows up to its last time.

    Raises:
        InputError: the column is missing or has nulls, or cannot be ordered.
    """
    when = _column(path, column)
    if when.null_count:
        row = pc.index(pc.is_null(when), True).as_py()
        raise InputError("value not allowed", file=path, column=column, row=row, got="None", expected="a time per row")
    try:
        ranks = np.asarray(pc.rank(when, tiebreaker="max")).astype(np.int64)
    except pa.ArrowNotImplementedError:
        raise InputError("cannot be ordered", file=path, column=column, got=str(when.type),
                         expected="times or numbers") from None
    ordered = np.sort(ranks)
    wanted = np.ceil(len(ranks) * np.arange(1, looks + 1) / looks).astype(np.int64)
    ends = np.unique(ordered[wanted - 1])
    last = np.array([int(np.argmax(ranks == end)) for end in ends])
    labels = [_text(when[int(row)]) for row in last]
    return _read(path, arm, unit, metrics, Segments(labels, np.searchsorted(ends, ranks).astype(np.int64)))


def _text(value: pa.Scalar) -> str:
    plain = value.as_py()
    return plain.isoformat(timespec="minutes") if hasattr(plain, "hour") else str(plain)


def _column(path: str | Path, column: str) -> pa.ChunkedArray:
    parts = []
    for file in parquet_files(path):
        opened = open_parquet(file)
        if column not in opened.schema_arrow.names:
            raise InputError("missing column", file=file, column=column, got=sorted(opened.schema_arrow.names),
                             expected=column)
        parts.append(opened.read(columns=[column]))
    return pa.concat_tables(parts).column(column)


def _read(path: str | Path, arm: str, unit: str, metrics: list[Metric], made: Segments) -> Parts:
    files = parquet_files(path)
    names = open_parquet(files[0]).schema_arrow.names
    sums = sorted({c for m in metrics for c in (m.numerator, m.denominator)
                   if c is not None and (c != ROWS or ROWS in names)})
    fixed = sorted({c for m in metrics for c in (m.covariate, m.covariate_denominator) if c is not None})
    keys, held, at = ["unit", "arm", "part"], [], 0
    how = [(f"sum {c}", "sum") for c in sums] + [(f"min {c}", "min") for c in fixed] + [("count", "sum")]
    for file in files:
        for batch in open_parquet(file).iter_batches(BATCH_ROWS, columns=[unit, arm, *sums, *fixed]):
            n = batch.num_rows
            table = pa.table({"unit": batch.column(unit).cast(pa.string()), "arm": batch.column(arm).cast(pa.string()),
                              "part": made.codes[at:at + n], "count": np.ones(n, np.int64),
                              **{f"sum {c}": batch.column(c).cast(pa.float64()) for c in sums},
                              **{f"min {c}": batch.column(c).cast(pa.float64()) for c in fixed}})
            held.append(_summed(table, keys, how))
            at += n
    table = _summed(pa.concat_tables(held), keys, how)
    code = encode(table["unit"])[1]
    arms, arm_code = encode(table["arm"])
    several = np.unique(np.stack([code, arm_code]), axis=1)[0]
    alone = np.bincount(several)[code] == 1
    listed = [str(v) for v in arms.to_pylist()]
    rank = np.argsort(np.argsort(listed))[arm_code]  # codes by name, as in read_units
    kept = np.flatnonzero(alone)
    kept = kept[np.argsort(rank[kept], kind="stable")]
    values = {c: table[f"sum {c}"].to_numpy().astype(np.float64)[kept] for c in sums}
    values |= {c: table[f"min {c}"].to_numpy().astype(np.float64)[kept] for c in fixed}
    values.setdefault(ROWS, table["count"].to_numpy().astype(np.float64)[kept])
    lines = Units(sorted(listed), rank[kept], at, values, int((np.bincount(several) > 1).sum()))
    return Parts(made.labels, lines, code[kept], table["part"].to_numpy()[kept],
                 np.bincount(made.codes, minlength=len(made.labels)))


def _summed(table: pa.Table, keys: list[str], how: list[tuple[str, str]]) -> pa.Table:
    made = table.group_by(keys).aggregate(how)
    return made.rename_columns([*keys, *(name for name, _ in how)])
