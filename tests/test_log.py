from __future__ import annotations

import logging

import pytest

from recsys.log import log, progress


@pytest.fixture
def lines() -> list[str]:
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    level = log.level
    log.setLevel("INFO")
    yield found
    log.removeHandler(handler)
    log.setLevel(level)


def test_off_a_terminal_lines_say_what_the_bar_would(lines: list[str]) -> None:
    with progress("samples", every=0.0) as bar:
        task = bar.add_task("training x", total=400)
        bar.advance(task, 100)
        bar.update(task, info="loss 0.41")
        bar.advance(task, 100)
    assert lines[0].startswith("training x: 100/400 (25 %) samples, ")
    assert lines[1].startswith("training x: 200/400 (50 %) samples, ")
    assert lines[1].endswith("left, loss 0.41")


def test_lines_are_rare(lines: list[str]) -> None:
    with progress("rows") as bar:
        task = bar.add_task("x", total=None)
        for _ in range(1000):
            bar.advance(task, 1)
    assert lines == []


def test_on_a_terminal_the_bar_shows_rate_and_info() -> None:
    import io

    from rich.console import Console

    with progress("samples") as bar:
        task = bar.add_task("training x", total=400, completed=100)
        bar.update(task, info="loss 0.41, NE 0.9")
        shown = Console(file=io.StringIO(), width=200, force_terminal=True)
        shown.print(bar.get_renderable())
        text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "samples/s" in text
    assert "loss 0.41, NE 0.9" in text
    assert "100/400" in text
