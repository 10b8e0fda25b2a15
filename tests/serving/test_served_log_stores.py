"""The served log in an object store: emulators of the three, one of which may be away for a while."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import fs

from recsys.config import ServedLogConfig
from recsys.contracts import IMPRESSIONS, read_parquet
from recsys.errors import InputError
from recsys.serving import segments, served_log
from recsys.serving.protocol import load_scorer
from recsys.serving.ranking import Ranking
from recsys.serving.served_log import ServedLog
from recsys.storage import filesystem
from tests.processes import wait_until
from tests.serving.conftest import make_ads
from tests.stores import STORES, environment, gated

STORE = pytest.mark.parametrize("store", ["s3", *(pytest.param(s, marks=pytest.mark.slow) for s in ("gs", "abfs"))])
SCHEMA = pa.schema([("id", pa.string()), ("p", pa.float64())])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_log, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr("recsys.storage._PATIENCE", dt.timedelta(seconds=2))


def batch(start: int, rows: int = 1) -> pa.RecordBatch:
    at = range(start, start + rows)
    return pa.RecordBatch.from_pydict({"id": [f"i{i}" for i in at], "p": [1 / (3 + i) for i in at]}, SCHEMA)


def config(address: str, state: Path, **more: object) -> ServedLogConfig:
    return ServedLogConfig(folder=folder_of(address, state), state=state, **more)  # type: ignore[arg-type]


def folder_of(address: str, state: Path) -> str:
    return f"{address}/{state.name}"  # moto keeps what it was given for all of a process's servers


def published(address: str, state: Path) -> list[str]:
    system, root = filesystem(folder_of(address, state))
    found = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    ids = [i for f in sorted(found, key=lambda f: f.path) if f.is_file
           for i in pq.read_table(system.open_input_file(f.path))["id"].to_pylist()]
    assert len(ids) == len(set(ids))
    return ids


def ids(*numbers: int) -> list[str]:
    return [f"i{i}" for i in range(*numbers)]


@STORE
def test_nothing_is_lost_or_doubled_while_the_store_is_away(store: str, tmp_path: Path) -> None:
    with gated(store) as (address, past, gate):
        log = ServedLog("a", config(address, tmp_path, rotate_seconds=0.05, sync_seconds=0.01))
        log.append(batch(0, 3))
        wait_until(lambda: log.counts["published"] == 3, "published", 60.0)
        gate.shut()
        for i in range(3, 9):
            log.append(batch(i))  # goes on: what is logged lies in segments here
        assert log.flush()
        wait_until(lambda: log.counts["errors"] > 0, "an error", 120.0)
        log.append(batch(9))
        assert log.counts["published"] == 3
        gate.open()
        wait_until(lambda: log.counts["published"] == 10, "published", 120.0)
        assert log.close()
        with environment(past):
            assert sorted(published(address, tmp_path)) == ids(10)
        assert not list(tmp_path.iterdir())


@STORE
def test_a_service_ends_and_starts_while_the_store_is_away(store: str, tmp_path: Path) -> None:
    with gated(store) as (address, past, gate):
        gate.shut()
        log = ServedLog("a", config(address, tmp_path))  # a store that says nothing may be there later
        log.append(batch(0, 4))
        assert not log.close(60)
        assert [p.suffix for p in tmp_path.iterdir()] == [segments.SUFFIX]
        again = ServedLog("a", config(address, tmp_path))
        again.append(batch(4))
        gate.open()
        wait_until(lambda: again.counts["recovered"] == 4, "recovered", 120.0)
        assert again.close()
        with environment(past):
            assert sorted(published(address, tmp_path)) == ids(5)
        assert not list(tmp_path.iterdir())


_WRITER = """
import sys, time, pyarrow as pa
from recsys.config import ServedLogConfig
from recsys.serving.served_log import ServedLog
log = ServedLog("a", ServedLogConfig(folder=sys.argv[1], state=sys.argv[2]))
log.append(pa.RecordBatch.from_pydict({"id": ["i0", "i1"], "p": [1 / 3, 1 / 4]}))
assert log.flush()
print("synced", flush=True)
time.sleep(600)
"""


@STORE
def test_killed_before_or_after_it_was_published_it_is_there_once(store: str, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    with STORES[store]() as (address, found):
        child = subprocess.Popen([sys.executable, "-c", _WRITER, folder_of(address, tmp_path), str(tmp_path)],
                                 env={**os.environ, **found}, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "synced\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert published(address, tmp_path) == []
        with monkeypatch.context() as patch:  # a process that ends between the put and the clearing away
            patch.setattr(segments.SegmentWriter, "discard", lambda self: self.close())
            assert ServedLog("a", config(address, tmp_path)).close()
        assert published(address, tmp_path) == ids(2)
        assert list(tmp_path.iterdir())
        assert ServedLog("a", config(address, tmp_path)).close()
        assert published(address, tmp_path) == ids(2)
        assert not list(tmp_path.iterdir())


@STORE
def test_an_address_that_cannot_work_is_refused_at_the_start(store: str, tmp_path: Path) -> None:
    with STORES[store]() as (address, _):
        with pytest.raises(InputError, match="no such bucket; got 'nowhere'"):
            ServedLog("a", config(address.replace("runs", "nowhere"), tmp_path))
    with pytest.raises(InputError, match="unknown kind of address"):
        ServedLog("a", config("ftp://host", tmp_path))


def test_an_upload_that_fails_leaves_no_half_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with STORES["s3"]() as (address, _):
        real = served_log.pq.write_table

        def half(table: pa.Table, where: object, **options: object) -> None:
            real(table.slice(0, 1), where, **options)
            raise OSError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(served_log.pq, "write_table", half)
            log = ServedLog("a", config(address, tmp_path))
            log.append(batch(0, 4))
            assert not log.close()
        assert published(address, tmp_path) == []
        assert ServedLog("a", config(address, tmp_path)).close()
        assert published(address, tmp_path) == ids(4)


def test_a_ranking_logs_to_a_bucket_and_its_feedback_is_joined_from_there(
        model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from recsys.cli import main

    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    pq.write_table(make_ads(), tmp_path / "ads.parquet")
    pq.write_table(pa.table({"user_id": ["u1"], "age": [40.0], "history": [["a1"]]}), tmp_path / "users.parquet")
    with STORES["s3"]() as (address, _):
        (tmp_path / "ranking.yaml").write_text(yaml.safe_dump({
            "ads": str(tmp_path / "ads.parquet"), "users": {"parquet": str(tmp_path / "users.parquet")},
            "experiment": {"id": "spring", "baseline": "a", "arms": {"a": {"share": 0.5}, "b": {"share": 0.5}}},
            "log": {"folder": f"{address}/served", "state": str(tmp_path / "state")}}))
        scorer, shown = load_scorer(model, "cpu"), []
        with Ranking.load(tmp_path / "ranking.yaml", lambda _: scorer) as ranking:
            for i in range(6):
                answer = ranking.rank({"user_id": f"u{i}", "surface": "feed", "k": 2}).answer()
                shown += [ad["impression_id"] for ad in answer["ads"]]
            ranking.feedback({"events": [{"impression_id": shown[0], "kind": "click"}]})
        out = tmp_path / "joined.parquet"
        with pytest.raises(SystemExit) as ended:
            main(["join-feedback", f"{address}/served", "--out", str(out), "--window", "0", "--experiment", "spring",
                  "--state", str(tmp_path / "state"), "--json"])
        assert ended.value.code == 0
        counts = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert counts["ab"][0] == str(out)
        assert sorted(read_parquet(out, IMPRESSIONS)["impression_id"].to_pylist()) == sorted(shown)
        system, root = filesystem(address)
        names = [f.base_name for f in system.get_file_info(fs.FileSelector(f"{root}/served", recursive=True))]
        assert {n.partition("-")[0] for n in names} == {"impressions", "feedback"}  # and nothing of the reader's
