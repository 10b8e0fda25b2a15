"""Two workers' views of one service, without the processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recsys.serving.http.control import UNLOADED, Control
from recsys.serving.http.models import Models, UnknownModelError


@pytest.fixture
def folders(model: Path, tmp_path: Path) -> dict[str, Path]:
    for version in ("1", "2"):
        shutil.copytree(model, tmp_path / "versions" / version)
    return {"m": tmp_path / "versions"}


def other(shared: Path) -> tuple[Control, subprocess.Popen]:
    """Another worker's view, under the number of a process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    control = Control(shared, poll=0.01)
    control._own = shared / f"worker-{process.pid}.json"
    return control, process


@contextmanager
def two_workers(folders: dict[str, Path], shared: Path) -> Iterator[
        tuple[Path, tuple[Control, Models], tuple[Control, Models], subprocess.Popen]]:
    """The folder, this worker and another one, both of which serve version 1, and the other's process."""
    shared.mkdir()
    mine, first = Control(shared, poll=0.01), Models(folders)
    control, process = other(shared)
    second = Models(folders)
    try:
        first.load("m", "1")
        second.load("m", "1")
        mine.follow(first)
        control.follow(second)
        yield shared, (mine, first), (control, second), process
    finally:
        process.kill()
        process.wait()
        mine.stop()
        control.stop()


def test_a_change_reaches_all_workers_before_it_is_reported(folders: dict[str, Path], tmp_path: Path) -> None:
    with two_workers(folders, tmp_path / "shared") as (shared, (mine, first), (control, second), process):
        first.load("m", "2")
        assert mine.publish("m", "2")
        assert second.get("m").version == "2"
        assert Control(shared).wanted() == {"m": "2"}  # what a worker that starts later goes by
        second.unload("m")
        assert control.publish("m", UNLOADED)
        with pytest.raises(UnknownModelError):
            first.get("m")

        first.load("m", "1")
        shutil.rmtree(folders["m"] / "1")  # the second has no way to follow
        assert not mine.publish("m", "1")
        process.kill()
        process.wait()
        control.stop()
        assert json.loads((shared / "wanted.json").read_text())["m"][1] == "1"
        (shared / f"worker-{process.pid}.json").write_text("{}")
        began = time.monotonic()
        assert mine.publish("m", "1", timeout=60)  # the dead are not waited for
        assert time.monotonic() - began < 30


def test_of_two_loads_at_once_in_two_workers_the_later_one_is_served_by_both(folders: dict[str, Path],
                                                                            tmp_path: Path) -> None:
    with two_workers(folders, tmp_path / "shared") as (_, (mine, first), (control, second), _):
        first.load("m", "2")  # for a client of this worker, and before it is published ...
        assert control.publish("m", "1")  # ... another worker's client has asked for the other one, which is followed
        assert first.get("m").version == "1"
        assert mine.publish("m", "2")
        assert (first.get("m").version, second.get("m").version) == ("2", "2")


def test_a_damaged_file_does_not_end_the_following(folders: dict[str, Path], tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    control, models = Control(shared, poll=0.01), Models(folders)
    models.load("m", "1")
    control.follow(models)
    try:
        read = control._read
        failed = threading.Event()

        def damaged(path: Path) -> dict:
            control._read = read  # type: ignore[method-assign]
            failed.set()
            raise OSError("no space left on device")

        control._read = damaged  # type: ignore[method-assign]
        assert failed.wait(60)
        (shared / "wanted.json").write_text('{"m": [1, "2"]}')
        until = time.monotonic() + 60
        while models.get("m").version != "2" and time.monotonic() < until:
            time.sleep(0.01)
        assert models.get("m").version == "2"
    finally:
        control.stop()
