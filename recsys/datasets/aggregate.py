"""What a recipe does with all rows at once: pooling repeated rows, naming stories, looking back in time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.past import add_past
from recsys.datasets.recipe import Recipe
from recsys.datasets.stories import story_ids
from recsys.stage import Stage


def aggregate(table: pa.Table, plan: Recipe, stage: Stage) -> pa.Table:
    """Pool and drop rows, put the story of each row into ``group_id``, and look back in time, as the recipe says.

    Args:
        table: all impressions of the raw file, validated.
        plan: the recipe.
        stage: told how many rows were pooled, how many dropped and why, and how many stories there are.

    Returns:
        The table with the same columns and those of ``past``; rows in the order of their first appearance.
    """
    if plan.pool is not None:
        table = _drop_empty(_pool(table, plan, stage), plan, stage)
    if plan.stories and table.num_rows:
        stories = story_ids(table.column("group_id"), table.column("ad_id"))
        table = table.set_column(table.column_names.index("group_id"), "group_id", stories)
        stage.rows["stories"] = pc.count_distinct(stories).as_py()
    return add_past(table, plan.past) if plan.past else table


def _pool(table: pa.Table, plan: Recipe, stage: Stage) -> pa.Table:
    """One row for each distinct ``by``, in the order in which they are first met."""
    assert plan.pool is not None
    by, added = list(plan.pool.by), list(plan.pool.sum)
    # Arrow's grouping promises no order of its groups, so the first row of each is found by its number.
    numbered = table.append_column("_row", pa.array(np.arange(table.num_rows)))
    groups = numbered.combine_chunks().group_by(by).aggregate([*((n, "sum") for n in added), ("_row", "min")])
    groups = groups.sort_by("_row_min")
    pooled = table.take(groups.column("_row_min"))
    for name in added:
        at = pooled.column_names.index(name)
        pooled = pooled.set_column(at, table.schema.field(name), groups.column(f"{name}_sum"))
    stage.facts["pooled_rows"] = table.num_rows - pooled.num_rows
    return pooled


def _drop_empty(pooled: pa.Table, plan: Recipe, stage: Stage) -> pa.Table:
    """Without rows never shown, and without requests that offer no choice."""
    assert plan.pool is not None
    if "trials" in pooled.column_names:
        shown = pooled.filter(pc.greater(pooled.column("trials"), 0))
        stage.facts["dropped_without_trials"] = pooled.num_rows - shown.num_rows
        pooled = shown
    if plan.pool.min_candidates > 1 and pooled.num_rows:
        codes = pooled.column("request_id").combine_chunks().dictionary_encode().indices.to_numpy()
        enough = np.bincount(codes)[codes] >= plan.pool.min_candidates
        stage.facts["dropped_without_choice"] = int((~enough).sum())
        pooled = pooled.filter(pa.array(enough))
    return pooled
