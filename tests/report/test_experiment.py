"""``recsys ab`` on the report's page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from recsys.cli import app
from tests.evaluation.ab.samples import exposures, written
from tests.evaluation.ab.test_breakdown import log
from tests.report.test_page import Page


def page_of(folder: Path, table, *more: str) -> Page:
    file = written(folder, table)
    done = CliRunner().invoke(app, ["ab", str(file), "--arm", "arm", "--baseline", "a", "--html",
                                    str(folder / "ab.html"), *more])
    assert done.exit_code in (0, 3), done.output
    return Page((folder / "ab.html").read_text())


def test_an_experiment_is_on_the_page_with_growth_and_segments(tmp_path: Path) -> None:
    page = page_of(tmp_path, log(4000, only="phone", lift=0.1), "--metric", "click/rows", "--metric", "value",
                   "--covariate", "click/rows=before", "--segment", "device", "--time", "ts", "--aa", "200")
    for words in ("b is estimated to lift click/rows by", "randomised experiment", "Adjusted p", "as the data grew",
                  "Lifts are seen to differ between segments: b by device", "With and without the covariate",
                  "phone", "keeps its level", "recsys ab --json", "holm"):
        assert words in page.text, words
    for words in ("Cost per 1,000", "cost statement", "offline estimate", "doubly robust"):
        assert words not in page.text, words
    assert len(page.all("svg")) == 4


def test_a_refused_segment_and_a_stricter_level(tmp_path: Path) -> None:
    table = log(4000, only="phone", lift=0.05)
    page = page_of(tmp_path, table, "--metric", "click/rows", "--segment", "device", "--alpha", "1e-9")
    assert "Lifts are seen to differ" not in page.text
    assert "▲" not in page.text.split("Segments named before the results")[1].split("▲ and ▼")[0]


@pytest.mark.parametrize("arms", [("a", "b", "b")])
def test_an_unhealthy_experiment_has_no_lift_on_its_page(tmp_path: Path, arms: tuple[str, ...]) -> None:
    page = page_of(tmp_path, exposures(4000, 0.3, arms=arms), "--metric", "click/rows")
    assert "FAILED: sample ratio" in page.text
    assert not page.all("svg")
    assert "+" not in page.text.split("What each arm brings")[1]


def test_a_baseline_too_near_zero_leaves_the_difference(tmp_path: Path) -> None:
    """2 of 1,300 users converted: no relative lift has an upper end, and the difference is told all the same."""
    arm = np.repeat([0, 1, 2], 1300)
    converted = np.concatenate([np.arange(1300) < n for n in (2, 8, 26)])
    table = pa.table({"user_id": np.arange(3900), "arm": np.array(["a", "b", "c"])[arm],
                      "conversion": converted.astype(np.int8), "click": (np.arange(3900) % 7 == 0).astype(np.int8)})
    page = page_of(tmp_path, table, "--metric", "conversion", "--metric", "click")
    assert "c is above a in conversion rate (2.00 % against 0.154 %); a is too near zero" in page.text
    for words in ("no upper end", "times as much", "▲ better", "◆ inconclusive"):
        assert words in page.text, words
    beside = page_of(tmp_path, table, "--metric", "click", "--metric", "conversion")
    assert "no relative lift" in beside.text
    assert "No arm stands out from a" in beside.text
    fewer = page_of(tmp_path, table.slice(0, 2600), "--metric", "conversion")
    assert "No arm stands out from a. The highest conversion rate is b's" in fewer.text
