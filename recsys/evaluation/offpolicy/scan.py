"""The first look at a log: everything that has to be known of all rows before any batch is joined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.contracts import IMPRESSIONS, Contract, open_parquet, validate
from recsys.errors import InputError, Refused
from recsys.evaluation import health
from recsys.evaluation.columns import require_column
from recsys.evaluation.offpolicy.fitted import context, require_not_fitted
from recsys.evaluation.offpolicy.propensity import Cells, require_logged, segments
from recsys.evaluation.offpolicy.stream import BATCH_ROWS, column_hash
from recsys.evaluation.offpolicy.totals import MAX_GROUPS
from recsys.log import progress

EXACT_ROWS = 1_000_000  # longer logs put units into MAX_GROUPS buckets by hash instead of telling them apart
KEYS = ("impression_id", "request_id", "user_id", "group_id")
READ = ("slot", "surface", "ad_id", "propensity", "propensity_source", "click", "dwell_ms")


@dataclass(frozen=True)
class Scan:
    """Facts of a whole log.

    Attributes:
        rows: how many.
        columns: names in the file.
        schema: of the file.
        ads: distinct shown ads.
        constant: the propensity is the same in every row.
        engaged_share: engaged clicks per click.
        unit: column of the independent unit.
        value: mean click.
    """

    rows: int
    columns: tuple[str, ...]
    schema: pa.Schema
    ads: pa.Array
    constant: bool
    engaged_share: float
    unit: str
    value: float


def scan(path: Path, unit: str | None, engaged_ms: float) -> Scan:
    """Check a log row by row and take from it what must be known beforehand.

    Args:
        path: IMPRESSIONS, Parquet.
        unit: column of the independent unit; default: ``user_id`` where every row has one, else ``request_id``.
        engaged_ms: dwell time from which a click counts as engagement, milliseconds.

    Raises:
        InputError: the file is missing, damaged, empty, or breaks the contract.
        Refused: propensities are unknown, rounded, wrong, or look reconstructed from the log.
    """
    file = open_parquet(path)
    names, rows = file.schema_arrow.names, file.metadata.num_rows
    if rows == 0:
        raise InputError("no rows", file=path, got="0 rows", expected="at least one impression")
    for column in IMPRESSIONS.columns:
        if (column.required or column.name == "click") and column.name not in names:
            raise InputError("missing column", file=path, column=column.name, got=sorted(names),
                             expected=f"{column.type} ({IMPRESSIONS.name})")
    if unit is not None and unit not in names:
        raise InputError("missing column", file=path, column=unit, got=sorted(names), expected=unit)
    modelled = context(file.schema_arrow) if rows <= EXACT_ROWS else []
    read = [n for n in dict.fromkeys((*READ, *KEYS, unit or "user_id", *segments(file.schema_arrow), *modelled))
            if n in names]
    keys: list[pa.Table] = []
    chosen: list[pa.Table] = []
    unknown = 0
    contract = Contract(IMPRESSIONS.name, tuple(c for c in IMPRESSIONS.columns if c.name in read))
    cells, offset, clicks, engaged, anonymous = Cells(), 0, 0.0, 0.0, "user_id" not in names
    with progress("rows") as bar:
        task = bar.add_task("checking the log", total=rows)
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=read):
            table = validate(pa.Table.from_batches([batch]), contract, path, offset)
            require_logged(table)
            for name in [n for n in ("click", "slot", unit) if n is not None and n in table.column_names]:
                require_column(table, name, str(path))
            cells.add(table)
            if modelled:
                chosen.append(table.select(["ad_id", "propensity", *modelled]))
            click = table.column("click").to_numpy().astype(np.float64)
            clicks += float(click.sum())
            if "dwell_ms" in read:
                engaged += float(click[pc.fill_null(table.column("dwell_ms"), 0.0).to_numpy() >= engaged_ms].sum())
            unknown += 0 if unit is not None or anonymous else table.column("user_id").null_count
            keys.append(_hashed(table, [n for n in dict.fromkeys((*KEYS, unit)) if n is not None and n in read]))
            offset += len(click)
            bar.update(task, completed=offset)
    cells.require_not_reconstructed()
    cells.require_exact()
    if chosen:
        require_not_fitted(pa.concat_tables(chosen), modelled)
    if 0 < unknown < rows:
        raise Refused(f"{unknown:,} of {rows:,} rows have no user_id: the rows of one user cannot be kept together; "
                      "name every row's user, or ask for another --unit")
    anonymous = anonymous or unknown == rows
    hashed = pa.concat_tables(keys)
    for line in (health.duplicates(hashed, ("decision",)),
                 health.unit_of_analysis(hashed, unit or ("request_id" if anonymous else "user_id"))):
        if not line["ok"]:
            raise Refused(f"{line['check']}: {line['detail']}; mend the log or the --unit")
    return Scan(rows, tuple(names), file.schema_arrow, cells.ads, cells.constant, engaged / max(1.0, clicks),
                unit or ("request_id" if anonymous else "user_id"), clicks / rows)


def _hashed(table: pa.Table, names: list[str]) -> pa.Table:
    """Keys as 64-bit hashes, nulls kept: what the checks of a whole log need of it, 8 bytes a row and key."""
    made = {}
    for name in names:
        column = table.column(name)
        if column.type == pa.null():
            made[name] = pa.nulls(len(column), pa.uint64())
        else:
            absent = pc.is_null(column).combine_chunks().to_numpy(zero_copy_only=False)
            made[name] = pa.array(column_hash(column.cast(pa.string())), mask=absent)
    slot = (table.column("slot").to_numpy().astype(np.uint64) if "slot" in table.column_names
            else np.zeros(table.num_rows, dtype=np.uint64))
    mixed = made["request_id"].to_numpy() + slot * np.uint64(0x9E3779B97F4A7C15)  # wraps: one key of request and slot
    made["decision"] = pa.array(mixed)
    return pa.table(made)


class Units:
    """Codes of units over batches: exact for logs up to EXACT_ROWS, else buckets by hash.

    Units that share a bucket are analysed as one: as buckets are independent of each other, intervals stay valid.
    """

    def __init__(self, rows: int) -> None:
        self.exact = rows <= EXACT_ROWS
        self._seen = pa.array([], pa.large_string())

    def codes(self, column: pa.ChunkedArray) -> NDArray[np.int64]:
        """int64[n] codes, the same for the same unit in every batch."""
        text = column.cast(pa.large_string())
        if not self.exact:
            return (column_hash(text) % np.uint64(MAX_GROUPS)).astype(np.int64)
        distinct = pc.unique(text)
        new = distinct.filter(pc.invert(pc.is_in(distinct, value_set=self._seen)))
        self._seen = pa.concat_arrays([self._seen, new])
        codes: NDArray[np.int64] = pc.index_in(text, value_set=self._seen).to_numpy().astype(np.int64)
        return codes
