"""Which rows of a split dataset train, and what they are labelled with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.info import Label
from recsys.errors import InputError
from recsys.features.encoders import require_columns
from recsys.features.integers import hash_integers
from recsys.features.vocabulary import as_strings, flatten, stable_hash

GROUPS = ("group_id", "request_id")
IDENTITY = "impression_id"


def validation_mask(table: pa.Table, share: float) -> np.ndarray:
    """True for rows whose group (group_id, or else request_id) hashes into the validation share.

    Whole groups go to one side, and the same group always to the same side, whatever the seed.
    """
    if share <= 0:
        return np.zeros(table.num_rows, bool)
    ids = [as_strings(flatten(table[n]), n) for n in GROUPS if n in table.column_names]
    if not ids:
        raise InputError("missing column", column=GROUPS[1], got=sorted(table.column_names),
                         expected="a group to cut the validation slice by")
    group = ids[0] if len(ids) == 1 else pc.if_else(pc.equal(ids[0], ""), ids[1], ids[0])
    salted = pc.binary_join_element_wise("validation", group, ":")
    return np.asarray(stable_hash(salted) < np.uint64(share * 2**64))


def read_labels(table: pa.Table, labels: Sequence[Label], file: str | Path,
                offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Trials and successes, float32 [n, heads]; a null label is no trial.

    Raises:
        InputError: a missing column, a label that is not 0 or 1, more successes than trials.
    """
    trials = np.zeros((table.num_rows, len(labels)), np.float32)
    successes = np.zeros_like(trials)
    for head, label in enumerate(labels):
        if label.kind == "binary":
            require_columns(table, [str(label.column)], file)
            value = read_counts(table, str(label.column), file)
            trials[:, head] = ~np.isnan(value)
            successes[:, head] = np.nan_to_num(value, posinf=np.inf, neginf=-np.inf)
            bad, blame = (successes[:, head] != 0) & (successes[:, head] != 1), label.column
        else:
            require_columns(table, [str(label.trials), str(label.successes)], file)
            trials[:, head] = np.nan_to_num(read_counts(table, str(label.trials), file))
            successes[:, head] = np.nan_to_num(read_counts(table, str(label.successes), file))
            bad, blame = (successes[:, head] > trials[:, head]) | (successes[:, head] < 0), label.successes
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise InputError("value not allowed", file=file, column=blame, row=at + offset,
                             got=float(successes[at, head]), expected="0 or 1" if label.kind == "binary"
                             else f"between 0 and the row's trials ({trials[at, head]:.0f})")
    return trials, successes


def read_counts(table: pa.Table, name: str, file: str | Path) -> np.ndarray:
    """A numeric column as float64 [n], NaN where null."""
    try:
        column = flatten(table[name]).cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError("wrong type", file=file, column=name, got=str(table[name].type),
                         expected="a numeric label") from None
    return np.asarray(column.to_numpy(zero_copy_only=False))


def sampling_mask(table: pa.Table, successes: np.ndarray, keep: float, offset: int) -> np.ndarray:
    """False for success-free rows that are left out of training.

    A row is kept or not by a hash of its impression_id or, where the data have none, of its number in the file: the
    same rows in every epoch and every run.

    Args:
        table: n rows.
        successes: [n, heads].
        keep: share of the success-free rows that are kept.
        offset: number of the table's first row within the file.
    """
    if keep >= 1:
        return np.ones(table.num_rows, bool)
    if IDENTITY in table.column_names:
        names = as_strings(flatten(table[IDENTITY]), IDENTITY)
        hashes = stable_hash(pc.binary_join_element_wise("negatives", names, ":"))
    else:
        hashes = hash_integers(np.arange(offset, offset + table.num_rows))
    return np.asarray((successes > 0).any(axis=1) | (hashes < np.uint64(keep * 2**64)))
