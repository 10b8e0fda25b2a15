"""Stages: whole or not at all, never twice, and a killed one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from recsys.errors import InputError
from recsys.stage import read_manifest, run_stage, sha256_file, write_atomic, write_json
from tests.processes import wait_until


def build(text: str, calls: list[str]):
    def inner(stage) -> None:
        calls.append(text)
        stage.path("deep/x.txt").write_text(text)
        stage.rows["x"] = 1

    return inner


def test_a_second_run_does_nothing_and_other_inputs_replace_the_whole(tmp_path: Path):
    calls: list[str] = []
    source, out = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("1")
    assert not run_stage("s", out, config={"a": 1}, inputs={"i": source}, build=build("one", calls))["cached"]
    again = run_stage("s", out, config={"a": 1}, inputs={"i": source}, build=build("two", calls))
    assert again["cached"]
    assert calls == ["one"]
    source.write_text("2")
    run_stage("s", out, config={"a": 1}, inputs={"i": source}, build=build("three", calls))
    assert (out / "deep/x.txt").read_text() == "three"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_bad_input_leaves_nothing_behind_and_keeps_the_old_result(tmp_path: Path):
    out = tmp_path / "out"
    run_stage("s", out, config={}, inputs={}, build=build("good", []))

    def fails(stage) -> None:
        stage.path("half.txt").write_text("half")
        raise InputError("bad", file="x")

    with pytest.raises(InputError):
        run_stage("s", out, config={"other": 1}, inputs={}, build=fails)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "deep/x.txt").read_text() == "good"


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_at_the_same_stage_one_waits_and_finds_it_done(tmp_path: Path, caplog, resume: bool):
    caplog.set_level("INFO", "recsys")
    out, begun, go, calls = tmp_path / "out", Event(), Event(), []

    def slow(stage) -> None:
        stage.path("half.txt").write_text("half")
        begun.set()
        assert go.wait(300)
        build("whole", calls)(stage)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run_stage, "s", out, config={}, inputs={}, build=slow, resume=resume)
        assert begun.wait(300)
        second = pool.submit(run_stage, "s", out, config={}, inputs={}, build=slow, resume=resume)
        wait_until(lambda: "another process works in" in caplog.text or second.done(), "the second to meet the first")
        go.set()
        assert [first.result()["cached"], second.result()["cached"]] == [False, True]
    assert calls == ["whole"]
    assert sorted(p.name for p in out.iterdir()) == ["deep", "half.txt", "manifest.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_result_that_appears_while_another_is_published_is_replaced_whole(tmp_path: Path, monkeypatch):
    out, replace = tmp_path / "out", os.replace

    def late(source, target) -> None:
        if Path(target) == out and Path(source).name.endswith(".partial"):
            monkeypatch.setattr(os, "replace", replace)
            run_stage("s", out, config={"other": 1}, inputs={}, build=build("theirs", []))
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    run_stage("s", out, config={}, inputs={}, build=build("mine", []))
    assert (out / "deep/x.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_foreign_folder_is_never_overwritten(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a stage's output"):
        run_stage("s", out, config={}, inputs={}, build=build("x", []))
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_missing_input_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="gone"):
        run_stage("s", tmp_path / "out", config={}, inputs={"i": tmp_path / "gone"}, build=build("x", []))


KILLED = """
import os, signal, sys
from pathlib import Path
from recsys.stage import run_stage
def build(stage):
    done = sorted(p.name for p in stage.folder.glob("part*"))
    for part in range(len(done), 3):
        stage.path(f"part{part}").write_text(str(part))
        if part == 1 and not done:
            os.kill(os.getpid(), signal.SIGKILL)
run_stage("s", Path(sys.argv[1]), config={}, inputs={}, build=build, resume=True)
"""


def test_a_killed_stage_goes_on_where_it_was(tmp_path: Path):
    out = tmp_path / "out"
    first = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert first.returncode == -signal.SIGKILL
    assert not out.exists()
    subprocess.run([sys.executable, "-c", KILLED, str(out)], check=True)
    assert sorted(os.listdir(out)) == ["manifest.json", "part0", "part1", "part2"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_json_refuses_nan_and_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_folders_hash_by_manifest_or_contents(tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        (folder / "f").write_text("same")
    assert sha256_file(a) == sha256_file(b)
    write_atomic(b / "f", "other")
    assert sha256_file(a) != sha256_file(b)
    assert read_manifest(a) is None


def test_a_result_killed_just_before_its_rename_is_published_not_made_again(tmp_path: Path):
    out, calls = tmp_path / "out", []
    run_stage("s", out, config={}, inputs={}, build=build("old", calls))
    manifest = run_stage("s", tmp_path / "other", config={"a": 1}, inputs={}, build=build("new", calls))
    (tmp_path / "other").rename(tmp_path / f".out.{manifest['key'][:12]}.partial")
    assert run_stage("s", out, config={"a": 1}, inputs={}, build=build("never", calls))["cached"]
    assert (out / "deep/x.txt").read_text() == "new"
    assert calls == ["old", "new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_umask_decides_who_may_read_a_result(tmp_path: Path) -> None:
    def build(stage) -> None:
        stage.path("open.json").write_text("{}")
        stage.path("weights.safetensors").write_bytes(b"")
        stage.path("weights.safetensors").chmod(0o600)  # as safetensors leaves it

    before = os.umask(0o027)
    try:
        run_stage("stage", tmp_path / "out", config={}, inputs={}, build=build)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}
