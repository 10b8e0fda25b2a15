"""``recsys prepare``: raw files (or the simulator) to a prepared dataset folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.datasets.aggregate import aggregate
from recsys.datasets.build import ImpressionReader, read_ads, refuse_empty
from recsys.datasets.info import DatasetInfo, load_dataset_info, save_dataset_info
from recsys.datasets.recipe import RawTable, Recipe, SimulateRecipe, load_recipe
from recsys.errors import InputError
from recsys.log import log, progress
from recsys.row_groups import RowGroupWriter
from recsys.stage import Stage, run_stage

HOME = "RECSYS_DATA_HOME"


def prepare(recipe: str | Path, out: str | Path, *, data_home: str | Path | None = None,
            files: dict[str, str] | None = None, params: dict[str, Any] | None = None,
            seed: int = 0) -> dict[str, Any]:
    """Make a prepared dataset (docs/architecture.md) out of a recipe's raw files.

    Large files are streamed: memory does not grow with the rows unless the recipe pools them.

    Args:
        recipe: name of a shipped recipe, or path to one.
        out: output folder.
        data_home: folder that holds the raw files; default: the environment's RECSYS_DATA_HOME.
        files: table name (``impressions``, ``ads``) -> raw file to read instead of the recipe's own;
            looked for as given, then below the data home.
        params: overrides of a simulation's parameters.
        seed: of a simulation.

    Returns:
        The stage's manifest; ``rows`` counts what was written, ``facts`` says what was dropped and why.

    Raises:
        InputError: a raw file is missing or bad, or breaks the contract; nothing is left behind.
    """
    plan = load_recipe(recipe)
    if isinstance(plan, SimulateRecipe):
        if files:
            raise InputError("a simulated data set reads no files", file=recipe, got=sorted(files))
        return _simulate(plan, Path(out), {**plan.parameters, **(params or {})}, seed)
    if params:
        raise InputError("not a simulation, so it has no parameters", file=recipe, got=sorted(params))
    paths = find_files(plan, data_home, files)
    return run_stage("prepare", out, config={"recipe": plan.model_dump(mode="json", by_alias=True)}, inputs=paths,
                     build=lambda stage: _build(plan, paths, stage))


def _simulate(plan: SimulateRecipe, out: Path, params: dict[str, Any], seed: int) -> dict[str, Any]:
    from recsys.datasets.simulate import simulate_dataset

    def build(stage: Stage) -> None:
        stage.rows.update(simulate_dataset(params, seed, stage.folder))
        load_dataset_info(stage.folder)

    return run_stage("simulate", out, config={"parameters": params, "seed": seed}, inputs={}, build=build)


def find_files(plan: Recipe, data_home: str | Path | None = None,
               files: dict[str, str] | None = None) -> dict[str, Path]:
    """Where each raw table of a recipe lies.

    Raises:
        InputError: no data home is known, or the file is not there; says where it is published and under which terms.
    """
    files, home = files or {}, data_home or os.environ.get(HOME) or None
    tables = {"impressions": plan.tables.impressions, **({"ads": plan.tables.ads} if plan.tables.ads else {})}
    if unknown := sorted(set(files) - set(tables)):
        raise InputError("no such table in the recipe", file=plan.name, got=unknown[0],
                         expected=f"one of {sorted(tables)}")
    return {name: _find_file(plan, table, files.get(name), Path(home) if home else None)
            for name, table in tables.items()}


def _find_file(plan: Recipe, table: RawTable, given: str | None, home: Path | None) -> Path:
    terms = f"published at {plan.published or 'no known place'}; licence: {plan.licence or 'none stated'}"
    if given is not None:
        tried = [Path(given), *([home / given] if home else [])]
        wanted = f"a file of the shape of {table.file[0]}, looked for as {' and '.join(map(str, tried))}"
    elif home is None:
        raise InputError("no data home", file=plan.name,
                         expected=f"--data-home or {HOME} to name the folder that holds {table.file[0]} ({terms})")
    else:
        tried = [home / name for name in table.file]
        wanted = f"{' or '.join(table.file)} below {home}"
    for path in tried:
        if path.is_file():
            return path
    raise InputError("raw file not found", file=tried[0], expected=f"{wanted} ({terms})")


def _build(plan: Recipe, paths: dict[str, Path], stage: Stage) -> None:
    ads = read_ads(plan, paths["ads"]) if "ads" in paths else None
    target, work = stage.path("impressions.parquet"), ImpressionReader(plan, paths["impressions"], ads)
    batches = work.batches()
    if plan.pool is not None or plan.stories or plan.past:  # all look at all rows at once
        parts = list(batches)
        batches = iter([aggregate(pa.concat_tables(parts), plan, stage)] if parts else [])
    stage.rows["impressions"] = _stream(batches, target)
    refuse_empty(stage.rows["impressions"], paths["impressions"])
    ads = ads if ads is not None else work.derived_ads(target)
    if ads is not None:
        pq.write_table(ads, stage.path("ads.parquet"))
        stage.rows["ads"] = ads.num_rows
    stage.facts.update(rows_read=work.rows_read, dropped=work.dropped)
    save_dataset_info(DatasetInfo(
        name=plan.name, source=plan.published, licence=plan.licence, dense=plan.features.dense,
        sparse=plan.features.sparse, sequence=plan.features.sequence, ad_features=plan.features.ads,
        ad_past=tuple(n for n, rule in plan.past.items() if rule.by != "user_id"),
        id_rows=plan.features.id_rows, label=plan.label, text=plan.text, stories=plan.stories), stage.folder)
    log.info("prepare %s: %s rows read, %s impressions written, dropped %s", plan.name, f"{work.rows_read:,}",
             f"{stage.rows['impressions']:,}", work.dropped or "none")


def _stream(batches: Iterator[pa.Table], path: Path) -> int:
    with progress() as bar, RowGroupWriter(path) as writer:
        task = bar.add_task("prepare", total=None)
        for table in batches:
            writer.write(table)
            bar.update(task, advance=table.num_rows)
            log.debug("prepare: %s rows read", f"{writer.rows:,}")
    return writer.rows
