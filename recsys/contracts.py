"""Arrow schemas of everything that passes between stages, and the checks at the door.

A contract is a list of :class:`Column`. A table may carry further columns (a recipe's own dense
and sparse features); a required column must be there, every contract column that is there must
have its type, and every value must pass its check. The first violation is raised as one
:class:`recsys.errors.InputError` that names file, column, row, what was got and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import InputError
from recsys.storage import file_size, is_url, open_input

Bad = Callable[[pa.Array | pa.ChunkedArray], Any]
"""Takes a column, returns a boolean array that is true where a (non-null) value is not allowed."""


@dataclass(frozen=True)
class Column:
    """One column of a contract.

    Args:
        name: column name.
        type: Arrow type that the column has, or is losslessly cast to on reading.
        required: the table is refused without it.
        nullable: nulls are allowed.
        bad: marks values that are not allowed; ``expected`` says what is.
        expected: the words of the error message.
    """

    name: str
    type: pa.DataType
    required: bool = False
    nullable: bool = True
    bad: Bad | None = None
    expected: str = ""


@dataclass(frozen=True)
class Contract:
    """A named list of columns; ``rules`` are checks over several columns at once.

    A rule is (columns, bad, column to blame, expected); it runs where all its columns are present.
    """

    name: str
    columns: tuple[Column, ...]
    rules: tuple[tuple[tuple[str, ...], Callable[..., Any], str, str], ...] = field(default=())

    def __getitem__(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)

    def schema(self, names: list[str] | None = None) -> pa.Schema:
        """The Arrow schema of the contract, or of the named columns of it."""
        chosen = self.columns if names is None else [self[n] for n in names]
        return pa.schema([pa.field(c.name, c.type, c.nullable) for c in chosen])


def _negative(a: Any) -> Any:
    return pc.less(a, 0)


def _not_finite(a: Any) -> Any:
    return pc.invert(pc.is_finite(a))


def _outside_unit(a: Any) -> Any:
    return pc.or_(pc.invert(pc.and_(pc.greater_equal(a, 0.0), pc.less_equal(a, 1.0))), pc.is_nan(a))


def _not_propensity(a: Any) -> Any:
    # Below, sums of squared weights overflow, and no logging policy means it.
    return pc.or_(pc.invert(pc.and_(pc.greater(a, 1e-70), pc.less_equal(a, 1.0))), pc.is_nan(a))


def _one_of(*values: str) -> Bad:
    return lambda a: pc.invert(pc.is_in(a, value_set=pa.array(values)))


def _not_binary(a: Any) -> Any:
    return pc.invert(pc.is_in(a, value_set=pa.array([0, 1], a.type)))


SURFACES = ("feed", "discovery", "messaging")
_s, _f, _i = pa.string(), pa.float64(), pa.int64()
_binary: dict[str, Any] = {"bad": _not_binary, "expected": "0 or 1"}
_money: dict[str, Any] = {"bad": lambda a: pc.or_(_negative(a), _not_finite(a)), "expected": "a finite amount >= 0"}

IMPRESSIONS = Contract(
    "IMPRESSIONS",
    (
        Column("impression_id", _s, required=True, nullable=False),
        Column("request_id", _s, required=True, nullable=False),
        Column("slot", pa.int32(), bad=_negative, expected="a slot number >= 0"),
        Column("user_id", _s),
        Column("ts", pa.timestamp("us", "UTC")),
        Column("surface", _s, bad=_one_of(*SURFACES), expected=" | ".join(SURFACES)),
        Column("ad_id", _s, required=True, nullable=False),
        Column("advertiser_id", _s),
        Column("candidates", pa.list_(_s)),
        Column("propensity", _f, bad=_not_propensity, expected="a logged probability in (0, 1], or null if unknown"),
        Column("policy_id", _s),
        Column("bid", _f, **_money),
        Column("price_paid", _f, **_money),
        Column("mechanism", _s),
        Column("currency", _s),
        Column("click", pa.int8(), **_binary),
        Column("dwell_ms", _f, bad=_negative, expected="milliseconds >= 0"),
        Column("conversion", pa.int8(), **_binary),
        Column("value", _f),
        Column("hide", pa.int8(), **_binary),
        Column("experiment_id", _s),
        Column("arm_id", _s),
        Column("group_id", _s),
        Column("weight", _f, **_money),
        Column("trials", _i, bad=_negative, expected="a count >= 0"),
        Column("successes", _i, bad=_negative, expected="a count >= 0"),
    ),
    rules=(
        (("trials", "successes"), lambda t, s: pc.greater(s, t), "successes", "at most as many successes as trials"),
        (("trials", "click"), lambda t, c: pc.and_(pc.equal(t, 0), pc.equal(c, 1)), "click", "no click without trials"),
    ),
)

ADS = Contract(
    "ADS",
    (
        Column("ad_id", _s, required=True, nullable=False),
        Column("advertiser_id", _s),
        Column("campaign_id", _s),
        Column("title", _s, required=True, nullable=False),
        Column("body", _s),
        Column("category", _s),
        Column("image_id", _s),
        Column("landing", _s),
        Column("bid", _f, **_money),
        Column("budget", _f, **_money),
        Column("created", pa.timestamp("us", "UTC")),
        Column("content_hash", _s, required=True, nullable=False),
    ),
)

CONTENT = Contract(
    "CONTENT",
    (
        Column("content_hash", _s, required=True, nullable=False),
        Column("model_id", _s, required=True, nullable=False),
        Column("model_revision", _s, required=True, nullable=False),
        Column("pooling", _s, required=True, nullable=False),
        Column("dim", pa.int32(), required=True, nullable=False, bad=_negative, expected="a dimension >= 0"),
        # A fixed-size list of float16; its length is the row's `dim`, so the width is checked by the store.
        Column("vector", pa.null(), required=True, nullable=False),
        Column("tokens", pa.int32(), required=True, nullable=False, bad=_negative, expected="a count >= 0"),
    ),
)

SCORES = Contract(
    "SCORES",
    (
        Column("request_id", _s, required=True, nullable=False),
        Column("user_id", _s),
        Column("ad_id", _s, required=True, nullable=False),
        Column("p_click", _f, required=True, nullable=False, bad=_outside_unit, expected="a probability in [0, 1]"),
        Column("p_engage", _f, bad=_outside_unit, expected="a probability in [0, 1]"),
        Column("p_convert", _f, bad=_outside_unit, expected="a probability in [0, 1]"),
        Column("expected_value", _f),
        Column("model_id", _s, required=True, nullable=False),
        Column("scored_at", pa.timestamp("us", "UTC"), required=True, nullable=False),
    ),
)

POLICY = Contract(
    "POLICY",
    (
        Column("request_id", _s, required=True, nullable=False),
        Column("slot", pa.int32(), required=True, nullable=False, bad=_negative, expected="a slot number >= 0"),
        Column("ad_id", _s, required=True, nullable=False),
        Column("probability", _f, required=True, nullable=False, bad=_outside_unit, expected="a probability in [0, 1]"),
        # What the arm's own model expects of showing this ad in this slot: the outcome model of doubly robust
        # estimation. Optional: without it the estimators that need one are left out.
        Column("expected_click", _f, bad=_outside_unit, expected="a probability in [0, 1]"),
        Column("price_per_click", _f, **_money),
        Column("bid", _f, **_money),  # taken as what a click is worth to the advertiser
    ),
)

_time = pa.timestamp("us", "UTC")
# FOCUS 1.2's mandatory columns; those that the specification lets be null are nullable here. What a value may be,
# and how columns hang together, is checked by recsys.ledger.focus.
_FOCUS_NULLABLE = ("BillingAccountName", "ChargeClass", "ChargeDescription", "PricingQuantity", "PricingUnit")
COSTS = Contract(
    "COSTS",
    tuple(
        Column(n, t, required=True, nullable=n in _FOCUS_NULLABLE)
        for n, t in (
            ("BilledCost", _f), ("BillingAccountId", _s), ("BillingAccountName", _s), ("BillingCurrency", _s),
            ("BillingPeriodStart", _time), ("BillingPeriodEnd", _time), ("ChargeCategory", _s), ("ChargeClass", _s),
            ("ChargeDescription", _s), ("ChargePeriodStart", _time), ("ChargePeriodEnd", _time),
            ("ContractedCost", _f), ("EffectiveCost", _f), ("InvoiceIssuerName", _s), ("ListCost", _f),
            ("PricingQuantity", _f), ("PricingUnit", _s), ("ProviderName", _s), ("PublisherName", _s),
            ("ServiceCategory", _s), ("ServiceName", _s),
        )
    )
    + tuple(
        Column(n, t)
        for n, t in (
            ("ListUnitPrice", _f), ("ConsumedQuantity", _f), ("ConsumedUnit", _s), ("PricingCategory", _s),
            ("SkuId", _s), ("SkuPriceId", _s), ("SkuPriceDetails", _s), ("RegionId", _s), ("ResourceId", _s),
            ("Tags", _s), ("x_ModelId", _s), ("x_ModelRevision", _s), ("x_Stage", _s), ("x_TokensIn", _i),
            ("x_TokensOut", _i), ("x_Seconds", _f), ("x_Device", _s), ("x_GpuSeconds", _f), ("x_MFU", _f),
            ("x_Flops", _f), ("x_Bytes", _i),
            ("x_BatchSize", _i), ("x_CacheHit", pa.bool_()), ("x_FeatureSetId", _s), ("x_ExperimentId", _s),
            ("x_ArmId", _s), ("x_PriceSource", _s), ("x_PriceAsOf", _s), ("x_AmortisationRule", _s),
            ("x_CostLow", _f), ("x_CostHigh", _f), ("x_IsEstimated", pa.bool_()),
        )
    ),
)


def _first_true(mask: Any) -> int | None:
    # index() returns -1 where nothing is found; nulls (a null value, checked elsewhere) never count as bad.
    at = pc.index(pc.fill_null(mask, False), True).as_py()
    return None if at < 0 else int(at)


def _cast(column: Any, want: Column, file: str | Path | None, offset: int) -> Any:
    if column.type == want.type or pa.types.is_null(want.type):
        return column
    try:
        return column.cast(want.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        row, got = _first_uncastable(column, want.type)
        raise InputError("wrong type", file=file, column=want.name, row=None if row is None else row + offset,
                         got=got, expected=str(want.type)) from None


def _first_uncastable(column: Any, want: pa.DataType) -> tuple[int | None, object]:
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not (text or pa.types.is_floating(column.type)):
        return None, str(column.type)
    low, high = 0, len(column)
    while high - low > 1:  # the prefix [0, low) is known to cast, [0, high) is known not to
        middle = (low + high) // 2
        try:
            column.slice(0, middle).cast(want)
            low = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            high = middle
    return low, column[low].as_py()


def validate(table: pa.Table, contract: Contract, file: str | Path | None = None, row_offset: int = 0) -> pa.Table:
    """Check a table against a contract and cast its columns to the contract's types.

    Args:
        table: the rows; columns outside the contract pass through unchanged.
        contract: what it must satisfy.
        file: named in the error.
        row_offset: row number of the table's first row within ``file``, for batch-wise reading.

    Returns:
        The table with contract columns cast to contract types, column order unchanged.

    Raises:
        InputError: the first violation, with file, column, row, got and expected.
    """
    for want in contract.columns:
        if want.name not in table.column_names:
            if want.required:
                raise InputError("missing column", file=file, column=want.name,
                                 got=sorted(table.column_names), expected=f"{want.type} ({contract.name})")
            continue
        at = table.column_names.index(want.name)
        column = _cast(table.column(at), want, file, row_offset)
        if not want.nullable and column.null_count:
            row = _first_true(pc.is_null(column))
            raise InputError("null value", file=file, column=want.name, row=None if row is None else row + row_offset,
                             got="null", expected=f"a {want.type}")
        if want.bad is not None and (row := _first_true(want.bad(column))) is not None:
            raise InputError("value not allowed", file=file, column=want.name, row=row + row_offset,
                             got=column[row].as_py(), expected=want.expected)
        table = table.set_column(at, pa.field(want.name, column.type, want.nullable), column)
    for names, bad, blame, expected in contract.rules:
        if all(n in table.column_names for n in names):
            row = _first_true(bad(*(table.column(n) for n in names)))
            if row is not None:
                got = {n: table.column(n)[row].as_py() for n in names}
                raise InputError("value not allowed", file=file, column=blame, row=row + row_offset, got=got,
                                 expected=expected)
    return table


def open_parquet(path: str | Path, dictionaries: Iterable[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file (a path or an address that :mod:`recsys.storage` knows).

    String columns named in ``dictionaries`` are read as dictionary-encoded as the file has them: without making every
    row's string.

    A missing, empty, truncated or foreign file is one clear :class:`InputError`.
    """
    if not is_url(path) and Path(path).is_dir():
        raise InputError("not a file", file=path, got="a folder", expected="a Parquet file")
    size = file_size(path)
    if size is None:
        raise InputError("no such file", file=path, expected="a Parquet file")
    if size == 0:
        raise InputError("empty file", file=path, got="0 bytes", expected="a Parquet file")
    try:
        # An object store answers slowly but in bulk: the columns of a row group are asked for together.
        source, remote = (open_input(path), True) if is_url(path) else (path, False)
        file = pq.ParquetFile(source, pre_buffer=remote)
        if coded := [n for n in dictionaries if n in file.schema_arrow.names]:
            file = pq.ParquetFile(source, pre_buffer=remote, metadata=file.metadata, read_dictionary=coded)
        return file
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError("not a readable Parquet file (truncated or of another format)", file=path,
                         got=str(error).splitlines()[0], expected="a complete Parquet file") from None


def read_parquet(path: str | Path, contract: Contract | None = None, columns: list[str] | None = None) -> pa.Table:
    """Read a whole Parquet file and, where a contract is given, validate it.

    Raises:
        InputError: the file is missing, empty, truncated, has no rows, or breaks the contract.
    """
    file = open_parquet(path)
    try:
        table = file.read(columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError("damaged Parquet file", file=path, got=str(error).splitlines()[0],
                         expected="a complete Parquet file") from None
    if table.num_rows == 0:
        raise InputError("no rows", file=path, got="0 rows", expected="at least one row")
    return table if contract is None else validate(table, contract, path)


def iter_parquet(path: str | Path, contract: Contract | None = None, columns: list[str] | None = None,
                 batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Stream a Parquet file as validated tables of at most ``batch_rows`` rows."""
    file, offset = open_parquet(path), 0
    for batch in file.iter_batches(batch_size=batch_rows, columns=columns):
        table = pa.Table.from_batches([batch])
        yield table if contract is None else validate(table, contract, path, offset)
        offset += table.num_rows
