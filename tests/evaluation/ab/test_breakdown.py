"""An experiment's segments and growth: equal to analyses of the parts, and level under no effect."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import InputError
from recsys.evaluation.ab.analysis import Plan, analyse
from recsys.evaluation.ab.breakdown import growth_of, segment_lifts
from recsys.evaluation.ab.parts import read_segment_parts, read_time_parts
from recsys.evaluation.ab.units import Metric, parse_metric, read_units
from tests.evaluation.ab.samples import exposures, written
from tests.experiment.test_ab import ab

CTR, PLAN = parse_metric("click/rows"), Plan("a")


def log(users: int = 3000, seed: int = 0, lift: float = 0.3, only: str | None = None) -> pa.Table:
    """Exposures with a device per user, a surface and a time per row; the lift is all devices' or ``only`` one's."""
    rng = np.random.default_rng(seed + 1000)
    table = exposures(users, lift if only is None else 0.0, seed)
    user = np.array([int(u[1:]) for u in table["user_id"].to_pylist()])
    device = np.array(["phone", "desk", "tablet"])[rng.integers(0, 3, users)][user]
    if only is not None:
        more = (device == only) & (np.array(table["arm"].to_pylist()) == "b") & (rng.random(len(user)) < lift)
        table = table.set_column(table.column_names.index("click"), "click",
                                 pa.array(np.maximum(table["click"].to_numpy(), more).astype(np.int8)))
    return (table.append_column("device", pa.array(device))
            .append_column("surface", pa.array(np.array(["feed", "story"])[rng.integers(0, 2, len(user))]))
            .append_column("ts", pa.array(rng.permutation(len(user)).astype("datetime64[s]"))))


def parts_of(file, column: str, metrics=(CTR,)):
    return read_segment_parts(file, "arm", "user_id", list(metrics), column)


def test_a_segment_is_the_analysis_of_its_own_rows(tmp_path):
    table = log()
    file = written(tmp_path, table)
    for metric in (CTR, parse_metric("value"), parse_metric("value", {"": "before"})):
        for column, value in (("device", "desk"), ("surface", "story")):
            made = {column: parts_of(file, column, [metric])}
            found = segment_lifts(made, metric, {"b": 0.3}, "a", 0.95, None)[column]
            own = written(tmp_path / "own", table.filter(pa.compute.equal(table[column], value)))
            whole = analyse(read_units(own, "arm", "user_id", [metric]), [metric], PLAN)
            line = whole["metrics"][metric.name]["variants"]["b"]
            one = found["arms"]["b"]["values"][value]
            for end in ("estimate", "low", "high"):
                assert one["lift"][end] == pytest.approx(line[line["decided_on"]]["relative"][end], rel=1e-9)
            assert one["p_value"] == pytest.approx(line["p_value"], rel=1e-6)
            assert found["values"][value] == {"n": whole["rows"], "clusters": sum(whole["arms"].values())}


def test_growth_ends_at_the_overall_lift_and_is_the_analysis_of_the_first_rows(tmp_path):
    table = log()
    file = written(tmp_path, table)
    whole = analyse(read_units(file, "arm", "user_id", [CTR]), [CTR], Plan("a", looks=3))
    grown = growth_of(read_time_parts(file, "arm", "user_id", [CTR], "ts", 5), "ts", CTR, "a", 0.95, 5000.0)
    last = grown["arms"]["b"][-1]
    relative = whole["metrics"]["click/rows"]["variants"]["b"]["raw"]["relative"]
    assert (grown["arms"]["b"][0]["label"], last["label"]) == ("exploratory", "confirmatory")
    assert last["lift"]["low"] < relative["low"] < relative["high"] < last["lift"]["high"]  # looks before had a share
    fewer = growth_of(read_time_parts(file, "arm", "user_id", [CTR], "ts", 2), "ts", CTR, "a", 0.95, 5000.0)
    assert {p["label"] for p in fewer["arms"]["b"]} == {"confirmatory"}
    assert fewer["arms"]["b"][-1]["lift"] == pytest.approx({k: relative[k] for k in ("estimate", "low", "high")})
    assert last["n"] == table.num_rows
    second = grown["arms"]["b"][1]
    order = np.argsort(np.array(table["ts"]), kind="stable")
    early = read_units(written(tmp_path / "early", table.take(pa.array(order[:second["n"]]))), "arm", "user_id", [CTR])
    assert second["n"] == int(np.ceil(0.4 * table.num_rows))
    assert second["units"] == sum(early.counts)
    alone = analyse(early, [CTR], Plan("a"))["metrics"]["click/rows"]["variants"]["b"]["raw"]["relative"]
    assert second["one_look"] == pytest.approx({k: alone[k] for k in ("estimate", "low", "high")})
    assert all(p["lift"]["low"] < p["one_look"]["low"] for p in grown["arms"]["b"])
    halves = grown["halves"]["b"]
    assert halves["p_value"] > 0.001
    assert halves["first"]["low"] < 0.3 < halves["first"]["high"]


def test_where_segments_are_alike_the_test_of_their_difference_keeps_its_level(tmp_path):
    """Users are on both surfaces, so that segments depend on each other: p-values over 30 logs without a lift."""
    p_values = []
    for seed in range(30):
        made = parts_of(written(tmp_path, log(2500, seed, lift=0.0), rows=100_000), "surface")
        found = segment_lifts({"surface": made}, CTR, {"b": 0.0}, "a", 0.95, None)["surface"]
        p_values.append(found["arms"]["b"]["heterogeneity"]["p_value"])
    assert abs(np.mean(p_values) - 0.5) < 4 * np.sqrt(1 / 12 / 30)
    assert np.mean(np.array(p_values) < 0.1) < 0.1 + 3 * np.sqrt(0.09 / 30)


def test_a_lift_on_one_device_is_found_corrected_and_drawn_together(tmp_path):
    file = written(tmp_path, log(4000, only="phone", lift=0.05))
    metrics = [CTR, Metric("value")]
    units = read_units(file, "arm", "user_id", metrics)
    result = analyse(units, metrics, PLAN, segments={"device": parts_of(file, "device", metrics)})
    one = result["metrics"]["click/rows"]["segments"]["device"]["arms"]["b"]
    assert one["heterogeneity"]["p_adjusted"] < 0.01
    assert one["values"]["phone"]["p_adjusted"] < 0.01 < one["values"]["desk"]["p_adjusted"]
    overall = result["metrics"]["click/rows"]["variants"]["b"]["raw"]["relative"]["estimate"]
    for line in one["values"].values():
        assert line["p_adjusted"] >= line["p_value"]
        assert abs(line["shrunk"]["estimate"] - overall) < abs(line["lift"]["estimate"] - overall)


def test_a_segment_that_the_arms_changed_is_refused(tmp_path):
    table = log(4000)
    arm = np.array(table["arm"].to_pylist())
    moved = np.where((arm == "b") & (np.array(table["click"]) == 1), "clicker", "other")
    file = written(tmp_path, table.append_column("kind", pa.array(moved)))
    found = segment_lifts({"kind": parts_of(file, "kind")}, CTR, {"b": 0.3}, "a", 0.95, None)["kind"]
    assert set(found) == {"refused"}
    assert "known before the experiment" in found["refused"]


def test_the_command_shows_segments_and_growth(tmp_path):
    file = written(tmp_path, log(4000, only="phone", lift=0.05))
    more = ("--metric", "click/rows", "--segment", "device", "--segment", "surface", "--time", "ts")
    done = ab(file, *more)
    assert done.exit_code == 0, done.output
    for words in ("by device", "phone", "segments differ", "as the data grew", "first half"):
        assert words in done.output, words
    found = json.loads(ab(file, *more, "--json").output)["metrics"]["click/rows"]
    assert set(found["segments"]) == {"device", "surface"}
    assert found["growth"]["looks"] == 20


@pytest.mark.parametrize(("more", "words"), [
    (("--segment", "nope"), "column nope"), (("--segment", "click"), "what is analysed"),
    (("--segment", "arm"), "what is analysed"), (("--time", "nope"), "column nope")])
def test_bad_columns_are_bad_input(tmp_path, more, words):
    done = ab(written(tmp_path, log(600)), "--metric", "click/rows", *more)
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)


def test_a_time_that_is_not_there_is_named(tmp_path):
    table = log(600)
    ts = table["ts"].to_pylist()
    ts[5] = None
    file = written(tmp_path, table.set_column(table.column_names.index("ts"), "ts", pa.array(ts)))
    with pytest.raises(InputError, match="column ts, row 5"):
        read_time_parts(file, "arm", "user_id", [CTR], "ts", 5)
