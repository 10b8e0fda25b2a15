from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from recsys.cli import app, main
from tests.evaluation.ab.samples import exposures, written

RUN = CliRunner()


def ab(file: Path, *more: str):
    return RUN.invoke(app, ["ab", str(file), "--arm", "arm", "--baseline", "a", *more])


def test_ab_prints_health_above_the_numbers(tmp_path):
    file = written(tmp_path, exposures(2000, lift=0.3))
    done = ab(file, "--metric", "click/rows", "--metric", "value", "--covariate", "click/rows=before", "--aa", "200")
    assert done.exit_code == 0, done.output
    assert done.output.index("sample ratio") < done.output.index("click/rows")
    for words in ("raw", "cuped", "variance -", "adjusted", "with 80 % power", "A/A on the same units"):
        assert words in done.output


def test_ab_json_and_the_always_valid_default(tmp_path):
    file = written(tmp_path, exposures(2000, lift=0.3))
    result = json.loads(ab(file, "--metric", "click/rows", "--looks", "4", "--json").output)
    assert result["plan"]["method"] == "sequential"
    assert result["metrics"]["click/rows"]["variants"]["b"]["raw"]["relative"]["method"] == "always_valid"


def test_an_arm_that_is_null_is_one_line_of_bad_input(tmp_path):
    table = exposures(600)
    arms = table.column("arm").to_pylist()
    arms[7] = None
    at = table.column_names.index("arm")
    for column in (pa.array(arms), pa.array(arms).dictionary_encode()):
        done = ab(written(tmp_path, table.set_column(at, "arm", column)), "--metric", "click/rows")
        assert done.exception.exit_code == 2
        assert "column arm, row 7: value not allowed; got 'None'" in str(done.exception)


def few_carry_all() -> pa.Table:
    """Ten users have 400 rows each and a rate of their own, 300 users one row."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(310), np.append(np.full(10, 400), np.ones(300, int)))
    return pa.table({"user_id": user, "arm": np.array(["a", "b"])[user % 2],
                     "click": (rng.random(len(user)) < rng.beta(1, 4, 310)[user]).astype(np.int8)})


@pytest.mark.parametrize(("table", "more", "words"), [
    (exposures(600, per_impression=True), [], "one arm per unit"),
    (exposures(600), ["--looks", "3", "--method", "fixed"], "always-valid"),
    (exposures(600), ["--unit", "impression_id"], "analyse by user_id"),
    (exposures(4000, arms=("a", "b", "b")), [], "sample ratio"),
    (exposures(20), [], "effective sample size"),
    (pa.concat_tables([exposures(600)] * 2), [], "duplicate exposures"),
    (few_carry_all(), ["--metric", "click/rows", "--aa", "300"], "does not keep its level"),
    (few_carry_all().append_column("big", pa.array(np.full(4300, 1e300))), ["--metric", "big"], "no number any more"),
])
def test_traps_end_in_exit_code_3(tmp_path, table, more, words):
    done = ab(written(tmp_path, table), "--metric", "click", "--json", *more)
    refused = json.loads(done.output)
    assert words in refused["refused"]
    assert "metrics" not in refused
    assert done.exit_code == 3


def test_a_refused_experiment_says_so_on_the_terminal_and_on_its_page(tmp_path):
    """Health lines and the reason, and no lift: not where the arms are unlike, nor where the test is unreliable."""
    for table, more in ((exposures(600, arms=("a", "b", "b")), []),
                        (few_carry_all(), ["--metric", "click/rows", "--aa", "300"])):
        page = tmp_path / "page.html"
        done = ab(written(tmp_path, table), "--metric", "click", *more, "--html", str(page))
        assert done.exit_code == 3
        assert "FAIL" in done.output
        assert "refused: " in done.output
        assert "relative" not in done.output
        text = page.read_text()
        assert "No lift is shown" in text
        assert "<svg" not in text


@pytest.mark.parametrize("more", [
    ["--metric", "nope"], ["--metric", "click/"], ["--metric", "click", "--unit", "nope"],
    ["--metric", "click", "--alpha", "2"], ["--metric", "click", "--share", "a"],
    ["--metric", "click", "--share", "a=x"], ["--metric", "click", "--share", "a=0.5", "--share", "b=0.7"],
    ["--metric", "click", "--covariate", "value=before"],
    ["--metric", "click", "--aa", "5"], ["--metric", "click", "--winsorise", "0.1"],
    ["--metric", "click", "--baseline", "zzz"], ["--metric", "user_id", "--unit", "impression_id"],
])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, more, capsys):
    file = written(tmp_path, exposures(100))
    with pytest.raises(SystemExit) as end:
        main(["ab", str(file), "--arm", "arm", "--baseline", "a", *more])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


def test_help_needs_no_statistics_library():
    code = ("import sys, recsys.cli; bad = {'scipy', 'statsmodels', 'tea_tasting', 'ibis', 'pandas', 'pyarrow'}; "
            "assert not bad & set(sys.modules), bad & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
