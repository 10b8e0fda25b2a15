"""Rows of exposures summed to one line per randomised unit, streamed through Arrow's hash aggregation.

Only the sums per unit are ever held: ten million rows of a million users take about as much memory as the users.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.acero as acero
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from recsys.contracts import open_parquet
from recsys.errors import InputError
from recsys.evaluation.columns import encode
from recsys.evaluation.intervals import Floats

ROWS = "rows"  # the denominator that counts a unit's rows, where the file has no such column
HEAD_ROWS = 1 << 15  # in which a covariate is tried before the whole log is summed


@dataclass(frozen=True)
class Metric:
    """A mean per unit, or a ratio of two sums over units.

    Attributes:
        numerator: column summed within a unit.
        denominator: column summed within a unit; ``rows`` counts rows; None divides by the number of units.
        covariate: column known before the experiment, one value per unit, for CUPED; ``covariate_denominator`` its
            denominator, where the covariate is a ratio as well.
        covariate_denominator: see ``covariate``.
    """

    numerator: str
    denominator: str | None = None
    covariate: str | None = None
    covariate_denominator: str | None = None

    @property
    def name(self) -> str:
        """``numerator`` or ``numerator/denominator``."""
        return self.numerator if self.denominator is None else f"{self.numerator}/{self.denominator}"


def parse_metric(text: str, covariates: dict[str, str] | None = None) -> Metric:
    """A :class:`Metric` from ``NAME[/DENOMINATOR]``; ``covariates`` maps a metric's text (or "") to its covariate."""
    pairs = covariates or {}
    parts, beside = ((t.split("/") if t else []) for t in (text, pairs.get(text, pairs.get("", ""))))
    for given in (parts, beside):
        if len(given) > 2 or not all(given):
            raise InputError("malformed metric", file="--metric", got="/".join(given), expected="NAME[/DENOMINATOR]")
    if not parts:
        raise InputError("malformed metric", file="--metric", got=text, expected="NAME[/DENOMINATOR]")
    names: list[str | None] = [*parts, None][:2] + [*beside, None, None][:2]
    return Metric(parts[0], *names[1:])


@dataclass(frozen=True)
class Units:
    """One line per unit, sorted by arm; U units, A arms.

    Attributes:
        arms: names; ``arm`` int64[U] their codes, ascending.
        arm: see ``arms``.
        rows: rows of the log read.
        values: column -> float64[U], summed over a unit's rows (covariates: the unit's one value).
        crossed: units seen in more than one arm; they are left out.
    """

    arms: list[str]
    arm: NDArray[np.int64]
    rows: int
    values: dict[str, Floats]
    crossed: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """Units of each arm, int64[A]."""
        return np.bincount(self.arm, minlength=len(self.arms))

    def of(self, name: str, column: str) -> Floats:
        """A column of one arm's units."""
        code = self.arms.index(name)
        low, high = np.searchsorted(self.arm, [code, code + 1])
        return self.values[column][low:high]


def parquet_files(path: str | Path) -> list[Path]:
    """The Parquet file, or every ``*.parquet`` of a folder, each opened once to see that it can be read."""
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise InputError("no Parquet file in the folder", file=path, expected="*.parquet")
    for file in files:
        open_parquet(file)
    return files


def read_units(path: str | Path, arm: str, unit: str, metrics: list[Metric]) -> Units:
    """Sum a log's columns within units.

    Args:
        path: Parquet file or folder of them; one row per exposure (or already one per unit).
        arm: column of the arm that a row was exposed to.
        unit: column of the randomised unit, such as the user.
        metrics: which columns are needed.

    Raises:
        InputError: a column is missing, no number, null or not finite; a covariate changes within a unit.
    """
    files = parquet_files(path)
    data = ds.dataset([str(f) for f in files], format="parquet")
    names = data.schema.names
    sums = {c for m in metrics for c in (m.numerator, m.denominator) if c is not None and (c != ROWS or ROWS in names)}
    fixed = {c for m in metrics for c in (m.covariate, m.covariate_denominator) if c is not None}
    if both := sorted(sums & fixed):
        raise InputError("a metric cannot be its own covariate", file=path, column=both[0],
                         expected="a column known before the experiment")
    for name in (arm, unit, *sorted(sums | fixed)):
        if name not in names:
            raise InputError("missing column", file=path, column=name, got=sorted(names), expected=name)
    if arm == unit:
        raise InputError("arm and unit are one column", file=path, column=arm, expected="the arm of each unit")
    for name in sorted(sums | fixed):
        kind = data.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise InputError("not a number", file=path, column=name, got=str(kind), expected="a numeric column")
    if fixed:  # one that changes with every row would hold as many lines as there are rows: seen early
        _require_constant(data.head(HEAD_ROWS, columns=[unit, *sorted(fixed)]), path, unit, sorted(fixed))
    table = _aggregate(data, files, arm, unit, sorted(sums), sorted(fixed))
    return _lines(table, path, arm, unit, sorted(sums), sorted(fixed))


