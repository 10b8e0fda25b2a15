from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.integers import IntegerIndex, hash_integers, plain_integers
from recsys.features.vocabulary import Vocabulary, stable_hash

LOW, HIGH = -(1 << 63), (1 << 63) - 1
integers = st.one_of(st.integers(LOW, HIGH), st.integers(-100_000, 100_000),
                     st.sampled_from([LOW, LOW + 1, HIGH, 0, -1, 9, 10, 9999, 10_000, -10_000, 10**8, 10**18]))
# Words that are no canonical integers must not be met by one.
words = st.one_of(st.text("0123456789-+ ", max_size=21), integers.map(str))


@settings(deadline=None, max_examples=200)
@given(st.lists(integers, max_size=50))
def test_hash_is_that_of_the_decimal_text(values: list[int]) -> None:
    texts = pa.array([str(v) for v in values], pa.string())
    assert hash_integers(np.array(values, np.int64)).tolist() == stable_hash(texts).tolist()


def test_every_length_hashes_alike() -> None:
    values = np.array([s * d * 10**k for k in range(19) for d in (1, 9) for s in (1, -1) if d * 10**k < HIGH], np.int64)
    assert hash_integers(values).tolist() == stable_hash(pa.array(values).cast(pa.string())).tolist()


@settings(deadline=None, max_examples=200)
@given(st.lists(words, unique=True, max_size=30).map(lambda v: [w for w in v if w]), st.lists(st.none() | integers,
                                                                                           max_size=30), st.data())
def test_integers_find_the_rows_of_their_texts(listed: list[str], asked: list[int | None], data: st.DataObject) -> None:
    asked += [int(w) for w in listed if w.strip("-").isdecimal() and "-" not in w[1:] and LOW <= int(w) <= HIGH]
    if data.draw(st.booleans()):  # a narrow range is looked up by position
        listed, asked = [w for w in listed if len(w) < 6], [a for a in asked if a is None or abs(a) < 10**6]
    for vocabulary in (Vocabulary("f", "vocabulary", len(listed) + 1, pa.array(listed, pa.string())),
                       Vocabulary("f", "hash", 11)):
        column = pa.array(asked, pa.int64())
        rows = vocabulary.encode(column, "f")
        assert rows.dtype == np.int32
        assert rows.tolist() == vocabulary.encode(column.cast(pa.string()), "f").tolist()


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.uint8(), pa.uint16(), pa.int32(), pa.uint32(), pa.uint64()])
def test_every_integer_type_meets_its_text(kind: pa.DataType) -> None:
    values = [0, 1, 7, 100, None]
    if kind == pa.uint64():
        values.append((1 << 64) - 1)  # no int64: goes by its text
    column = pa.array(values, kind)
    texts = [str(v) for v in values if v is not None]
    vocabulary = Vocabulary("f", "vocabulary", len(texts) + 1, pa.array(texts))
    assert vocabulary.encode(column, "f").tolist() == [1, 2, 3, 4, 0, 5][: len(values)]


def test_a_wide_range_is_searched_and_a_narrow_one_looked_up() -> None:
    assert IntegerIndex.of(pa.array(["5", "7"])).keys is None
    wide = IntegerIndex.of(pa.array(["5", str(10**15), "x"]))
    assert wide.keys is not None
    assert wide.find(np.array([10**15, 5, 6, LOW, HIGH])).tolist() == [2, 1, 0, 0, 0]
    assert IntegerIndex.of(pa.array(["5"])).find(np.array([LOW, HIGH, 5, 4, 6, LOW + 4])).tolist() == [0, 0, 1, 0, 0, 0]


def test_plain_integers_tell_nulls() -> None:
    values, missing = plain_integers(pa.array([3, None], pa.int16()))  # type: ignore[misc]
    assert values.dtype == np.int64
    assert values[0] == 3
    assert missing.tolist() == [False, True]
    assert plain_integers(pa.array(["3"])) is None
