from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import InputError
from recsys.serving.user_store import ParquetUsers, RedisUsers, load_users

USERS = pa.table({
    "user_id": [f"u{i}" for i in range(50)],
    "age": pa.array([20.1 + i for i in range(50)], pa.float32()),
    "score": [1 / (3 + i) for i in range(50)],
    "visits": pa.array([None if i == 3 else i for i in range(50)], pa.int32()),
    "segment": [f"ségment {i % 4}" for i in range(50)],
    "history": [[f"a{j}" for j in range(i % 3)] for i in range(50)],
})


@pytest.fixture
def parquet(tmp_path) -> Path:
    pq.write_table(USERS, tmp_path / "users.parquet")
    return tmp_path / "users.parquet"


def test_a_snapshot_answers_in_the_order_asked_and_counts_the_unknown(parquet):
    users = ParquetUsers(parquet)
    table, found = users.get_many(["u7", "nobody", None, "u3", "u7"])
    assert found.tolist() == [True, False, False, True, True]
    assert table.column_names == USERS.column_names[1:]
    assert table["score"].to_pylist() == [1 / 10, None, None, 1 / 6, 1 / 10]
    assert table["history"].to_pylist() == [["a0"], None, None, [], ["a0"]]
    assert users.counts == {"asked": 5, "missing": 2}


def test_a_user_twice_is_named(tmp_path):
    pq.write_table(pa.concat_tables([USERS, USERS.slice(4, 1)]), tmp_path / "users.parquet")
    with pytest.raises(InputError, match=r"user twice.*'u4'"):
        ParquetUsers(tmp_path / "users.parquet")


def test_no_address_and_no_server_are_input_errors():
    with pytest.raises(InputError, match="not an address"):
        RedisUsers("localhost")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="does not answer"):
            RedisUsers(f"redis://127.0.0.1:{free.getsockname()[1]}/0")


def test_the_command_line_hands_the_address_of_redis_on(parquet, capsys):
    from recsys.cli import main

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{free.getsockname()[1]}/0"
        with pytest.raises(SystemExit) as end:
            main(["load-users", str(parquet), "--redis", url])
    assert end.value.code == 2
    assert "Redis does not answer" in capsys.readouterr().err


def test_what_redis_could_not_give_back_is_refused(tmp_path):
    pq.write_table(pa.table({"user_id": ["u"], "seen": pa.array([0], pa.timestamp("us"))}), tmp_path / "u.parquet")
    with pytest.raises(InputError, match="column seen: a column that cannot be kept"):
        load_users(tmp_path / "u.parquet", "redis://127.0.0.1:1/0")


@pytest.fixture
def redis(tmp_path):
    """A real server, and its address."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server (Debian package of that name)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                               "--dir", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    while "Ready to accept" not in (line := server.stdout.readline()):
        assert line, "redis-server ended"
    threading.Thread(target=server.stdout.read, daemon=True).start()
    yield server, f"redis://127.0.0.1:{port}/0"
    server.kill()
    server.wait()


@pytest.mark.slow
def test_redis_gives_back_what_the_snapshot_holds_to_the_last_bit(parquet, redis):
    _, url = redis
    with pytest.raises(InputError, match="no users under this prefix"):
        RedisUsers(url, "shop")
    assert load_users(parquet, url, "shop") == 50
    users, snapshot = RedisUsers(url, "shop", timeout_ms=5000), ParquetUsers(parquet)
    ids = ["u7", "nobody", None, "u3", "u7", *(f"u{i}" for i in range(50))]
    table, found = users.get_many(ids)
    expected, known = snapshot.get_many(ids)
    assert table.schema.equals(expected.schema)
    assert table.equals(expected)
    assert np.array_equal(found, known)
    assert users.counts == snapshot.counts
    # Loaded again with a change, the user changes; with other columns it is refused.
    changed = USERS.set_column(3, "visits", pa.array([9] * 50, pa.int32()))
    pq.write_table(changed.slice(7, 1), parquet)
    assert load_users(parquet, url, "shop", ttl_seconds=1000) == 1
    assert users.get_many(["u7", "u8"])[0]["visits"].to_pylist() == [9, 8]
    pq.write_table(USERS.drop_columns("visits"), parquet)
    with pytest.raises(InputError, match="other columns"):
        load_users(parquet, url, "shop")


@pytest.mark.slow
def test_damaged_users_and_a_stopped_server_cost_the_features_and_are_counted(parquet, redis, monkeypatch):
    from recsys.serving import user_store

    server, url = redis
    load_users(parquet, url)
    users = RedisUsers(url, timeout_ms=200)
    client = user_store.connect(url, 5.0)
    for user, value in (("x", b"\xff"), ("y", b"[1]"), ("z", b'{"age": "old"}'), ("huge", b'{"score": 1e308}'),
                        ("large", b'{"score": 3.4028235e38}')):
        client.set(f"recsys:user:{user}", value)
    table, found = users.get_many(["x", "u1", "y", "huge", "large"])
    assert found.tolist() == [False, True, False, False, True]
    assert table["score"].to_pylist()[3:] == [None, 3.4028235e38]
    assert np.isfinite(np.float32(3.4028235e38))
    assert users.get_many(["z"])[1].tolist() == [False]
    assert users.counts["damaged"] == 4
    server.send_signal(19)  # SIGSTOP: connections stand, nothing is answered
    calls = []
    ask = users._client.mget
    monkeypatch.setattr(users._client, "mget", lambda keys: (calls.append(keys), ask(keys))[1])
    for _ in range(5):
        table, found = users.get_many(["u1", "u2"])
        assert not found.any()
        assert table["age"].null_count == 2
    assert len(calls) == 1  # it is not waited for again at once
    assert users.counts["failed"] == 10
    server.send_signal(18)
    users._until = 0.0
    assert users.get_many(["u1", "u2"])[1].all()
    server.kill()
    server.wait()
    assert not users.get_many(["u1"])[1].any()


@pytest.mark.slow
def test_a_silent_server_is_asked_once_not_over_and_over():
    """The client's own retries are off: one request costs one time-out."""
    from recsys.serving.user_store import connect

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        silent.settimeout(1.0)
        with pytest.raises(Exception, match=r"[Tt]imeout"):
            connect(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", 0.05).mget(["a"])
        seen = 0
        while True:
            try:
                silent.accept()
                seen += 1
            except TimeoutError:
                break
    assert seen == 1
