"""Features of users at serving time: a Parquet snapshot in memory, or Redis.

    users = ParquetUsers("users.parquet")
    users = RedisUsers("redis://localhost:6379/0")       # filled by: recsys load-users users.parquet --redis URL
    users.get_many(["u1", "u2"])                         # one row each; found says which are known

A user that is not there (or whose features do not come in time) has nulls, and is counted: a ranker takes a null as a
missing value, as in training. A column of row numbers has no missing value: :func:`fallbacks` say which row
such a user gets.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import UsersConfig
from recsys.contracts import Column, Contract, iter_parquet, open_parquet, read_parquet
from recsys.errors import InputError
from recsys.features.dense import not_finite
from recsys.log import log, progress
from recsys.serving.counts import Counts

USERS = Contract("USERS", (Column("user_id", pa.string(), required=True, nullable=False),))
_BREAK_SECONDS = 1.0  # a store that did not answer is left alone for so long
_BATCH = 2_000
_TOO_LARGE = 2.0**128 - 2.0**103  # what is rounded to infinity in float32, in which models compute


class UserStore(Protocol):
    """Features by user id; called from several threads at once.

    Attributes:
        schema: the features' columns, without ``user_id``.
        counts: users ``asked`` for; of these ``missing``; of these ``failed``, as the store did not answer, or
            ``damaged``, as it did not hold what :func:`load_users` writes.
    """

    schema: pa.Schema
    counts: Counts

    def get_many(self, ids: Sequence[str | None]) -> tuple[pa.Table, np.ndarray]:
        """Features of n users, one row each (nulls where unknown), and which were found: bool [n]."""


class ParquetUsers:
    """A snapshot: one row per user, held in memory.

    Raises:
        InputError: unreadable, no ``user_id``, or a user twice.
    """

    def __init__(self, path: str | Path) -> None:
        table = read_parquet(path, USERS).combine_chunks()
        ids = table["user_id"].to_pylist()
        self._rows = {user: row for row, user in enumerate(ids)}
        if len(self._rows) < len(ids):
            row = next(r for r, user in enumerate(ids) if self._rows[user] != r)
            raise InputError("user twice", file=path, column="user_id", row=row, got=ids[row],
                             expected="one row per user")
        self._table = table.drop_columns("user_id")
        for column in self._table.schema:
            if pa.types.is_floating(column.type):
                values = pc.if_else(pc.is_nan(table[column.name]), None, table[column.name])
                at = pc.index(not_finite(values), True).as_py()
                if at >= 0:
                    raise InputError("value not allowed", file=path, column=column.name, row=at,
                                     got=table[column.name][at].as_py(), expected="a finite number or null")
        self.schema, self.counts = self._table.schema, Counts()

    def get_many(self, ids: Sequence[str | None]) -> tuple[pa.Table, np.ndarray]:
        """As :class:`UserStore`."""
        rows = pa.array([None if user is None else self._rows.get(user) for user in ids], pa.int64())
        found = rows.is_valid().to_numpy(zero_copy_only=False)
        self.counts.add(asked=len(ids), missing=int((~found).sum()))
        return self._table.take(rows), found


class RedisUsers:
    """Users in Redis: ``PREFIX:user:ID`` holds a user's features as JSON, ``PREFIX:users`` their Arrow schema.

    All users of a call come by one MGET. An answer that takes longer than the time-out, or a server that is gone, costs
    the features, never the request; the store is then left alone for a second.

    Raises:
        InputError: no such server, or no users were loaded under this prefix.
    """

    def __init__(self, url: str, prefix: str = "recsys", timeout_ms: float = 20.0) -> None:
        self._client, self._prefix = connect(url, timeout_ms / 1000), prefix
        self._error = _redis().RedisError
        self.counts = Counts()
        self._until = 0.0
        try:  # the first connection may take longer than an answer does
            held = connect(url, 5.0).get(f"{prefix}:users")
        except self._error as error:
            raise InputError("Redis does not answer", file=url, got=str(error), expected="a running server") from None
        if held is None:
            raise InputError("no users under this prefix", file=url, column=prefix,
                             expected="recsys load-users USERS.parquet --redis URL")
        self.schema = _read_schema(held)
        self._numbers = [f.name for f in self.schema if pa.types.is_floating(f.type)]

    def get_many(self, ids: Sequence[str | None]) -> tuple[pa.Table, np.ndarray]:
        """As :class:`UserStore`."""
        wanted = [user for user in dict.fromkeys(ids) if user is not None]
        held = dict(zip(wanted, self._ask(wanted), strict=True))
        rows = [None if user is None else self._parse(held[user]) for user in ids]
        try:
            table = self._table(rows)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # JSON, but of other types
            self.counts.add(damaged=sum(row is not None for row in rows))
            rows = [None] * len(ids)
            table = self._table(rows)
        found = np.array([row is not None for row in rows], dtype=bool)
        self.counts.add(asked=len(ids), missing=int((~found).sum()))
        return table, found

    def _table(self, rows: list[dict[str, Any] | None]) -> pa.Table:
        return pa.table([pa.array([None if row is None else row.get(f.name) for row in rows], f.type)
                         for f in self.schema], schema=self.schema)

    def _parse(self, value: bytes | None) -> dict[str, Any] | None:
        if value is None:
            return None
        try:
            row = orjson.loads(value)
        except orjson.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or any(
                isinstance(v := row.get(n), int | float) and abs(v) >= _TOO_LARGE for n in self._numbers):
            self.counts.add(damaged=1)  # somebody else writes under this prefix
            return None
        return row

    def _ask(self, ids: list[str]) -> list[bytes | None]:
        if not ids:
            return []
        if time.monotonic() >= self._until:
            try:
                answer: list[bytes | None] = self._client.mget([f"{self._prefix}:user:{user}" for user in ids])
                return answer
            except self._error as error:
                if self.counts["failed"] == 0:
                    log.warning("user store: %s; requests go on without features of users", error)
                self._until = time.monotonic() + _BREAK_SECONDS
        self.counts.add(failed=len(ids))
        return [None] * len(ids)


def open_users(config: UsersConfig) -> UserStore:
    """The store that a configuration names."""
    if config.parquet is not None:
        return ParquetUsers(config.parquet)
    assert config.redis is not None
    return RedisUsers(config.redis, config.prefix, config.timeout_ms)


def fallbacks(config: UsersConfig, schema: pa.Schema) -> dict[str, pa.Scalar]:
    """What stands for a null, by column.

    Args:
        config: its ``fallback``.
        schema: of the users' features.

    Raises:
        InputError: a column that the users do not have, or a value of another type.
    """
    found = {}
    for name, value in config.fallback.items():
        if name not in schema.names:
            raise InputError("no such column of the users", file="users.fallback", column=name, got=schema.names)
        try:
            found[name] = pa.scalar(value, schema.field(name).type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            raise InputError("wrong type", file="users.fallback", column=name, got=value,
                             expected=str(schema.field(name).type)) from None
    return found


def load_users(path: str | Path, url: str, prefix: str = "recsys", ttl_seconds: int | None = None) -> int:
    """Fill Redis from a Parquet file, a user at a time replaced whole; users that the file lacks stay.

    Args:
        path: ``user_id`` and feature columns; streamed.
        url: redis://HOST:PORT/DB.
        prefix: of the keys.
        ttl_seconds: after which a user's features are gone; None: never.

    Returns:
        Users written.

    Raises:
        InputError: the file is not what it should be, a column that JSON does not hold, a server that does not answer,
            or users with other columns under this prefix.
    """
    schema = open_parquet(path).schema_arrow
    if "user_id" in schema.names:
        schema = schema.remove(schema.get_field_index("user_id")).remove_metadata()
    for column in schema:
        if not _is_json(column.type.value_type if pa.types.is_list(column.type) else column.type):
            raise InputError("a column that cannot be kept", file=path, column=column.name, got=str(column.type),
                             expected="numbers, texts, or lists of those")
    client, error = connect(url, 5.0), _redis().RedisError
    written = 0
    try:
        held = client.get(f"{prefix}:users")
        if held is not None and not _read_schema(held).equals(schema):
            raise InputError("other columns are held under this prefix", file=url, column=prefix,
                             got=_read_schema(held).names, expected=f"{schema.names}, or another --prefix")
        client.set(f"{prefix}:users", base64.b64encode(schema.serialize().to_pybytes()))
        with progress("users") as bar:
            task = bar.add_task("load users", total=open_parquet(path).metadata.num_rows)
            for table in iter_parquet(path, USERS, batch_rows=_BATCH):
                pipeline = client.pipeline(transaction=False)
                for user, row in zip(table["user_id"].to_pylist(), _rows(table), strict=True):
                    pipeline.set(f"{prefix}:user:{user}", row, ex=ttl_seconds)
                pipeline.execute()
                written += table.num_rows
                bar.advance(task, table.num_rows)
    except error as reason:
        raise InputError("Redis does not answer", file=url, got=str(reason), expected="a running server") from None
    return written


def _is_json(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
                or pa.types.is_string(kind))


def _rows(table: pa.Table) -> list[bytes]:
    """JSON of each row; NaN and infinities, which JSON does not have, become null: missing."""
    return [orjson.dumps(row) for row in table.drop_columns("user_id").to_pylist()]


def _read_schema(held: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(held)))


def _redis() -> Any:
    try:
        import redis
    except ModuleNotFoundError:
        raise InputError("users in Redis need the package redis", file="redis", expected="pip install redis") from None
    return redis


def connect(url: str, timeout: float) -> Any:
    """A client of a Redis server; nothing is sent yet.

    Raises:
        InputError: not an address of Redis.
    """
    redis = _redis()
    try:
        return redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=None,
                                    health_check_interval=0)
    except ValueError as error:
        raise InputError("not an address of Redis", file=url, got=str(error),
                         expected="redis://HOST:PORT/DB") from None
