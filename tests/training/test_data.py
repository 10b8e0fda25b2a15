from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import ModelConfig, TrainingConfig
from recsys.contracts import SURFACES
from recsys.errors import InputError
from recsys.features.stream import StreamLoader
from recsys.features.vocabulary import stable_hash
from recsys.training.data import TrainingData, load_training_data
from recsys.training.labels import validation_mask
from recsys.training.source import ParquetSource
from tests.training.toy import toy_split

MODEL = ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), min_count=1)


def _load(split: Path, model: ModelConfig = MODEL, **training: object) -> TrainingData:
    return load_training_data(split, model, TrainingConfig(**training))  # type: ignore[arg-type]


def _numbered(split: Path) -> None:
    """Give each row its own number as a numeric feature."""
    for part in ("train", "test"):
        table = pq.read_table(split / f"{part}.parquet")
        table = table.set_column(table.column_names.index("price"), "price", pa.array(np.arange(table.num_rows)))
        pq.write_table(table, split / f"{part}.parquet", row_group_size=300)


def _rows(source: ParquetSource | None) -> list[int]:
    """Row numbers that :func:`_numbered` hid in the numeric feature, in the order of the file."""
    assert source is not None
    column = source.encoder.dense[0]
    with StreamLoader(source, source.encoder.keys, 100).epoch() as batches:
        values = np.concatenate([b.dense[:, 0].numpy() for b in batches])
    return np.expm1(values * column.scale + column.mean).round().astype(int).tolist()


def test_parts_share_no_row_and_miss_none(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=2000)
    _numbered(split)
    data = _load(split, validation_share=0.2)
    table = pq.read_table(split / "train.parquet")
    held_out = np.flatnonzero(validation_mask(table, 0.2)).tolist()
    assert data.validation is not None
    assert data.test is not None
    assert _rows(data.validation) == held_out
    assert _rows(data.train) == sorted(set(range(2000)) - set(held_out))
    assert _rows(data.test) == list(range(1000))
    clicks = np.delete(table["click"].to_numpy(), held_out)
    assert data.base_rates == (pytest.approx(clicks.mean()),)
    assert _load(split, validation_share=0.0).validation is None


@pytest.mark.parametrize("named", [True, False])
def test_only_negatives_are_dropped_and_always_the_same(tmp_path: Path, named: bool) -> None:
    split = toy_split(tmp_path / "split", n=4000)
    _numbered(split)
    if not named:
        table = pq.read_table(split / "train.parquet")
        pq.write_table(table.drop_columns(["impression_id"]), split / "train.parquet", row_group_size=300)
    clicks = pq.read_table(split / "train.parquet")["click"].to_numpy()
    data = _load(split, negative_keep=0.25, validation_share=0.1)
    whole = set(_rows(_load(split, validation_share=0.1).train))
    kept = _rows(data.train)
    assert set(kept) < whole
    assert {r for r in whole if clicks[r]} <= set(kept)
    negatives = sum(clicks[r] == 0 for r in whole)
    assert sum(clicks[r] == 0 for r in kept) / negatives == pytest.approx(0.25, abs=0.03)
    assert kept == _rows(_load(split, negative_keep=0.25, validation_share=0.1).train)
    assert set(kept) < set(_rows(_load(split, negative_keep=0.5, validation_share=0.1).train))
    assert set(_rows(data.validation)) == set(range(4000)) - whole  # the slice stays as it is
    assert data.base_rates == (pytest.approx(clicks[kept].mean()),)


def test_evaluation_streams_tell_user_and_surface(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=300)
    table = pq.read_table(split / "test.parquet")
    surface = pa.array(["messaging", None, "elsewhere", *table["surface"].to_pylist()[3:]])
    table = table.set_column(table.column_names.index("surface"), "surface", surface)
    pq.write_table(table, split / "test.parquet")
    data = _load(split)
    assert data.test is not None
    with StreamLoader(data.test, data.keys, 1000).epoch() as batches:
        batch = next(batches)
    users = stable_hash(table["user_id"].combine_chunks()).view(np.int64)
    assert batch.user.tolist() == users.tolist()
    assert batch.surface[:3].tolist() == [2, -1, -1]
    assert batch.surface[3:].tolist() == [SURFACES.index(s) for s in surface.to_pylist()[3:]]
    with StreamLoader(data.train, data.keys, 1000).epoch() as batches:
        assert next(batches).user is None


def test_integer_users_hash_like_their_text(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=200)
    found = []
    for kind in (pa.int64(), pa.string()):
        table = pq.read_table(split / "test.parquet")
        users = pa.array(np.arange(100) - 50).cast(kind)
        pq.write_table(table.set_column(table.column_names.index("user_id"), "user_id", users), split / "test.parquet")
        found.append(_load(split).test.read(0).user.tolist())  # type: ignore[union-attr]
    assert found[0] == found[1]


def test_histories_become_position_features_for_attention(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=200)
    data = _load(split, MODEL.model_copy(update={"history": "attention", "history_length": 2}))
    assert data.keys == ["ad_id", "user_id", "surface", "history@0", "history@1"]
    assert data.encoder.features["ad_id"] == ("ad_id", "history@0", "history@1")
    pooled = _load(split)
    first = []
    for which in (data, pooled):
        with StreamLoader(which.train, which.keys, 50).epoch() as batches:
            first.append(next(batches).sparse.to_dict())
    a, b = first
    lists = [v.tolist() for v in b["history"].to_dense()]
    assert [v.tolist() for v in a["history@0"].to_dense()] == [x[-1:] for x in lists]
    assert [v.tolist() for v in a["history@1"].to_dense()] == [x[-2:-1] for x in lists]


