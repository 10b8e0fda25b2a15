"""A split dataset to streams of encoded, labelled rows; the validation slice is cut from the training part.

Nothing as long as the data is kept, in memory or on disk: the training rows are read once to fit the encoder, and
again in every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import ModelConfig, TrainingConfig
from recsys.datasets.info import DatasetInfo, Label, load_dataset_info
from recsys.errors import InputError
from recsys.features.batches import Prefetch
from recsys.features.encoders import AD_TABLE, FeatureEncoder, Fit, require_columns, shifted
from recsys.features.vocabulary import as_strings, flatten
from recsys.storage import join
from recsys.training.labels import read_labels
from recsys.training.source import GroupReader, ParquetSource, Selection, label_columns


@dataclass(frozen=True)
class TrainingData:
    """What the loop reads.

    Attributes:
        encoder: fitted on the training rows.
        train, validation, test: the rows that train, the slice held out of the training part, and the test part (None
            where it is withheld).
        base_rates: successes / trials of each head over the rows that train.
        failure_keep: share of each head's failures that ``negative_keep`` left; 1 without it.
    """

    encoder: FeatureEncoder
    train: ParquetSource
    validation: ParquetSource | None
    test: ParquetSource | None
    base_rates: tuple[float, ...]
    failure_keep: tuple[float, ...]

    @property
    def keys(self) -> list[str]:
        """Feature names of the batches' KeyedJaggedTensor."""
        return self.encoder.keys


def load_training_data(split_dir: str | Path, model: ModelConfig, training: TrainingConfig,
                       content_ids: list[str] | None = None,
                       content_values: Mapping[str, pa.Array] | None = None, test: bool = True) -> TrainingData:
    """Fit the encoder in one pass over the training rows, and look both parts over before anything is trained.

    Args:
        split_dir: path or address of a folder with train.parquet, test.parquet and dataset.json.
        model: feature settings and heads.
        training: ``validation_share`` and ``negative_keep``.
        content_ids: ads with a content vector, in the order of the content matrix from row 1.
        content_values: sparse features that follow from an ad's content, aligned to ``content_ids``.
        test: False: test.parquet is not opened, and need not be there.

    Raises:
        InputError: missing files or columns, wrong types, bad labels, ids out of range, no rows.
    """
    info, labels = load_dataset_info(split_dir), training_labels(split_dir, model)
    files = {part: join(split_dir, f"{part}.parquet") for part in ("train", "test")}
    train, held_out = (Selection(part, training.validation_share, training.negative_keep)
                       for part in ("training", "validation"))
    fit = Fit(dense=info.dense, sparse=info.sparse, sequence=info.sequence, id_rows=info.id_rows,
              min_count=model.min_count, hash_buckets=model.hash_buckets, content_ids=content_ids,
              content_values=content_values, file=files["train"],
              history_length=model.history_length if model.history == "attention" else 0)
    everything = Selection("training", training.validation_share)
    sums, failures = np.zeros((2, len(labels))), np.zeros(len(labels))
    counts: dict[str, list[int]] = {"train": [], "validation": []}
    reader = GroupReader(files["train"], [*fit.columns, *label_columns(labels), *train.columns], info.sparse)
    with Prefetch(reader.__iter__, 1, "fit") as tables:
        for table, offset in tables:
            trials, successes = read_labels(table, labels, files["train"], offset)
            mask = train.mask(table, successes, offset)
            counts["train"].append(int(mask.sum()))
            counts["validation"].append(int(held_out.mask(table, successes, offset).sum())
                                        if training.validation_share else 0)
            with shifted(np.flatnonzero(mask) + offset):
                fit.add(table if mask.all() else table.filter(pa.array(mask)))
            sums += trials[mask].sum(0, np.float64), successes[mask].sum(0, np.float64)
            unsampled = mask if training.negative_keep == 1 else everything.mask(table, successes, offset)
            failures += (trials - successes)[unsampled].sum(0, np.float64)
    if not sum(counts["train"]) or (sums[0] <= 0).any():
        raise InputError("no labelled training rows", file=files["train"], got=f"{sum(counts['train'])} rows",
                         expected="rows with a label, besides the validation slice")
    encoder = fit.encoder()
    look_over(files["train"], encoder, labels, with_values=False)

    def source(part: str, selection: Selection, found: list[int]) -> ParquetSource:
        return ParquetSource(files[part], encoder, labels, selection, np.arange(len(found)),
                             np.array(found, np.int64), people=selection.part != "training")

    tested = None
    if test:
        look_over(files["test"], encoder, labels, with_values=True)
        tested = source("test", Selection(), np.diff(GroupReader(files["test"], []).offsets).tolist())
    return TrainingData(encoder, source("train", train, counts["train"]),
                        source("train", held_out, counts["validation"]) if sum(counts["validation"]) else None,
                        tested, tuple(float(r) for r in sums[1] / sums[0]),
                        tuple(float(k) if k > 0 else 1.0 for k in (sums[0] - sums[1]) / np.maximum(failures, 1e-12)))


