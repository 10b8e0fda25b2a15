"""The whole certification, resumable: every cell's result is a file of its own, written when it is finished."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.evaluation.certify import judge
from recsys.evaluation.certify.certificate import certificate_of, code_sha256
from recsys.evaluation.certify.measure import NOMINAL, LiftCell, ValueCell, measure_lift, measure_value
from recsys.evaluation.certify.propensities import PropensityCell, measure_propensities
from recsys.evaluation.certify.randomized import RandomizedCell, measure_randomized, randomized_cells
from recsys.evaluation.certify.traps import run_traps
from recsys.evaluation.certify.uniformity import NullCell, measure_null, nulls
from recsys.evaluation.certify.worlds import REGIMES
from recsys.log import log, progress
from recsys.stage import sha256_json, write_json

Cell = ValueCell | LiftCell | NullCell | RandomizedCell | PropensityCell
CTRS, OVERLAPS, SIZES = (0.001, 0.004, 0.02), ("good", "soft", "poor"), (2_000, 10_000, 50_000)
KINDS = ("iid", "clustered", "drifting")
# What a cell's result depends on, of recsys/evaluation, by section
_VALUES = ("intervals.py", "betting.py", "likelihood.py", "certify/worlds.py", "certify/measure.py", *(
    f"offpolicy/{name}.py" for name in ("answer", "estimators", "evidence", "rows", "support", "totals")))
_AB = ("ab/analysis.py", "ab/contrast.py", "sequential.py", "welch.py")
CODE = {"values": _VALUES, "lifts": _VALUES, "uniformity": (*_VALUES, *_AB, "certify/uniformity.py"),
        "randomized": ("intervals.py", "betting.py", "likelihood.py", "comparison.py", "randomized.py", *_AB,
                       "certify/randomized.py"),
        "propensities": ("offpolicy/propensity.py", "certify/worlds.py", "certify/propensities.py")}


def grid(replications: int, seed: int) -> list[Cell]:
    """The full certification: 81 cells of values, the lifts, randomised designs, and the cells without an effect."""
    values = [ValueCell(ctr, overlap, n, kind, replications, seed)  # type: ignore[arg-type]
              for kind, n, overlap, ctr in product(KINDS, SIZES, OVERLAPS, CTRS)]
    lifts = [LiftCell(at, replications, 100 * seed + at) for at in range(len(REGIMES))]
    return [*values, *lifts, *randomized_cells(replications, seed), *nulls(replications, seed),
            PropensityCell(replications, seed)]


def small_grid(replications: int, seed: int) -> list[Cell]:
    """A few cells of each section: seconds, for the tests."""
    return [ValueCell(0.02, "good", 2_000, "iid", replications, seed),
            ValueCell(0.004, "soft", 2_000, "clustered", replications, seed),
            ValueCell(0.004, "soft", 10_000, "drifting", replications, seed),
            LiftCell(2, replications, 100 * seed + 2), NullCell("ab", 0.1, replications, seed),
            RandomizedCell("ab", 0.02, 4_000, 0.5, 0, replications, seed),
            RandomizedCell("choice", 0.004, 60, 0.5, 200, replications, seed), PropensityCell(replications, seed)]


def measure(cell: Cell) -> dict[str, Any]:
    """Run one cell: its ``result``, and the ``seconds`` of processor time that it took."""
    began = time.process_time()
    if isinstance(cell, ValueCell):
        result = measure_value(cell)
    elif isinstance(cell, LiftCell):
        result = measure_lift(cell)
    elif isinstance(cell, RandomizedCell):
        result = measure_randomized(cell)
    else:
        result = measure_null(cell) if isinstance(cell, NullCell) else measure_propensities(cell)
    return {"result": result, "seconds": time.process_time() - began}


def certify(out: Path | str, small: bool = False, replications: int = 400, seed: int = 2, jobs: int = 1,
            data_home: Path | None = None, cells: list[Cell] | None = None) -> dict[str, Any]:
    """Measure every cell that ``out`` does not hold yet, spring the traps, and judge.

    Args:
        out: folder; ``cells/`` keeps each cell's result under a hash of its settings and of the code that it runs.
        small: a few cells instead of the grid.
        replications: logs per cell.
        seed: of the worlds; the interval policy's thresholds were chosen on 1.
        jobs: processes.
        data_home: raw data sets, for the Upworthy trap.
        cells: which; default: the grid.

    Returns:
        ``certificate`` (id and hashes of the methods), ``requirements``, ``cells``, ``traps``, and the settings.
    """
    for name, value in (("replications", replications), ("jobs", jobs)):
        if value < 1:
            raise InputError("setting not allowed", file=f"--{name}", got=value, expected="at least 1")
    out = Path(out)
    wanted = cells if cells is not None else small_grid(replications, seed) if small else grid(replications, seed)
    code = {section: _code(section) for section in CODE}
    paths = {cell: out / "cells" / f"{sha256_json([asdict(cell), code[cell.section]])[:20]}.json" for cell in wanted}
    missing = [cell for cell in wanted if not paths[cell].is_file()]
    if len(missing) < len(wanted):
        log.info("%d of %d cells are already measured", len(wanted) - len(missing), len(wanted))
    with progress("logs") as bar:
        task = bar.add_task("certifying", total=sum(c.work for c in missing))
        for cell, done in _measured(missing, jobs):
            write_json(paths[cell], done)
            bar.update(task, advance=cell.work)
            log.info("%s", describe(cell, done["result"]))
    stored = [json.loads(paths[cell].read_text()) for cell in wanted]
    made, traps = [s["result"] for s in stored], run_traps(data_home, seed)
    return {"certificate": certificate_of(made), "nominal": NOMINAL, "seed": seed, "replications": replications,
            "small": small, "processor_seconds": sum(s["seconds"] for s in stored),
            "requirements": judge.requirements(made, traps), "traps": traps, "cells": made}


def _code(section: str) -> str:
    folder = Path(__file__).parents[1]
    return sha256_json([code_sha256((folder / name).read_text()) for name in CODE[section]])


def _measured(cells: list[Cell], jobs: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    cells = sorted(cells, key=lambda c: -c.work)  # the long ones first: all processes end together
    if jobs == 1:
        for cell in cells:
            yield cell, measure(cell)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(measure, cell): cell for cell in cells}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def describe(cell: Cell, result: dict[str, Any]) -> str:
    """A cell in one line."""
    if isinstance(cell, PropensityCell):
        return f"{cell.name}: false alarms {result['false_alarms']}"
    if isinstance(cell, NullCell):
        return f"{cell.name}: " + ", ".join(f"{n} {t['rejected']:.3f}" for n, t in result["tests"].items())
    return f"{cell.name}: " + ", ".join(
        f"{n} {m['coverage']:.3f}" + ("" if judge.covers(result, n) in (True, None) else "!")
        for n, m in result["methods"].items())
