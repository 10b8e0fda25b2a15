"""A split dataset to encoded, labelled rows; the validation slice is cut from the training part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import ModelConfig
from recsys.contracts import iter_parquet
from recsys.datasets.info import DatasetInfo, Label, load_dataset_info
from recsys.errors import InputError
from recsys.features.encoded import Encoded, write_encoded
from recsys.features.encoders import AD_TABLE, FeatureEncoder, require_columns
from recsys.features.vocabulary import as_strings, flatten, stable_hash

_GROUPS = ("group_id", "request_id")


@dataclass(frozen=True)
class TrainingData:
    """What the loop reads.

    Attributes:
        encoder: fitted on the training rows.
        train: all rows of train.parquet; test: all of test.parquet, None where it is withheld.
        training_rows, validation_rows: int64 row numbers of ``train``.
        base_rates: successes / trials of each head over the training rows.
    """

    encoder: FeatureEncoder
    train: Encoded
    test: Encoded | None
    training_rows: np.ndarray
    validation_rows: np.ndarray
    base_rates: tuple[float, ...]

    @property
    def keys(self) -> list[str]:
        """Feature names of the batches' KeyedJaggedTensor."""
        return [*self.encoder.sparse, *self.encoder.sequence]


def validation_mask(table: pa.Table, share: float) -> np.ndarray:
    """True for rows whose group (group_id, or else request_id) hashes into the validation share.

    Whole groups go to one side, and the same group always to the same side, whatever the seed.
    """
    if share <= 0:
        return np.zeros(table.num_rows, bool)
    ids = [as_strings(flatten(table[n]), n) for n in _GROUPS if n in table.column_names]
    if not ids:
        raise InputError("missing column", column=_GROUPS[1], got=sorted(table.column_names),
                         expected="a group to cut the validation slice by")
    group = ids[0] if len(ids) == 1 else pc.if_else(pc.equal(ids[0], ""), ids[1], ids[0])
    salted = pc.binary_join_element_wise("validation", group, ":")
    return np.asarray(stable_hash(salted) < np.uint64(share * 2**64))


def read_labels(table: pa.Table, labels: list[Label], file: Path, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Trials and successes, float32 [n, heads]; a null label is no trial.

    Raises:
        InputError: a missing column, a label that is not 0 or 1, more successes than trials.
    """
    trials = np.zeros((table.num_rows, len(labels)), np.float32)
    successes = np.zeros_like(trials)
    for head, label in enumerate(labels):
        if label.kind == "binary":
            require_columns(table, [str(label.column)], file)
            value = _counts(table, str(label.column), file)
            trials[:, head] = ~np.isnan(value)
            successes[:, head] = np.nan_to_num(value)
            bad, blame = (successes[:, head] != 0) & (successes[:, head] != 1), label.column
        else:
            require_columns(table, [str(label.trials), str(label.successes)], file)
            trials[:, head] = np.nan_to_num(_counts(table, str(label.trials), file))
            successes[:, head] = np.nan_to_num(_counts(table, str(label.successes), file))
            bad, blame = (successes[:, head] > trials[:, head]) | (successes[:, head] < 0), label.successes
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise InputError("value not allowed", file=file, column=blame, row=at + offset,
                             got=float(successes[at, head]), expected="0 or 1" if label.kind == "binary"
                             else f"between 0 and the row's trials ({trials[at, head]:.0f})")
    return trials, successes


def _counts(table: pa.Table, name: str, file: Path) -> np.ndarray:
    try:
        column = flatten(table[name]).cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError("wrong type", file=file, column=name, got=str(table[name].type),
                         expected="a numeric label") from None
    return np.asarray(column.to_numpy(zero_copy_only=False))


def load_training_data(split_dir: Path, model: ModelConfig, validation_share: float, scratch: Path,
                       content_ids: list[str] | None = None,
                       content_values: Mapping[str, pa.Array] | None = None, test: bool = True) -> TrainingData:
    """Fit the encoder on the training rows and encode both parts into ``scratch``.

    Args:
        split_dir: holds train.parquet, test.parquet, dataset.json.
        model: feature settings and heads.
        validation_share: share of the training part that is kept out of training.
        scratch: folder for the encoded arrays.
        content_ids: ads with a content vector, in the order of the content matrix from row 1.
        content_values: sparse features that follow from an ad's content, aligned to ``content_ids``.
        test: False: test.parquet is not opened, and need not be there.

    Raises:
        InputError: missing files or columns, wrong types, bad labels, no rows.
    """
    info = load_dataset_info(split_dir)
    labels = [_label(info, head, split_dir) for head in model.heads]
    columns = dict.fromkeys([*info.dense, *info.sparse, *info.sequence, *_GROUPS, AD_TABLE, "weight"])
    for label in labels:
        columns |= dict.fromkeys(str(c) for c in (label.column, label.trials, label.successes) if c)
    paths = {part: split_dir / f"{part}.parquet" for part in (("train", "test") if test else ("train",))}
    masks: list[np.ndarray] = []

    def training_rows() -> Iterator[pa.Table]:
        for table in iter_parquet(paths["train"], columns=list(columns)):
            masks.append(validation_mask(table, validation_share))
            yield table.filter(pa.array(~masks[-1]))

    encoder = FeatureEncoder.fit(
        training_rows(), dense=info.dense, sparse=info.sparse, sequence=info.sequence, min_count=model.min_count,
        hash_buckets=model.hash_buckets, content_ids=content_ids, content_values=content_values,
        file=paths["train"])
    encoded = {p: write_encoded(_encode(path, encoder, labels, list(columns)), scratch / p)
               for p, path in paths.items()}
    train, mask = encoded["train"], np.concatenate(masks)
    rows = np.flatnonzero(~mask)
    assert train.trials is not None
    assert train.successes is not None
    trials, successes = train.trials[rows].sum(0, np.float64), train.successes[rows].sum(0, np.float64)
    if not len(rows) or (trials <= 0).any():
        raise InputError("no labelled training rows", file=paths["train"], got=f"{len(rows)} rows",
                         expected="rows with a label, besides the validation slice")
    return TrainingData(encoder, train, encoded.get("test"), rows, np.flatnonzero(mask),
                        tuple(float(r) for r in successes / trials))


def _label(info: DatasetInfo, head: str, split_dir: Path) -> Label:
    if head not in info.label:
        raise InputError("no label for this head", file=split_dir / "dataset.json", column=f"label.{head}",
                         got=sorted(info.label), expected=head)
    return info.label[head]


def _encode(path: Path, encoder: FeatureEncoder, labels: list[Label], columns: list[str]) -> Iterator[Encoded]:
    offset = 0
    for table in iter_parquet(path, columns=columns):
        trials, successes = read_labels(table, labels, path, offset)
        weight = None
        if "weight" in table.column_names:
            weight = np.nan_to_num(_counts(table, "weight", path), nan=1.0).astype(np.float32)
        yield replace(encoder.encode(table, path, offset), trials=trials, successes=successes, weight=weight)
        offset += table.num_rows
    if offset == 0:
        raise InputError("no rows", file=path, got="0 rows", expected="at least one row")


def training_ad_ids(split_dir: Path) -> set[str]:
    """Ads shown in the training part: those that a content transform may be fitted on."""
    found: set[str] = set()
    path = split_dir / "train.parquet"
    for table in iter_parquet(path, columns=[AD_TABLE]):
        require_columns(table, [AD_TABLE], path)
        found.update(pc.unique(as_strings(flatten(table[AD_TABLE]), AD_TABLE, path)).to_pylist())
    return found
