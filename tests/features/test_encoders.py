from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys.errors import InputError
from recsys.features.dense import not_finite
from recsys.features.encoders import FeatureEncoder

TRAIN = pa.table({
    "age": [10.0, 20.0, None, 40.0], "price": [1, 2, 3, 4], "ad_id": ["x", "y", "x", "y"], "site": ["s", "s", "t", "t"],
    "history": pa.array([["y"], [], None, ["x", "old", "y"]], pa.list_(pa.string())),
})


def _encoder(**more: object) -> FeatureEncoder:
    return FeatureEncoder.fit([TRAIN], dense=["age", "price"], sparse=["ad_id", "site"], sequence=["history"],
                              min_count=1, hash_buckets=100, **more)  # type: ignore[arg-type]


def test_dense_is_standardised_on_the_training_part() -> None:
    encoder = _encoder()
    dense = encoder.encode(TRAIN).dense
    assert encoder.dense_width == 3  # age, age is missing, price
    assert dense[2, 0] == 0.0
    assert dense[:, 1].tolist() == [0, 0, 1, 0]
    known = dense[[0, 1, 3], 0]
    assert abs(known.mean()) < 1e-6
    assert known.std() == pytest.approx(1, abs=1e-6)
    logs = np.log1p([1, 2, 3, 4])
    np.testing.assert_allclose(dense[:, 2], (logs - logs.mean()) / logs.std(), rtol=1e-5)


def test_missing_value_unseen_in_training_is_the_mean_and_outliers_are_clipped() -> None:
    other = TRAIN.slice(0, 1).set_column(1, "price", pa.array([None], pa.float64()))
    assert _encoder().encode(other).dense[0, 2] == 0.0
    huge = TRAIN.slice(0, 1).set_column(1, "price", pa.array([-1e38]))
    assert _encoder().encode(huge).dense[0, 2] == -10.0


def test_statistics_stream() -> None:
    whole = _encoder()
    parts = FeatureEncoder.fit([TRAIN.slice(0, 1), TRAIN.slice(1)], dense=["age", "price"], sparse=["ad_id", "site"],
                               sequence=["history"], min_count=1, hash_buckets=100)
    np.testing.assert_allclose(whole.encode(TRAIN).dense, parts.encode(TRAIN).dense, atol=1e-6)


def test_history_shares_the_table_of_the_ad() -> None:
    encoder = _encoder()
    encoded = encoder.encode(TRAIN)
    assert encoder.features == {"ad_id": ("ad_id", "history"), "site": ("site",)}
    assert encoded.sequences[0].offsets.tolist() == [0, 1, 1, 1, 4]
    assert encoded.sequences[0].values[0] == encoded.sparse[1, 0]  # y in the history is y as the ad
    assert encoder.tables["ad_id"].rows == 4  # "old" was only ever in a history


def test_content_rows_and_history_without_unknown_ads() -> None:
    encoded = _encoder(content_ids=["y", "x"]).encode(TRAIN)
    assert encoded.content_row.tolist() == [2, 1, 2, 1]
    assert encoded.history.values.tolist() == [1, 2, 1]
    assert encoded.history.offsets.tolist() == [0, 1, 1, 1, 3]


def test_slices_encode_like_the_whole() -> None:
    encoder = _encoder(content_ids=["y"])
    whole, part = encoder.encode(TRAIN), encoder.encode(TRAIN.slice(2))
    assert part.sparse.tolist() == whole.sparse[2:].tolist()
    assert part.sequences[0].take(np.array([1]))[0].tolist() == whole.sequences[0].take(np.array([3]))[0].tolist()


def test_saved_encoder_encodes_alike() -> None:
    encoder = _encoder(content_ids=["y", "x"])
    back = FeatureEncoder.from_json(json.loads(json.dumps(encoder.to_json())), encoder.vocabulary_table())
    one, two = encoder.encode(TRAIN), back.encode(TRAIN)
    for name in ("dense", "sparse", "content_row"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_array_equal(one.history.values, two.history.values)
    assert back.columns == encoder.columns == ["age", "price", "ad_id", "site", "history"]


def test_the_largest_number_of_float32_as_it_is_printed_is_one() -> None:
    """3.4028235e38 is a bit more than that number and is rounded to it; whoever asks for rejected rows first agrees."""
    ages = pa.array([1.0, 3.4028235e38, -3.4028235e38, None])
    assert not pc.any(not_finite(ages)).as_py()
    assert np.isfinite(_encoder().encode(TRAIN.drop_columns(["age"]).append_column("age", ages)).dense).all()


@pytest.mark.parametrize(("column", "value", "message"), [
    ("age", pa.array(["old"] * 4), "column age: wrong type; got 'string'; expected a numeric column"),
    ("age", pa.array([1.0, float("inf"), 2.0, 3.0]), "column age, row 101: value not allowed; got inf"),
    ("age", pa.array([1.0, 2.0, float("-inf"), 3.0], pa.float32()), "column age, row 102: value not allowed; got -inf"),
    ("age", pa.array([1e308, -1e308, 2.0, 3.0]), "column age, row 100: value not allowed; got 1e\\+308"),
    ("age", pa.array([None, 1.0, 2.0, -3.5e38]), "column age, row 103: value not allowed; got -3.5e\\+38"),
    ("site", pa.array([1.5] * 4), "column site: wrong type"),
    ("site", pa.array([["x"]] * 4), "column site: wrong type; got 'list<item: string>'; expected a categorical"),
    ("site", pa.array([{"a": 1}] * 4), "column site: wrong type; got 'struct<a: int64>'"),
    ("history", pa.array(["x"] * 4), "column history: wrong type; got 'string'; expected a list of strings"),
    ("site", None, "column site: missing column"),
])
def test_bad_columns_are_one_clear_error(column: str, value: pa.Array | None, message: str) -> None:
    table = TRAIN.drop_columns([column])
    if value is not None:
        table = table.append_column(column, value)
    with pytest.raises(InputError, match=message) as caught:
        _encoder().encode(table, "impressions.parquet", 100)
    assert str(caught.value).startswith("impressions.parquet, ")
