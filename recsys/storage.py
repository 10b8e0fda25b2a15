"""Files on this machine or in an object store, by one name: a path, or an s3://, gs:// or abfs:// address.

Everything goes through ``pyarrow.fs``; credentials come from where each cloud's own tools look for them. An emulator
or a private endpoint is named by the variable that the cloud's own clients read:

* s3: ``AWS_ENDPOINT_URL`` (or ``AWS_ENDPOINT_URL_S3``), region from ``AWS_REGION`` or ``AWS_DEFAULT_REGION``;
* gs: ``STORAGE_EMULATOR_HOST``, without credentials;
* abfs: ``abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/path``, or ``abfs://CONTAINER/path`` with
  ``AZURE_STORAGE_ACCOUNT``; ``AZURE_STORAGE_KEY`` where a key is used; ``AZURE_STORAGE_BLOB_ENDPOINT`` and
  ``AZURE_STORAGE_DFS_ENDPOINT`` for an emulator.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from recsys.errors import InputError

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs"}
_PATIENCE = dt.timedelta(minutes=1)
_TAIL = 1 << 20  # bytes of an object's end that go into its fingerprint: of a Parquet file, the footer


def is_url(path: str | Path) -> bool:
    """Whether a name is an object store's address rather than a path."""
    return isinstance(path, str) and "://" in path


def as_location(path: str | Path) -> str | Path:
    """An address as it is (without a closing slash), anything else as a Path, which would squeeze ``//``."""
    return str(path).rstrip("/") if is_url(path) else Path(path)


def join(folder: str | Path, name: str) -> str | Path:
    """A file's name within a folder."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else Path(folder) / name


def filesystem(path: str | Path) -> tuple[FileSystem, str]:
    """The file system that a name belongs to, and the name within it.

    Raises:
        InputError: an address of another scheme, or one that the cloud's settings do not complete.
    """
    from pyarrow import fs

    if not is_url(path):
        return fs.LocalFileSystem(), str(path)
    parts = urlsplit(str(path))
    scheme = SCHEMES.get(parts.scheme)
    if scheme is None:
        raise InputError("unknown kind of address", file=path, got=parts.scheme,
                         expected=f"a path, or one of {', '.join(f'{s}://' for s in SCHEMES)}")
    settings = {n: os.environ.get(n, "") for n in _SETTINGS[scheme]}
    container, _, host = parts.netloc.partition("@")
    try:
        made = _connect(scheme, host.partition(".")[0], tuple(sorted(settings.items())))
    except (OSError, ValueError) as error:
        raise InputError("no connection to the object store", file=path, got=first_line(error),
                         expected="the cloud's credentials and settings") from None
    return made, f"{container}{parts.path}"


_SETTINGS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"),
    "gs": ("STORAGE_EMULATOR_HOST",),
    "abfs": ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY", "AZURE_STORAGE_BLOB_ENDPOINT",
             "AZURE_STORAGE_DFS_ENDPOINT"),
}


@cache
def _connect(scheme: str, account: str, settings: tuple[tuple[str, str], ...]) -> FileSystem:
    from pyarrow import fs

    value = dict(settings)
    if scheme == "s3":
        endpoint = value["AWS_ENDPOINT_URL_S3"] or value["AWS_ENDPOINT_URL"]
        region = value["AWS_REGION"] or value["AWS_DEFAULT_REGION"] or None
        more = {}
        if endpoint:
            kind, host = _endpoint(endpoint)
            more = {"endpoint_override": host, "scheme": kind}
        return fs.S3FileSystem(region=region or ("us-east-1" if endpoint else None), **more)
    if scheme == "gs":
        # Google's library says nothing of a store that does not answer for a quarter of an hour by itself.
        if not value["STORAGE_EMULATOR_HOST"]:
            return fs.GcsFileSystem(retry_time_limit=_PATIENCE)
        kind, host = _endpoint(value["STORAGE_EMULATOR_HOST"])
        return fs.GcsFileSystem(anonymous=True, scheme=kind, endpoint_override=host, retry_time_limit=_PATIENCE)
    name = account or value["AZURE_STORAGE_ACCOUNT"]
    if not name:
        raise ValueError("no account: neither CONTAINER@ACCOUNT in the address nor AZURE_STORAGE_ACCOUNT")
    more = {"account_key": value["AZURE_STORAGE_KEY"]} if value["AZURE_STORAGE_KEY"] else {}
    for part in ("blob", "dfs"):
        if endpoint := value[f"AZURE_STORAGE_{part.upper()}_ENDPOINT"]:
            kind, host = _endpoint(endpoint)
            more |= {f"{part}_storage_authority": host, f"{part}_storage_scheme": kind}
    return fs.AzureFileSystem(account_name=name, **more)


def need_bucket(address: str) -> None:
    """Refuse an address whose bucket is not there, before anything relies on it.

    A store that does not answer, or that may not be asked, is let pass: it may be written to later.

    Raises:
        InputError: the store says that there is no such bucket; or as of :func:`filesystem`.
    """
    from pyarrow import fs

    system, root = filesystem(address)
    bucket = root.partition("/")[0]
    with suppress(OSError):
        if system.get_file_info(bucket).type == fs.FileType.NotFound:
            raise InputError("no such bucket", file=address, got=bucket, expected="one that exists; recsys makes none")


def _endpoint(text: str) -> tuple[str, str]:
    """Scheme and host:port of an endpoint; without a scheme it is http, as the emulators' own variables have it."""
    kind, found, host = text.partition("://")
    return (kind, host.rstrip("/")) if found else ("http", text.rstrip("/"))