def training_labels(split_dir: str | Path, model: ModelConfig) -> tuple[Label, ...]:
    """The label of each head.

    Raises:
        InputError: dataset.json has none for a head.
    """
    info = load_dataset_info(split_dir)
    return tuple(_label(info, head, split_dir) for head in model.heads)


def look_over(file: str | Path, encoder: FeatureEncoder, labels: tuple[Label, ...], with_values: bool) -> None:
    """Refuse what encoding would refuse, before hours are spent on training.

    Ids that are rows (and, ``with_values``, labels and numbers) are checked in every row group: by its statistics
    where it has them and they are good, else by reading those columns.

    Raises:
        InputError: as of :meth:`FeatureEncoder.encode` and of reading labels.
    """
    ids = {n: encoder.tables[n].rows for n in encoder.sparse
           if n not in encoder.of_content and encoder.tables[n].kind == "identity"}
    numbers = [c.name for c in encoder.dense] if with_values else []
    reader = GroupReader(file, [*ids, *numbers])
    if len(reader.offsets) == 1 or reader.offsets[-1] == 0:
        raise InputError("no rows", file=file, got="0 rows", expected="at least one row")
    nothing = reader.schema.empty_table()
    encoder.encode(nothing, file)  # columns and types
    first = reader.metadata.row_group(0)
    places = {first.column(i).path_in_schema: i for i in range(first.num_columns)}
    part = FeatureEncoder(tuple(c for c in encoder.dense if c.name in numbers), tuple(ids), (),
                          {n: encoder.tables[n] for n in ids})
    for group in range(len(reader.offsets) - 1):
        if not all(_within(reader, group, places.get(n), (0, rows - 1)) for n, rows in ids.items()) \
                or not all(_within(reader, group, places.get(n), None) for n in numbers):
            table, offset = reader.read(group)
            part.encode(table, file, offset)
    if with_values:
        for table, offset in GroupReader(file, label_columns(labels)):
            read_labels(table, labels, file, offset)


def _within(reader: GroupReader, group: int, place: int | None, limits: tuple[float, float] | None) -> bool:
    """Whether statistics prove a row group's column good: integers within limits and no null, or numbers all finite."""
    if place is None:
        return False
    found = reader.metadata.row_group(group).column(place).statistics
    if found is None or not found.has_min_max:
        return False
    if limits is None:
        return bool(np.isfinite(float(found.min)) and np.isfinite(float(found.max)))
    whole = isinstance(found.min, int) and found.has_null_count and found.null_count == 0
    return bool(whole and limits[0] <= found.min and found.max <= limits[1])


def _label(info: DatasetInfo, head: str, split_dir: str | Path) -> Label:
    if head not in info.label:
        raise InputError("no label for this head", file=join(split_dir, "dataset.json"), column=f"label.{head}",
                         got=sorted(info.label), expected=head)
    return info.label[head]


def training_ad_ids(split_dir: str | Path) -> set[str]:
    """Ads shown in the training part: those that a content transform may be fitted on."""
    found: set[str] = set()
    path = join(split_dir, "train.parquet")
    for table, _ in GroupReader(path, [AD_TABLE]):
        require_columns(table, [AD_TABLE], path)
        found.update(pc.unique(as_strings(flatten(table[AD_TABLE]), AD_TABLE, path)).to_pylist())
    return found
