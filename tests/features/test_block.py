from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import InputError
from recsys.features.block import BlockEncoder
from recsys.features.encoders import FeatureEncoder


def fitted(**more: object) -> FeatureEncoder:
    rng = np.random.default_rng(0)
    table = pa.table({"a": rng.normal(size=500), "b": pa.array([None if i % 9 == 0 else float(i) for i in range(500)]),
                      "site": rng.integers(0, 30, 500), "ad_id": rng.integers(0, 90, 500),
                      "row": rng.integers(0, 7, 500)})
    return FeatureEncoder.fit([table], dense=["a", "b"], sparse=["site", "ad_id", "row"], sequence=[], min_count=2,
                              hash_buckets=60, id_rows={"row": 7}, **more)


def blocks(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    dense = rng.lognormal(1, 2, (n, 2)).astype(np.float32)
    dense[::7, 1], dense[3, 0] = np.nan, np.nan
    return dense, np.stack([rng.integers(0, 40, n), rng.integers(-5, 120, n), rng.integers(0, 7, n)], axis=1)


@pytest.mark.parametrize("with_content", [False, True])
def test_a_block_is_encoded_as_the_table_of_its_values(with_content: bool) -> None:
    ids = [str(i) for i in range(50)]
    more = {"content_ids": ids, "content_values": {"code": pa.array([str(i % 4) for i in range(50)])}}
    encoder = fitted(**(more if with_content else {}))
    block = BlockEncoder(encoder)
    assert block.dense == ["a", "b"]
    assert block.ids == ["site", "ad_id", "row"]
    assert {encoder.tables[n].kind for n in block.ids} == {"vocabulary", "hash", "identity"}
    dense, rows = blocks()
    columns = {n: pa.array(dense[:, i], from_pandas=True) for i, n in enumerate(block.dense)}
    columns |= {n: pa.array(rows[:, i]) for i, n in enumerate(block.ids)}
    want, got = encoder.encode(pa.table(columns)), block.encode(dense, rows)
    np.testing.assert_allclose(got.dense, want.dense, atol=1e-6)
    np.testing.assert_array_equal(got.sparse, want.sparse)
    np.testing.assert_array_equal(got.content_row, want.content_row)
    assert got.dense.shape == (200, 3)
    assert got.content_row.any() == with_content


def test_rows_of_tables_alone_are_taken_as_they_are() -> None:
    table = pa.table({"x": [1, 2], "y": [0, 1]})
    encoder = FeatureEncoder.fit([table], dense=[], sparse=["x", "y"], sequence=[], min_count=1, hash_buckets=9,
                                 id_rows={"x": 5, "y": 2})
    block, nothing = BlockEncoder(encoder), np.zeros((2, 0), np.float32)
    np.testing.assert_array_equal(block.encode(nothing, np.array([[4, 1], [0, 0]])).sparse, [[4, 1], [0, 0]])
    for bad, column, row in ((np.array([[4, 1], [0, 2]]), "y", 1), (np.array([[-1, 1], [0, 0]]), "x", 0)):
        with pytest.raises(InputError) as error:
            block.encode(nothing, bad)
        assert (error.value.column, error.value.row) == (column, row)


@pytest.mark.parametrize(("change", "message"), [
    (lambda d, i: (d[:, :1], i), "shape"), (lambda d, i: (d, i[:-1]), "lengths"),
    (lambda d, i: (d, i.astype(float)), "type"), (lambda d, i: (d * np.float32("inf"), i), "not allowed"),
    (lambda d, i: (d.astype(np.float64) * 1e300, i), "not allowed"), (lambda d, i: (d, i.astype(np.uint64)), "type"),
    (lambda d, i: (d.astype(str), i), "type")])
def test_what_is_no_block_is_refused(change: object, message: str) -> None:
    block = BlockEncoder(fitted())
    with pytest.raises(InputError, match=message):
        block.encode(*change(*blocks()))  # type: ignore[operator]
