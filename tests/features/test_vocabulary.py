from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import InputError
from recsys.features.vocabulary import Counter, Vocabulary, check_rows, from_table, stable_hash, to_table


def _fit(values: list, min_count: int = 1, buckets: int = 100) -> Vocabulary:
    counter = Counter()
    counter.add(pa.array(values), "f")
    return counter.vocabulary("f", min_count, buckets)


def test_rare_unknown_and_missing_values_share_row_zero() -> None:
    vocabulary = _fit(["a", "a", "b", "b", "b", "rare", None, None], min_count=2)
    rows = vocabulary.encode(pa.array(["b", "a", "rare", "never seen", None]), "f")
    assert rows.tolist() == [1, 2, 0, 0, 0]
    assert rows.dtype == np.int32
    assert vocabulary.rows == 3


@pytest.mark.parametrize("n", [3, 5000])  # few values take the dictionary, many the Arrow kernel
def test_small_and_large_columns_encode_alike(n: int) -> None:
    values = [f"v{i}" for i in range(2000)]
    vocabulary = _fit(values, buckets=10_000)
    asked = [f"v{i % 2500}" for i in range(n)]
    expected = [vocabulary.values.to_pylist().index(v) + 1 if v in values[:2000] else 0 for v in asked[:50]]
    assert vocabulary.encode(pa.array(asked), "f")[:50].tolist() == expected


def test_number_types_of_two_readers_meet() -> None:
    vocabulary = _fit([7, 7, 8])
    strings = pa.array(["8", "7"])
    for column in (pa.array([8, 7]), pa.array([8.0, 7.0]), strings, strings.dictionary_encode(),
                   pa.chunked_array([["8"], ["7"]])):
        assert vocabulary.encode(column, "f").tolist() == [2, 1]
    assert vocabulary.encode(pa.array([8.0, None]), "f").tolist() == [2, 0]
    with pytest.raises(InputError, match="wrong type"):
        vocabulary.encode(pa.array([7.5]), "f")
    with pytest.raises(InputError, match=r"column f: wrong type; got 'list<item: int64>'"):
        Counter().add(pa.array([[7]]), "f")


def test_too_many_values_are_hashed_into_the_buckets() -> None:
    values = [f"id-{i}" for i in range(5000)]
    vocabulary = _fit(values, buckets=1000)
    rows = vocabulary.encode(pa.array([*values, None, "new"]), "f")
    assert vocabulary.kind == "hash"
    assert vocabulary.rows == 1001
    assert rows[:-2].min() >= 1
    assert rows.max() <= 1000
    assert rows[-2] == 0
    assert rows[-1] >= 1
    load = np.bincount(rows[:5000], minlength=1001)[1:]
    assert 4.0 < load.var() < 6.0  # Poisson(5): a good hash neither clumps nor evens out


def test_hash_does_not_depend_on_slices_and_is_the_same_in_every_process() -> None:
    values = pa.array(["", "a", "b", "ab", "ba", "ünï", "", "x" * 300, "aa", "a\0"])
    hashes = stable_hash(values)
    assert len(set(hashes.tolist())) == 9  # "" stands twice
    assert hashes[0] == hashes[6]
    for start in range(len(values)):
        assert stable_hash(values.slice(start)).tolist() == hashes[start:].tolist()
    code = ("import pyarrow as pa\nfrom recsys.features.vocabulary import stable_hash\n"
            "print(stable_hash(pa.array(['ab']))[0])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == int(hashes[3])


def test_an_id_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"f\.parquet, column x, row 12: id out of range; got 5"):
        check_rows(np.array([0, 4, 5]), 5, "x", "f.parquet", offset=10)
    with pytest.raises(InputError, match="got -1"):
        check_rows(np.array([-1]), 5, "x")


def test_saved_table_gives_the_same_rows_and_a_foreign_one_is_refused() -> None:
    one, two = _fit(["a", "a", "b"]), Vocabulary("g", "hash", 50)
    table = to_table([one, two])
    specs = {"f": {"kind": "vocabulary", "rows": 3}, "g": {"kind": "hash", "rows": 50}}
    back = from_table(table, specs)
    column = pa.array(["b", "a", "z"])
    assert back["f"].encode(column, "f").tolist() == one.encode(column, "f").tolist()
    assert back["g"].encode(column, "g").tolist() == two.encode(column, "g").tolist()
    with pytest.raises(InputError, match="vocabulary does not fit"):
        from_table(table.slice(1), specs)


@pytest.mark.parametrize("column", [pa.array([3, 0, 4]), pa.array(["3", "0", "4"]), pa.array([3.0, 0.0, 4.0]),
                                    pa.chunked_array([pa.array([3], pa.int32()), pa.array([0, 4], pa.int32())])])
def test_identity_takes_integers_as_they_are(column: pa.Array) -> None:
    assert Vocabulary("f", "identity", 5).encode(column, "f").tolist() == [3, 0, 4]


@pytest.mark.parametrize(("column", "message"), [
    (pa.array([0, 1, 5, 7]), r"x\.parquet, column f, row 2: id out of range; got 5; expected an integer in \[0, 5\)"),
    (pa.array([0, -1]), r"row 1: id out of range; got -1"),
    (pa.array([0, None, 9]), r"x\.parquet, column f, row 1: null id; got 'null'; expected an integer in \[0, 5\)"),
    (pa.array(["0", "a"]), r"column f: wrong type; got 'string'"),
    (pa.array([0.5]), r"column f: wrong type; got 'double'"),
])
def test_identity_refuses_what_is_no_row(column: pa.Array, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Vocabulary("f", "identity", 5).encode(column, "f", "x.parquet")


def test_dictionaries_with_nulls_and_in_chunks_encode_alike() -> None:
    vocabulary = _fit(["a", "b", "b", "7"])
    plain = pa.array(["b", None, "7", "z", "a", ""])
    expected = vocabulary.encode(plain, "f").tolist()
    assert expected == [1, 0, 2, 0, 3, 0]
    assert vocabulary.encode(plain.dictionary_encode(), "f").tolist() == expected
    assert vocabulary.encode(plain.dictionary_encode(null_encoding="encode"), "f").tolist() == expected
    chunks = pa.chunked_array([plain.slice(0, 2).dictionary_encode(), plain.slice(2).dictionary_encode()])
    assert vocabulary.encode(chunks, "f").tolist() == expected


def test_counts_merge_over_chunks() -> None:
    counter = Counter()
    for part in (["a", "b"], ["b"], [None]):
        counter.add(pa.array(part, pa.string()), "f")
    assert counter.vocabulary("f", 2, 10).values.to_pylist() == ["b"]


def test_dictionary_columns_count_like_plain_ones() -> None:
    column = pa.array(["a", "b", None, "b", "c", "c", "c"])
    plain, coded = Counter(), Counter()
    for part in (column.slice(0, 3), column.slice(3)):
        plain.add(part, "f")
        coded.add(part.dictionary_encode(), "f")
    found = [c.vocabulary("f", 1, 10).values.to_pylist() for c in (plain, coded)]
    assert found[0] == found[1] == ["c", "b", "a"]
