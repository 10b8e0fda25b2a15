from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import InputError
from recsys.serving.ad_table import AdTable

ADS = pa.table({
    "ad_id": ["a", "b", "c", "d", "e"], "bid": [1.0, 0.01, 0.5, None, 0.7], "budget": [None, 1.0, 2.0, 3.0, 4.0],
    "surface": ["feed", "feed", "discovery", "feed", "feed"], "language": ["en", "en", "de", "en", "de"],
    "budget_left": [1.0, 1.0, 1.0, 1.0, 0.0]})


def table(tmp_path, filters=(), ads=ADS, reserve=0.05) -> AdTable:
    pq.write_table(ads, tmp_path / "ads.parquet")
    return AdTable(tmp_path / "ads.parquet", filters, reserve)


def test_eligible_is_who_passes_the_filters_and_bids_at_least_the_reserve(tmp_path):
    ads = table(tmp_path, ("surface={surface}", "language={language}", "budget_left>0"))
    english = ads.where({"surface": "feed", "language": "en"})
    assert ads.eligible(english).tolist() == [True, False, False, False, False]
    german = ads.where({"surface": "feed", "language": "de"})
    assert not ads.eligible(german).any()  # its budget is spent
    assert ads.eligible([]).tolist() == [True, False, True, False, True]
    assert ads.eligible(ads.where({"surface": "discovery", "language": "de"}, ["bid<0.6"])).tolist() == [
        False, False, True, False, False]
    assert ads.budget.tolist() == [np.inf, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("value", [None, 3, "en,de", "en'", "x=1", "", "*" * 70])
def test_a_placeholder_takes_one_plain_value(tmp_path, value):
    ads = table(tmp_path, ("language={language}",))
    with pytest.raises(InputError, match="column language"):
        ads.where({"language": value})


def test_the_highest_bids_where_there_are_too_many(tmp_path):
    ads = table(tmp_path)
    assert ads.best(ads.eligible([]), 2).tolist() == [0, 4]
    assert ads.best(ads.eligible([]), 10).tolist() == [0, 2, 4]
    without = table(tmp_path, ads=ADS.drop_columns("bid"))
    assert without.bid is None
    assert without.best(without.eligible([]), 2).tolist() == [0, 1]


def test_rows_of_ids(tmp_path):
    assert table(tmp_path).rows_of(["d", "gone", "a"]).tolist() == [3, -1, 0]


def test_faults_are_named(tmp_path):
    with pytest.raises(InputError, match=r"ad twice.*'a'"):
        table(tmp_path, ads=pa.concat_tables([ADS, ADS.slice(0, 1)]))
    with pytest.raises(InputError, match="column bid"):
        table(tmp_path, ads=ADS.set_column(1, "bid", pa.array([1.0, -1.0, 1.0, 1.0, 1.0])))
    with pytest.raises(InputError, match="no such column"):
        table(tmp_path, ("gone=1",))