def _aggregate(data: ds.Dataset, files: list[Path], arm: str, unit: str, sums: list[str],
               fixed: list[str]) -> pa.Table:
    """One line per unit, arm and value of the covariates: as keys, these cost a third of what their minimum and maximum
    would, and one that changes within a unit is seen by the unit's having several lines."""
    strict = pc.ScalarAggregateOptions(skip_nulls=False)  # a null makes its unit's sum null, which is looked for
    how: list[Any] = [(c, "hash_sum", strict, f"sum {c}") for c in sums]
    how.append(([], "hash_count_all", None, f"count {ROWS}"))
    read = acero.ScanNodeOptions(data, columns={n: ds.field(n) for n in (arm, unit, *sums, *fixed)},
                                 fragment_readahead=1)
    plan = acero.Declaration.from_sequence([acero.Declaration("scan", read), acero.Declaration(
        "aggregate", acero.AggregateNodeOptions(how, keys=[unit, arm, *fixed]))])
    try:
        table = plan.to_table()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError("damaged Parquet file", file=files[0].parent if len(files) > 1 else files[0],
                         got=str(error).splitlines()[0], expected="complete Parquet files") from None
    if table.num_rows == 0:
        raise InputError("no rows", file=files[0], got="0 rows", expected="at least two units")
    if any(table[n].null_count or (pa.types.is_floating(table[n].type) and not pc.all(pc.is_finite(table[n])).as_py())
           for n in table.column_names):
        _blame(files, [unit, arm, *sums, *fixed])
    return table


def _require_constant(table: pa.Table, path: str | Path, unit: str, fixed: list[str]) -> None:
    """Raise unless every covariate is one number within each unit."""
    ends = table.group_by(unit).aggregate([(c, end) for c in fixed for end in ("min", "max")])
    for name in fixed:
        low, high = ends[f"{name}_min"], ends[f"{name}_max"]
        at = pc.index(pc.not_equal(low, high), True).as_py()
        if at >= 0:
            raise InputError(f"covariate changes within {unit} {ends[unit][at].as_py()}", file=path, column=name,
                             got=(low[at].as_py(), high[at].as_py()),
                             expected="one value per unit, known before the experiment")


def _blame(files: list[Path], columns: list[str]) -> None:
    """Name the first row with a null or a number that is not finite."""
    for file in files:
        offset = 0
        for batch in open_parquet(file).iter_batches(batch_size=1 << 20, columns=columns):
            for name in columns:
                column = batch.column(batch.schema.get_field_index(name))
                bad = pc.is_null(column, nan_is_null=True)
                if pa.types.is_floating(column.type):
                    bad = pc.or_kleene(bad, pc.is_inf(column))
                at = pc.index(bad, True).as_py()
                if at >= 0:
                    raise InputError("value not allowed", file=file, column=name, row=offset + at,
                                     got=str(column[at].as_py()), expected="a finite value in every row")
            offset += batch.num_rows
    raise InputError("a column does not stand in every file", file=files[0].parent, got=columns,
                     expected="files of one schema")


def _lines(table: pa.Table, path: str | Path, arm: str, unit: str, sums: list[str], fixed: list[str]) -> Units:
    total = int(pc.sum(table[f"count {ROWS}"]).as_py())
    crossed, made = 0, [f"sum {c}" for c in sums] + [f"count {ROWS}"]
    if len(encode(table[unit])[0]) < table.num_rows:
        _require_constant(table, path, unit, fixed)
        # several lines of one covariate are left of one that is both 0.0 and -0.0, or of a unit in several arms
        table = table.group_by([unit, arm]).aggregate([(c, "sum") for c in made] + [(c, "min") for c in fixed])
        table = table.rename_columns([unit, arm, *made, *fixed])
        code = encode(table[unit])[1]
        several = np.bincount(code) > 1
        crossed = int(several.sum())
        table = table.filter(pa.array(~several[code]))
    keys, code = encode(table[arm])
    names = [str(v) for v in keys.to_pylist()]
    rank = np.argsort(np.argsort(names))  # codes by name, so that nothing depends on the order of rows
    code = rank[code] if len(names) else code
    order = np.argsort(code, kind="stable")
    held: dict[str, Any] = {c: f"sum {c}" for c in sums} | {c: c for c in fixed}
    held.setdefault(ROWS, f"count {ROWS}")
    values = {c: table[n].to_numpy().astype(np.float64)[order] for c, n in held.items()}
    return Units(sorted(names), code[order], total, values, crossed)
