from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import row_groups
from recsys.row_groups import RowGroupWriter


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3, 3], [25], [10, 10], [1], [7, 0, 13]])
def test_groups_have_one_size_whatever_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    monkeypatch.setattr(row_groups, "ROWS", 10)
    first = 0
    with RowGroupWriter(tmp_path / "x.parquet") as writer:
        for n in sizes:
            writer.write(pa.table({"n": pa.array(range(first, first + n), pa.int64())}))
            first += n
    file = pq.ParquetFile(tmp_path / "x.parquet")
    rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert all(n == 10 for n in rows[:-1])
    assert 0 < rows[-1] <= 10
    assert file.read()["n"].to_pylist() == list(range(first))
    assert writer.rows == first


def test_a_schema_alone_makes_an_empty_file(tmp_path: Path) -> None:
    with RowGroupWriter(tmp_path / "x.parquet", pa.schema([("n", pa.int64())])):
        pass
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 0
    with RowGroupWriter(tmp_path / "y.parquet"):
        pass
    assert not (tmp_path / "y.parquet").exists()
