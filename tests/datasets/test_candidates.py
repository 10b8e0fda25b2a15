from __future__ import annotations

import pyarrow as pa
import pytest

from recsys.datasets.candidates import expand_candidates
from recsys.datasets.info import DatasetInfo
from recsys.errors import InputError

INFO = DatasetInfo(name="toy", sparse=("topic", "age"), ad_features=("topic",))
ADS = pa.table({"ad_id": ["z", "y", "x"], "bid": [3.0, 2.0, 1.0], "topic": ["tz", "ty", "tx"],
                "advertiser_id": ["C", "B", "A"]})


def impressions(candidates: list[list[str] | None]) -> pa.Table:
    n = len(candidates)
    return pa.table({
        "impression_id": [f"i{k}" for k in range(n)], "ad_id": ["x", "y", "z"][:n], "age": ["1", "2", "3"][:n],
        "topic": ["tx", "ty", "tz"][:n], "bid": [1.0, 2.0, 3.0][:n], "advertiser_id": ["A", "B", "C"][:n],
        "click": [1, 0, 1][:n], "propensity": [0.5] * n, "candidates": pa.array(candidates, pa.list_(pa.string()))})


def test_each_candidate_carries_its_own_ad_and_the_requests_columns() -> None:
    table = expand_candidates(impressions([["x", "y"], [], ["y", "z", "x"]]), ADS, INFO)
    assert table.column_names == ["impression_id", "ad_id", "age", "topic", "bid", "advertiser_id", "logged"]
    rows = [tuple(r.values()) for r in table.to_pylist()]
    assert rows == [("i0", "x", "1", "tx", 1.0, "A", True), ("i0", "y", "1", "ty", 2.0, "B", False),
                    ("i2", "y", "3", "ty", 2.0, "B", False), ("i2", "z", "3", "tz", 3.0, "C", True),
                    ("i2", "x", "3", "tx", 1.0, "A", False)]


def test_slices_and_chunks_do_not_shift_rows() -> None:
    whole = impressions([["x", "y"], ["y"], ["z", "x"]])
    expected = expand_candidates(whole, ADS, INFO).slice(2)
    chunked = pa.concat_tables([whole.slice(1, 1), whole.slice(2)])
    assert expand_candidates(whole.slice(1), ADS, INFO).to_pylist() == expected.to_pylist()
    assert expand_candidates(chunked, ADS, INFO).to_pylist() == expected.to_pylist()
    assert expand_candidates(whole.slice(0, 0), ADS, INFO).num_rows == 0


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="column candidates, row 1: candidate without an ad; got 'nobody'"):
        expand_candidates(impressions([["x"], ["y", "nobody"]]), ADS, INFO)
    with pytest.raises(InputError, match="column candidates, row 1: null value"):
        expand_candidates(impressions([["x"], None]), ADS, INFO)
    with pytest.raises(InputError, match="column topic: missing column"):
        expand_candidates(impressions([["x"]]), ADS.drop_columns(["topic"]), INFO)
    with pytest.raises(InputError, match="column candidates: missing column"):
        expand_candidates(impressions([["x"]]).drop_columns(["candidates"]), ADS, INFO)
