"""Train and test parts of a prepared dataset, and the audit that they share no story.

Every split is deterministic: units (requests, users, stories) are ordered by a keyed hash of their id
and the seed, or by time, and the test part is cut off that order. Units are never cut in two.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.config import ExperimentConfig, ShareSplit
from recsys.contracts import iter_parquet
from recsys.datasets.audit import audit_split
from recsys.datasets.info import DATASET_FILE, DatasetInfo, load_dataset_info
from recsys.datasets.prepare import prepare
from recsys.datasets.stories import story_ids
from recsys.errors import InputError, Refused
from recsys.log import log
from recsys.row_groups import ROWS, RowGroupWriter
from recsys.stage import Stage, read_manifest, run_stage, write_json

UNITS = {"time": "request_id", "row": "request_id", "user": "user_id", "story": "group_id"}


def prepare_split(config: ExperimentConfig, out: str | Path, data_home: str | Path | None = None) -> dict[str, Any]:
    """Prepare the experiment's data into ``out/data`` and split it into ``out/split``.

    A ``files`` split prepares the test file into ``out/data_test`` with the same recipe.

    Args:
        config: the experiment; ``data``, ``split`` and ``seed`` count.
        out: the experiment's folder.
        data_home: folder of raw files; default: the experiment's, then RECSYS_DATA_HOME.

    Returns:
        The manifest of ``out/split``.

    Raises:
        InputError: bad raw data, or nothing left on one side.
        Refused: the split would put a story on both sides.
    """
    out, home, data = Path(out), data_home or config.data.home, config.data
    split, params = config.split, data.simulate or None
    if isinstance(split, ShareSplit):
        prepare(data.recipe, out / "data", data_home=home, params=params, seed=config.seed)
        return split_dataset(out / "data", split, config.seed, out / "split")
    files = {"impressions": split.train} if split.train else None
    prepare(data.recipe, out / "data_test", data_home=home, files={"impressions": split.test}, seed=config.seed)
    prepare(data.recipe, out / "data", data_home=home, files=files, params=params, seed=config.seed)
    return split_files(out / "data", out / "data_test", out / "split")


def split_dataset(prepared: str | Path, split: ShareSplit, seed: int, out: str | Path) -> dict[str, Any]:
    """Split one prepared dataset by time, story, user or row.

    Args:
        prepared: folder of a prepared dataset.
        split: kind and share of the units (requests, users, stories) that are held out.
        seed: of the order of the units.
        out: output folder: train.parquet, test.parquet, ads.parquet, dataset.json, audit.json, truth/.

    Returns:
        The stage's manifest.
    """
    source = _finished(prepared)

    def build(stage: Stage) -> None:
        info = load_dataset_info(source)
        held_out = _test_mask(source, info, split, seed)
        _write_parts(source / "impressions.parquet", stage, held_out)
        audit = audit_split(stage.folder, info, {"kind": split.kind, "test_share": split.test_share, "seed": seed})
        _finish(stage, source, audit)

    config = {"split": split.model_dump(mode="json"), "seed": seed}
    return run_stage("split", out, config=config, inputs={"data": source}, build=build)


def split_files(train: str | Path, test: str | Path, out: str | Path) -> dict[str, Any]:
    """Train on one prepared dataset and test on another of the same recipe.

    Where the recipe has stories, they are computed over both files together; training rows whose story
    reaches into the test file are dropped, and the test file is kept whole.

    Raises:
        InputError: the two differ in their columns, or nothing is left to train on.
        Refused: both are the same raw file.
    """
    sources = {"train": _finished(train), "test": _finished(test)}
    raw = [(read_manifest(p) or {}).get("inputs", {}).get("impressions") for p in sources.values()]
    if raw[0] is not None and raw[0] == raw[1]:
        raise Refused("the training file and the test file are the same file: a score on it says nothing about unseen "
                      "data; name another file under split.test, or hold out a share (split: {kind: story | time})")
    return run_stage("split", out, config={"split": {"kind": "files"}}, inputs=dict(sources),
                     build=lambda stage: _build_files(sources["train"], sources["test"], stage))


def _build_files(train: Path, test: Path, stage: Stage) -> None:
    info = load_dataset_info(train)
    dropped: dict[str, Any] = {"rows": 0}
    schema = pq.read_schema(train / "impressions.parquet")
    if not schema.equals(pq.read_schema(test / "impressions.parquet")):
        raise InputError("the test file has other columns than the training file", file=test,
                         got=pq.read_schema(test / "impressions.parquet").names, expected=str(schema.names))
    if info.stories:
        left, right = (pq.read_table(p / "impressions.parquet") for p in (train, test))
        both = pa.concat_tables([left, right])
        stories = story_ids(both.column("group_id"), both.column("ad_id"))
        both = both.set_column(both.column_names.index("group_id"), "group_id", stories).cast(schema)
        left, right = both.slice(0, left.num_rows), both.slice(left.num_rows)
        shared = pc.is_in(left.column("group_id"), value_set=right.column("group_id").combine_chunks())
        kept = left.filter(pc.invert(shared))
        if not kept.num_rows:
            raise InputError("every training row shares a story with the test file", file=train, got="0 rows left",
                             expected="a training file of other tests")
        dropped = {"rows": left.num_rows - kept.num_rows, "side": "train", "why": "shares a story with the test file",
                   "groups": pc.count_distinct(left.filter(shared).column("group_id")).as_py()}
        pq.write_table(kept, stage.path("train.parquet"), row_group_size=ROWS)
        pq.write_table(right, stage.path("test.parquet"), row_group_size=ROWS)
    else:
        shutil.copyfile(train / "impressions.parquet", stage.path("train.parquet"))
        shutil.copyfile(test / "impressions.parquet", stage.path("test.parquet"))
    _finish(stage, train, audit_split(stage.folder, info, {"kind": "files"}, dropped), test)


def _finished(folder: str | Path) -> Path:
    folder = Path(folder)
    if read_manifest(folder) is None:
        raise InputError("not a prepared dataset", file=folder, expected="a folder that recsys prepare wrote")
    return folder


def _test_mask(source: Path, info: DatasetInfo, split: ShareSplit, seed: int) -> np.ndarray:
    """Boolean [rows]: true where a row belongs to the test part."""
    file = source / "impressions.parquet"
    names = pq.read_schema(file).names
    unit = UNITS[split.kind]
    for name in [unit, "ts"] if split.kind == "time" else [unit]:
        if name not in names:
            raise InputError(f"a split by {split.kind} needs this column", file=file, column=name, got=sorted(names),
                             expected="a recipe that makes it, or another kind of split")
    table = pq.read_table(file, columns=[unit, "ts"] if split.kind == "time" else [unit])
    for name in table.column_names:
        if table.column(name).null_count:
            row = pc.index(pc.is_null(table.column(name)), True).as_py()
            raise InputError(f"a split by {split.kind} needs a value in every row", file=file, column=name, row=row,
                             got="null")
    codes = table.column(unit).combine_chunks().dictionary_encode()
    ids, index = codes.dictionary, codes.indices.to_numpy(zero_copy_only=False)
    wanted = round(split.test_share * len(ids))
    if split.kind == "time":
        first = np.full(len(ids), np.iinfo(np.int64).max)
        np.minimum.at(first, index, table.column("ts").cast(pa.int64()).to_numpy())
        cut = np.sort(first)[min(max(len(ids) - wanted, 0), len(ids) - 1)]
        held_out = first >= cut  # requests of the same instant stay together
    else:
        held_out = np.zeros(len(ids), bool)
        held_out[np.argsort(_hashes(ids, seed), kind="stable")[: max(wanted, 1)]] = True
    if held_out.all() or not held_out.any():
        raise InputError(f"too few {unit} to hold out a share", file=file, column=unit, got=f"{len(ids)} distinct",
                         expected="at least one on each side of the split")
    return held_out[index]


def _hashes(ids: pa.Array, seed: int) -> np.ndarray:
    """Keyed 64-bit hashes (BLAKE2b) of strings [N]; a million at a time, because Python strings are large."""
    key, parts = str(seed).encode(), [b""]
    for start in range(0, len(ids), 1 << 20):
        texts = ids.slice(start, 1 << 20).to_pylist()
        parts.append(b"".join(hashlib.blake2b(t.encode(), digest_size=8, key=key).digest() for t in texts))
    return np.frombuffer(b"".join(parts), ">u8")


def _write_parts(file: Path, stage: Stage, held_out: np.ndarray) -> None:
    schema = pq.read_schema(file)
    offset = 0
    with (RowGroupWriter(stage.path("train.parquet"), schema) as train,
          RowGroupWriter(stage.path("test.parquet"), schema) as test):
        for table in iter_parquet(file, batch_rows=131_072):
            mask = held_out[offset : offset + table.num_rows]
            offset += table.num_rows
            for writer, rows in ((train, ~mask), (test, mask)):
                if rows.any():
                    writer.write(table.filter(pa.array(rows)))


def _used(ads: pa.Table, folder: Path) -> pa.Table:
    """The ads that occur in a part: texts of dropped rows would be embedded, and paid for, in vain."""
    parts = [folder / "train.parquet", folder / "test.parquet"]
    if "candidates" in pq.read_schema(parts[0]).names:
        return ads  # candidates that were never shown are scored, too
    used = pa.concat_tables([pq.read_table(p, columns=["ad_id"]) for p in parts])["ad_id"].unique()
    return ads.filter(pc.is_in(ads["ad_id"], value_set=used))


def _finish(stage: Stage, source: Path, audit: dict[str, Any], second: Path | None = None) -> None:
    """Ads, truth and descriptions beside the two parts."""
    write_json(stage.path("audit.json"), audit)
    shutil.copyfile(source / DATASET_FILE, stage.path(DATASET_FILE))
    if (source / "truth").is_dir():
        shutil.copytree(source / "truth", stage.folder / "truth")
    if (source / "ads.parquet").is_file():
        ads = pq.read_table(source / "ads.parquet")
        if second is not None:
            more = pq.read_table(second / "ads.parquet")
            new = pc.invert(pc.is_in(more.column("ad_id"), value_set=ads.column("ad_id").combine_chunks()))
            ads = pa.concat_tables([ads, more.filter(new)])
        ads = _used(ads, stage.folder)
        pq.write_table(ads, stage.path("ads.parquet"))
        stage.rows["ads"] = ads.num_rows
    stage.rows.update(train=audit["rows"]["train"], test=audit["rows"]["test"])
    stage.facts["audit"] = audit
    log.info("split %s: %s training rows, %s test rows, %s dropped", audit["kind"], f"{stage.rows['train']:,}",
             f"{stage.rows['test']:,}", f"{audit['dropped']['rows']:,}")