def first_line(error: BaseException) -> str:
    """An error in one line, for messages of one."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def file_size(path: str | Path) -> int | None:
    """Bytes of a file or object; None where there is none.

    Raises:
        InputError: the object store cannot be asked.
    """
    if not is_url(path):
        path = Path(path)
        return path.stat().st_size if path.is_file() else None
    system, name = filesystem(path)
    try:
        info = system.get_file_info(name)
    except OSError as error:
        raise InputError("the object store does not answer", file=path, got=first_line(error),
                         expected="a reachable endpoint and the right to read") from None
    return int(info.size) if info.is_file else None


def open_input(path: str | Path) -> NativeFile:
    """A file or object opened for reads at any place.

    Raises:
        InputError: it is not there or may not be read.
    """
    system, name = filesystem(path)
    try:
        return system.open_input_file(name)
    except OSError as error:
        raise InputError("cannot be read", file=path, got=first_line(error), expected="a readable file") from None


def open_output(system: FileSystem, name: str) -> NativeFile:
    """A file or object opened for writing; where folders are real, its own is made.

    Raises:
        OSError: it may not be written.
    """
    from pyarrow import fs

    if isinstance(system, fs.LocalFileSystem):
        system.create_dir(str(Path(name).parent))
    return system.open_output_stream(name)


def read_bytes(path: str | Path) -> bytes:
    """The whole of a file or object.

    Raises:
        InputError: it is not there or may not be read.
    """
    if not is_url(path):
        return Path(path).read_bytes()
    with open_input(path) as file:
        return bytes(file.read())


def fingerprint(path: str) -> str:
    """What tells one object from another without reading all of it: hex SHA-256 of size, ETag and last mebibyte.

    The store's ETag changes with every write. Where a store gives none the time of the last change stands in; the last
    mebibyte of a Parquet file holds the footer: schema, offsets and statistics of all row groups.

    Raises:
        InputError: there is no such object, or it may not be read.
    """
    if file_size(path) is None:
        raise InputError("no such file", file=path)
    system, name = filesystem(path)
    with open_input(path) as file:
        size = int(file.size())
        metadata = dict(file.metadata() or {})
        file.seek(max(size - _TAIL, 0))
        tail = hashlib.sha256(file.read()).hexdigest()
    mark = metadata.get("ETag") or metadata.get(b"ETag") or str(system.get_file_info(name).mtime_ns)
    return hashlib.sha256(json.dumps([size, str(mark), tail]).encode()).hexdigest()
