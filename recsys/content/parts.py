"""The files of a content store: the finished table, and the part files of a run that is still going on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.content.encoders import EncodedBatch
from recsys.contracts import CONTENT, open_parquet, read_parquet, validate
from recsys.errors import InputError, RecsysError
from recsys.log import log
from recsys.stage import sha256_json

_USAGE = b"recsys.usage"


def content_table(keys: list[str], batch: EncodedBatch, identity: dict[str, str]) -> pa.Table:
    """Rows of the CONTENT contract from one encoded batch.

    Args:
        keys: content hashes, length n.
        batch: vectors float32 [n, dim]; values beyond float16's largest (65504) are clipped to it.
        identity: model_id, model_revision, pooling.

    Raises:
        RecsysError: a vector is not finite.
    """
    finite = np.isfinite(batch.vectors).all(axis=1)
    if not finite.all():
        raise RecsysError(f"the encoder {identity['model_id']} gave a vector that is not finite for the text with "
                          f"content hash {keys[int(np.argmin(finite))]}")
    n, dim = batch.vectors.shape
    half = np.clip(batch.vectors, -65504, 65504).astype(np.float16)
    columns = {
        "content_hash": pa.array(keys, pa.string()),
        **{name: pa.array([value] * n, pa.string()) for name, value in identity.items()},
        "dim": pa.array(np.full(n, dim, np.int32)),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), dim),
        "tokens": pa.array(batch.tokens.astype(np.int32)),
    }
    return validate(pa.table(columns), CONTENT)


def read_store(path: Path, identity: dict[str, str] | None = None, dim: int | None = None) -> pa.Table | None:
    """Read a content.parquet.

    Args:
        path: the file.
        identity: where given, only a store of this model, revision and pooling is read.
        dim: where given, the length that its vectors must have.

    Returns:
        A table of the CONTENT contract; None where the file is not there or is of another encoder.

    Raises:
        InputError: damaged, or ``vector`` is not a fixed-size list of float16 of length ``dim``.
    """
    if not path.is_file():
        return None
    table = read_parquet(path, CONTENT)
    for name, value in (identity or {}).items():
        others = pc.unique(table[name].filter(pc.not_equal(table[name], value)))
        if len(others):
            log.info("embed: the store was made with another encoder (%s %r) and is replaced", name, others[0].as_py())
            return None
    kind = table.schema.field("vector").type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float16():
        raise InputError("wrong type", file=path, column="vector", got=str(kind),
                         expected="fixed_size_list<float16>")
    dims = pc.unique(table["dim"]).to_pylist()
    if dims != [kind.list_size] or (dim is not None and dims != [dim]):
        raise InputError("vectors of another length", file=path, column="dim", got=dims,
                         expected=str(dim or kind.list_size))
    return table


def write_content(table: pa.Table, path: Path) -> None:
    """Write a CONTENT table; vectors are noise to a compressor, so only the text columns are compressed."""
    names = [n for n in table.column_names if n != "vector"]
    pq.write_table(table, path, compression={**dict.fromkeys(names, "zstd"), "vector.list.element": "none"},
                   use_dictionary=names)


def _hashes(path: Path) -> list[str]:
    return list(open_parquet(path).read(columns=["content_hash"])["content_hash"].to_pylist())


class Parts:
    """Finished chunks of a run, one Parquet file each, in a folder named for the encoder.

    A file appears by rename, so it is whole or not there: a kill at any moment loses at most the chunk being encoded.
    """

    def __init__(self, folder: Path, identity: dict[str, str], dim: int) -> None:
        self.folder, self.identity, self.dim = folder, identity, dim

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def hashes(self) -> set[str]:
        """Content hashes of all finished chunks."""
        found: set[str] = set()
        for path in self._files():
            found.update(_hashes(path))
        return found

    def add(self, keys: list[str], batch: EncodedBatch, usage: dict[str, Any]) -> None:
        """Save one chunk and what it took (``seconds``, ``ceiling``)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tokens = int(batch.tokens.sum())
        positions = tokens if batch.positions is None else batch.positions
        told = {**usage, "texts": len(keys), "tokens": tokens, "positions": positions}
        table = content_table(keys, batch, self.identity).replace_schema_metadata({_USAGE: json.dumps(told)})
        path = self.folder / f"{sha256_json(keys)[:32]}.parquet"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        write_content(table, partial)
        os.replace(partial, path)

    def discard(self, have: set[str]) -> None:
        """Remove the chunks whose rows are all in ``have``."""
        for path in self._files():
            if set(_hashes(path)) <= have:
                path.unlink()

    def collect(self, keys: Iterable[str]) -> tuple[pa.Table, list[dict[str, Any]]]:
        """All finished chunks as one table, and what each took.

        Rows stand in the order of ``keys``; those of an interrupted run that are no longer asked for follow after.

        Raises:
            RecsysError: a key is in no chunk, because another process cleared the folder away.
        """
        tables, usage = [], []
        for path in self._files():
            table = open_parquet(path).read()
            usage.append(json.loads(table.schema.metadata[_USAGE]))
            tables.append(table.replace_schema_metadata(None))
        rank = {key: at for at, key in enumerate(keys)}
        whole = pa.concat_tables(tables) if tables else None
        found = [] if whole is None else whole["content_hash"].to_pylist()
        row = dict(zip(found, range(len(found)), strict=True))
        if whole is None or not rank.keys() <= row.keys():
            raise RecsysError(f"{self.folder}: finished chunks vanished; is another run writing the same store?")
        return whole.take([row[key] for key in sorted(row, key=lambda key: rank.get(key, len(rank)))]), usage

    def clear(self) -> None:
        """Remove the folder: its rows are in the store now."""
        shutil.rmtree(self.folder, ignore_errors=True)
