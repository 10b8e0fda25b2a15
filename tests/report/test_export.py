from __future__ import annotations

import csv
from pathlib import Path

from recsys.report import write_csv
from tests.report import samples


def rows(lift: dict, folder: Path) -> list[dict[str, str]]:
    write_csv(lift, folder / "lift.csv")
    with (folder / "lift.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_table_says_what_the_report_says(tmp_path: Path) -> None:
    lift = samples.decided()
    found = {(r["arm"], r["metric"]): r for r in rows(lift, tmp_path)}
    assert len(found) == 4 * 3
    goal = found["minilm", "ctr"]
    assert (float(goal["lift"]), float(goal["lift_low"]), float(goal["lift_high"])) == (.089, .058, .121)
    assert (goal["role"], goal["verdict"], goal["decision_sha256"]) == ("goal", "Ship", lift["decision"]["sha256"])
    assert found["minilm", "engagement"]["role"] == "guardrail"
    assert found["minilm", "revenue_per_mille"]["role"] == "other"
    assert found["ids_only", "ctr"]["verdict"] == ""


def test_a_bare_report_and_a_name_that_is_a_formula(tmp_path: Path) -> None:
    lift = samples.minimal()
    lift["arms"]["=HYPERLINK(1)"] = {"lift": None}
    found = rows(lift, tmp_path)
    assert [r["arm"] for r in found] == ["a", "b", "'=HYPERLINK(1)"]
    assert found[1]["lift"] == "0.01"


def test_segments_are_rows_of_their_own(tmp_path: Path) -> None:
    lift = samples.evidenced()
    found = {(r["arm"], r["segment"]): r for r in rows(lift, tmp_path) if r["role"] == "segment"}
    assert len(found) == 3 * (3 + 8)
    one = found["minilm", "surface=discovery"]
    assert (float(one["lift"]), float(one["lift_low"]), float(one["p_adjusted"])) == (.09, -.05, .003)
    assert found["hashed", "surface=messaging"]["lift"] == ""  # refused
    assert one["verdict"] == ""