def test_a_sample_is_spread_over_the_file(tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=3000)
    _numbered(split)
    data = _load(split, validation_share=0.0)
    part = data.train.sample(900)
    rows = _rows(part)
    assert len(rows) == part.rows == 900
    assert (min(rows), max(rows)) == (0, 2999)
    assert data.train.sample(3000) is data.train


def _with_ids(split: Path, ids: dict[str, list], statistics: bool) -> None:
    for part, values in ids.items():
        table = pq.read_table(split / f"{part}.parquet")
        pq.write_table(table.append_column("place", pa.array(values, pa.int64())), split / f"{part}.parquet",
                       row_group_size=70, write_statistics=statistics)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(("part", "value", "message"), [
    ("train", 9, r"train\.parquet, column place, row 150: id out of range; got 9; expected an integer in \[0, 9\)"),
    ("test", -1, r"test\.parquet, column place, row 150: id out of range; got -1; expected an integer in \[0, 9\)"),
    ("test", None, r"test\.parquet, column place, row 150: null id; got 'null'; expected an integer in \[0, 9\)"),
])
def test_ids_out_of_range_are_refused_at_the_door(tmp_path: Path, statistics: bool, part: str, value: int | None,
                                                  message: str) -> None:
    changes = {"sparse": ["ad_id", "place"], "id_rows": {"place": 9}}
    split = toy_split(tmp_path / "split", n=400, **changes)
    good = {"train": [i % 9 for i in range(400)], "test": [i % 9 for i in range(200)]}
    _with_ids(split, good, statistics)
    data = _load(split)
    assert data.encoder.tables["place"].rows == 9
    encoded = data.test.read(0)  # type: ignore[union-attr]
    assert encoded.sparse[:, 1].tolist() == good["test"][:70]
    split = toy_split(tmp_path / "bad", n=400, **changes)
    good[part][150] = value  # type: ignore[call-overload]
    _with_ids(split, good, statistics)
    with pytest.raises(InputError, match=message):
        _load(split)


@pytest.mark.parametrize(("part", "column", "message"), [
    ("train", "price", r"train\.parquet, column price, row 333: value not allowed; got inf"),
    ("test", "price", r"test\.parquet, column price, row 333: value not allowed; got inf"),
    ("test", "click", r"test\.parquet, column click, row 333: value not allowed; got inf; expected 0 or 1"),
])
def test_bad_values_are_refused_with_the_row_of_the_file(tmp_path: Path, part: str, column: str, message: str) -> None:
    split = toy_split(tmp_path / "split", n=1000)
    table = pq.read_table(split / f"{part}.parquet")
    values = table[column].cast(pa.float64()).to_pylist()
    values[333] = float("inf")
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)),
                   split / f"{part}.parquet", row_group_size=100)
    with pytest.raises(InputError, match=message):
        _load(split, validation_share=0.3)  # rows held out before it do not shift the number


def test_id_rows_of_no_feature_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column place: id_rows of a column that is no sparse feature"):
        _load(toy_split(tmp_path / "split", n=100, id_rows={"place": 3}))


def test_a_file_that_breaks_during_training_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys.training import source as module

    monkeypatch.setattr(module, "KEPT_ROWS", 0)  # read anew, as larger data are
    split = toy_split(tmp_path / "split", n=3000)
    data = _load(split)
    whole = (split / "train.parquet").read_bytes()
    (split / "train.parquet").write_bytes(whole[:4] + b"\0" * (len(whole) // 2) + whole[4 + len(whole) // 2:])
    with StreamLoader(data.train, data.keys, 100).epoch() as batches:
        with pytest.raises(InputError, match=r"train\.parquet: damaged Parquet file"):
            list(batches)


def _peak(folder: Path, rows: int) -> int:
    """Bytes that numpy and Arrow hold at most while two epochs are read."""
    group = 1 << 12
    r = np.random.default_rng(0)
    sparse = [f"C{i}" for i in range(8)]
    table = pa.table({"I": r.normal(size=group).astype(np.float32), **{n: r.integers(0, 1000, group) for n in sparse},
                      "click": r.integers(0, 2, group).astype(np.int8)})
    folder.mkdir()
    for part, n in (("train", rows), ("test", group)):
        with pq.ParquetWriter(folder / f"{part}.parquet", table.schema) as writer:
            for _ in range(n // group):
                writer.write_table(table)
    info = {"name": "x", "dense": ["I"], "sparse": sparse, "id_rows": dict.fromkeys(sparse[:4], 1000),
            "label": {"click": {"kind": "binary", "column": "click"}}}
    (folder / "dataset.json").write_text(json.dumps(info))
    arrow = seen = 0
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    try:
        data = _load(folder, validation_share=0.0)
        for epoch in range(2):
            with StreamLoader(data.train, data.keys, 512, 2 * group, 0).epoch(epoch) as batches:
                for batch in batches:
                    seen += len(batch)
                    arrow = max(arrow, pa.total_allocated_bytes() - before)
        numpy = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == 2 * rows
    return arrow + numpy


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys.training import source as module

    monkeypatch.setattr(module, "KEPT_ROWS", 1 << 12)
    few, many = _peak(tmp_path / "few", 1 << 16), _peak(tmp_path / "many", 1 << 18)
    assert many < 1.3 * few
    assert few < (1 << 16) * 4 * 9  # less than the smaller set's features alone
