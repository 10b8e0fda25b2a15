from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.datasets.reader import read_raw
from recsys.datasets.recipe import RawTable
from recsys.errors import InputError

TEXT = RawTable(file="x", format="text", delimiter="\t", names=("a", "b", "c"), min_fields=1, nulls=("", "null"))


def read(path: Path, table: RawTable, columns: str = "abc") -> list[dict[str, object]]:
    return pa.concat_tables(list(read_raw(table, path, set(columns)))).to_pylist()


def test_short_text_rows_are_filled_with_nulls(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("1\t2\t3\n4\n\t5\tnull\n\"6\t7\"\t\n")
    assert read(file, TEXT) == [{"a": "1", "b": "2", "c": "3"}, {"a": "4", "b": None, "c": None},
                                {"a": None, "b": "5", "c": None}, {"a": '"6', "b": '7"', "c": None}]
    assert read(file, TEXT, "b") == [{"b": "2"}, {"b": None}, {"b": "5"}, {"b": '7"'}]


def test_header_line_of_named_columns_is_skipped_and_gzip_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.txt.gz"
    file.write_bytes(gzip.compress(b"a\tb\tc\n1\t2\t3\n"))
    assert read(file, TEXT) == [{"a": "1", "b": "2", "c": "3"}]


def test_csv_quotes_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes("\ufeffa,b\r\n\"x, \"\"y\"\"\",\"two\nlines\"\r\n3,\r\n".encode())
    assert read(file, RawTable(file="x")) == [{"a": 'x, "y"', "b": "two\nlines"}, {"a": "3", "b": None}]


@pytest.mark.parametrize(("name", "data", "table", "message"), [
    ("x.csv", b"a,b\n1,2\n3\n", RawTable(file="x"), "row 1: row of the wrong length; got '1 fields'; expected 2"),
    ("x.txt", b"1\t2\t3\n1\t2\t3\t4\n", TEXT, "row 1: row of the wrong length; got '4 fields'; expected 1 to 3"),
    ("x.csv", b"a,b\n1,2\n\xff,2\n", RawTable(file="x"), "row 1: unreadable row; got 'invalid UTF8 data'"),
    ("x.csv", b"", RawTable(file="x"), "empty file; got '0 bytes'"),
    ("x.parquet", b"", RawTable(file="x"), "empty file; got '0 bytes'"),
    ("x.parquet", b"PAR1 not really", RawTable(file="x"), "not a readable Parquet file"),
    ("x.csv.gz", gzip.compress(b"a,b\n1,2\n")[:-12], RawTable(file="x"), "damaged csv file"),
])
def test_bad_files(tmp_path: Path, name: str, data: bytes, table: RawTable, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(InputError) as error:
        list(read_raw(table, file, {"a", "b"}))
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_and_corrupt_parquet(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [str(i * i) for i in range(5000)]}), file, compression="zstd")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable Parquet file"):
        list(read_raw(RawTable(file="x"), file, {"a"}))
    file.write_bytes(whole[:2000] + bytes(4000) + whole[6000:])
    with pytest.raises(InputError, match="damaged parquet file"):
        list(read_raw(RawTable(file="x"), file, {"a"}))
