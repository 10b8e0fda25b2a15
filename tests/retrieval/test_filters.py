from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys.errors import InputError
from recsys.retrieval.filters import rows_where

ADS = pa.table({"surface": ["feed", "feed", "discovery", None], "language": ["en", "de", "en", "fr"],
                "budget_left": [0.0, 5.0, 2.5, 9.0], "safe": [True, True, False, None]})


@pytest.mark.parametrize(("where", "rows"), [
    ("surface=feed", [0, 1]),
    ("surface!=feed", [2]),
    (["surface=feed", "budget_left>0"], [1]),
    ("language=en,fr", [0, 2, 3]),
    ("language!=en,fr", [1]),
    ("surface!=feed,messaging", [2]),
    ("safe=true", [0, 1]),
    ({"language": ["en", "de"], "budget_left": (">=", 2.5)}, [1, 2]),
    ((pc.field("budget_left") > 1) | (pc.field("surface") == "feed"), [0, 1, 2, 3]),
    ({}, [0, 1, 2, 3]),
    ("language=xx", []),
])
def test_a_filter_keeps_its_rows_and_null_passes_none(where, rows):
    assert rows_where(ADS, where).nonzero()[0].tolist() == rows


@pytest.mark.parametrize(("where", "word"), [
    ("surface", "malformed"), ("colour=red", "no such column"), ("budget_left>much", "cannot hold"),
    ({"surface": ("~", "feed")}, "no such comparison"), ({"budget_left": (">", [1, 2])}, "several values"),
    (pc.field("colour") == "red", "does not fit"),
])
def test_a_filter_that_does_not_fit_is_refused(where, word):
    with pytest.raises(InputError, match=word):
        rows_where(ADS, where)
