from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import ServedExperimentConfig, parse_model
from recsys.contracts import IMPRESSIONS, read_parquet
from recsys.errors import InputError
from recsys.serving.arms import register_experiment
from recsys.serving.feedback import FEEDBACK, feedback_batch, join_feedback

HOUR = 3_600_000_000
T0 = 1_772_409_600_000_000
AS_OF = dt.datetime.fromtimestamp((T0 + 30 * HOUR) / 1e6, dt.UTC)


def impressions(start: int, n: int, hours: float = 0.0, experiment: str | None = "e") -> pa.Table:
    ids = [f"i{i}" for i in range(start, start + n)]
    return pa.table({
        "impression_id": ids, "request_id": ids, "slot": pa.array([0] * n, pa.int32()),
        "ts": pa.array([T0 + int(hours * HOUR)] * n, pa.timestamp("us", "UTC")), "ad_id": ["a"] * n,
        "price_per_click": [0.25] * n, "experiment_id": pa.array([experiment] * n, pa.string())})


def event(impression: str, kind: str, hours: float = 1.0, **more) -> dict:
    return {"impression_id": impression, "kind": kind, "ts": T0 + int(hours * HOUR), "value": None, "dwell_ms": None,
            "event_id": None, **more}


@pytest.fixture
def folder(tmp_path):
    pq.write_table(impressions(0, 6), tmp_path / "impressions-1.parquet")
    late = pa.concat_tables([impressions(5, 1), impressions(6, 2, 2.0, None), impressions(8, 2, 10.0)])
    pq.write_table(late.append_column("extra", pa.array([1.0] * 5)), tmp_path / "impressions-2.parquet")
    events = [event("i0", "click"), event("i0", "click", 2.0), event("i0", "engage", dwell_ms=12_000.0),
              event("i1", "convert", value=5.0, event_id="x"), event("i1", "convert", value=5.0, event_id="x"),
              event("i1", "convert", value=7.0, event_id="y"), event("i2", "hide"), event("i3", "click", 24.5),
              event("nowhere", "click"), event("i9", "click", 11.0), event("i7", "click", 25.0)]
    pq.write_table(pa.Table.from_batches([feedback_batch(events[:4])]), tmp_path / "feedback-1.parquet")
    pq.write_table(pa.Table.from_batches([feedback_batch(events[4:])]), tmp_path / "feedback-2.parquet")
    return tmp_path


def test_every_impression_once_with_what_came_of_it_in_its_window(folder):
    counts = join_feedback(folder, folder / "joined.parquet", as_of=AS_OF)
    table = read_parquet(folder / "joined.parquet", IMPRESSIONS)
    rows = {r["impression_id"]: r for r in table.to_pylist()}
    assert list(rows) == [f"i{i}" for i in range(8)]  # i8 and i9 may still be clicked
    assert [rows[f"i{i}"]["click"] for i in range(8)] == [1, 0, 0, 0, 0, 0, 0, 1]
    assert (rows["i0"]["engaged"], rows["i0"]["dwell_ms"], rows["i0"]["price_paid"]) == (1, 12_000.0, 0.25)
    assert (rows["i1"]["conversion"], rows["i1"]["value"], rows["i1"]["price_paid"]) == (1, 12.0, 0.0)
    assert rows["i2"]["hide"] == 1
    assert rows["i0"]["extra"] is None
    assert rows["i6"]["extra"] == 1.0
    assert counts == {"impressions": 8, "clicks": 2, "conversions": 1, "open": 2, "twice": 1, "events": 11,
                      "events_twice": 2, "events_late": 1, "events_unknown": 1}


def test_another_window_and_one_experiment(folder):
    counts = join_feedback(folder, folder / "out.parquet", as_of=AS_OF, window_hours=25.0, experiment="e")
    assert read_parquet(folder / "out.parquet")["click"].to_pylist() == [1, 0, 0, 1, 0, 0]
    assert counts["elsewhere"] == 2
    with pytest.raises(InputError, match="no impression whose window is over"):
        join_feedback(folder, folder / "none.parquet", as_of=AS_OF, window_hours=100.0)
    assert not list(folder.glob(".*")) + list(folder.glob("none*"))


def test_no_log_and_a_damaged_one_are_named(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no served impressions"):
        join_feedback(tmp_path / "empty", tmp_path / "x.parquet")
    (folder / "feedback-2.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="feedback-2"):
        join_feedback(folder, folder / "out.parquet")


def test_a_batch_of_events_keeps_the_contract():
    batch = feedback_batch([event("i", "click")])
    assert batch.schema.equals(FEEDBACK.schema())


def test_the_command_says_how_the_experiment_is_judged_by_its_rule(folder):
    from typer.testing import CliRunner

    from recsys.cli import app

    experiment = parse_model(ServedExperimentConfig, {
        "id": "e", "baseline": "a", "arms": {"a": {"share": 0.5}, "b": {"share": 0.5}}}, "test")
    register_experiment(experiment, folder / "_state")
    run = CliRunner().invoke(app, ["join-feedback", str(folder), "--out", str(folder / "out.parquet"), "--as-of",
                                   AS_OF.isoformat(), "--experiment", "e"])
    assert run.exit_code == 0, run.output
    assert "6 impressions" in run.output
    assert f"recsys ab {folder}/out.parquet --arm arm_id --baseline a" in run.output
    run = CliRunner().invoke(app, ["join-feedback", str(folder), "--out", "x.parquet", "--as-of", "soon"])
    assert isinstance(run.exception, InputError)
