from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from recsys import storage
from recsys.config import ModelConfig, TrainingConfig
from recsys.contracts import open_parquet
from recsys.datasets.info import load_dataset_info
from recsys.errors import InputError
from recsys.stage import sha256_file
from tests.training.toy import toy_split


def test_paths_and_addresses_are_told_apart(tmp_path: Path) -> None:
    assert storage.join("s3://bucket/folder/", "x.json") == "s3://bucket/folder/x.json"
    assert storage.join(tmp_path, "x.json") == tmp_path / "x.json"
    assert storage.as_location("s3://bucket/folder/") == "s3://bucket/folder"
    assert storage.as_location(str(tmp_path)) == tmp_path
    assert not storage.is_url(tmp_path)
    (tmp_path / "x").write_bytes(b"abc")
    assert storage.file_size(tmp_path / "x") == 3
    assert storage.file_size(tmp_path) is None
    assert storage.read_bytes(tmp_path / "x") == b"abc"


@pytest.mark.parametrize(("address", "settings", "kind", "name"), [
    ("gs://bucket/a/b.parquet", {"STORAGE_EMULATOR_HOST": "http://localhost:9023"}, "gcs", "bucket/a/b.parquet"),
    ("abfs://box@acc.dfs.core.windows.net/a/b", {"AZURE_STORAGE_KEY": "a2V5"}, "abfs", "box/a/b"),
    ("abfss://box/a", {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_BLOB_ENDPOINT": "http://localhost:10000",
                       "AZURE_STORAGE_KEY": "a2V5"}, "abfs", "box/a"),
    ("s3://bucket/a", {"AWS_ENDPOINT_URL": "http://localhost:9000/"}, "s3", "bucket/a"),
])
def test_addresses_find_their_file_system(monkeypatch: pytest.MonkeyPatch, address: str, settings: dict[str, str],
                                          kind: str, name: str) -> None:
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    system, within = storage.filesystem(address)
    assert (system.type_name, within) == (kind, name)


def test_addresses_that_lead_nowhere_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    with pytest.raises(InputError, match=r"unknown kind of address; got 'ftp'; expected a path, or one of s3://"):
        storage.filesystem("ftp://x/y")
    with pytest.raises(InputError, match=r"abfs://box/a: no connection to the object store; .*AZURE_STORAGE_ACCOUNT"):
        storage.filesystem("abfs://box/a")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket of a local S3 service."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.delenv("AWS_REGION", raising=False)
        fs.S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1",
                        allow_bucket_creation=True).create_dir("ads")
        yield "s3://ads"
    server.stop()


def _upload(file: Path, address: str) -> None:
    system, name = storage.filesystem(address)
    with system.open_output_stream(name) as stream:
        stream.write(file.read_bytes())


@pytest.mark.slow
def test_a_split_in_s3_trains_like_the_one_on_disk(bucket: str, tmp_path: Path) -> None:
    from recsys.training.trainer import train_model

    split, model = toy_split(tmp_path / "split"), ModelConfig(embedding_dim=4, bottom=(8,), top=(16,))
    training = TrainingConfig(batch_size=64, shuffle_window=512)
    for file in split.iterdir():
        _upload(file, f"{bucket}/split/{file.name}")
    assert load_dataset_info(f"{bucket}/split").name == "toy"
    remote = train_model(f"{bucket}/split", model, training, tmp_path / "remote")
    local = train_model(split, model, training, tmp_path / "local")
    for part in ("train", "validation", "test"):
        assert remote[part] == local[part]
    before = (tmp_path / "remote" / "metrics.json").stat().st_mtime_ns
    assert train_model(f"{bucket}/split/", model, training, tmp_path / "remote") == remote
    assert (tmp_path / "remote" / "metrics.json").stat().st_mtime_ns == before  # nothing was done
    pq.write_table(pq.read_table(split / "test.parquet").slice(0, 300), split / "test.parquet")
    _upload(split / "test.parquet", f"{bucket}/split/test.parquet")
    assert train_model(f"{bucket}/split", model, training, tmp_path / "remote")["test"]["n"] == 300


@pytest.mark.slow
def test_objects_that_cannot_be_read_are_one_line(bucket: str, tmp_path: Path) -> None:
    split = toy_split(tmp_path / "split", n=100)
    data = (split / "train.parquet").read_bytes()
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    _upload(tmp_path / "half", f"{bucket}/half.parquet")
    with pytest.raises(InputError, match=r"s3://ads/half\.parquet: not a readable Parquet file"):
        open_parquet(f"{bucket}/half.parquet")
    with pytest.raises(InputError, match=r"s3://ads/none\.parquet: no such file"):
        open_parquet(f"{bucket}/none.parquet")
    with pytest.raises(InputError, match="no such file"):
        open_parquet("s3://no-such-bucket/x.parquet")
    with pytest.raises(InputError, match=r"s3://ads/none: no such file"):
        sha256_file(f"{bucket}/none")


@pytest.mark.slow
def test_a_fingerprint_changes_with_the_object(bucket: str, tmp_path: Path) -> None:
    found = []
    for text in (b"a" * 2_000_000, b"b" + b"a" * 1_999_999, b"a" * 2_000_000):  # differ before the last mebibyte
        (tmp_path / "x").write_bytes(text)
        _upload(tmp_path / "x", f"{bucket}/x")
        found.append(sha256_file(f"{bucket}/x"))
    assert found[0] == found[2] != found[1]
