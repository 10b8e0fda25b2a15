"""The leakage audit of a split.

A text that stands in both parts lets a model that reads no text at all look good: it need only remember
how often the text was clicked (on Upworthy, such a memoriser gets 88.75 % of headline pairs right on a
random split). So where the recipe says that rows belong to stories, a split that shares one is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.datasets.info import DatasetInfo
from recsys.errors import Refused


def audit_split(folder: Path, info: DatasetInfo, how: dict[str, Any],
                dropped: dict[str, Any] | None = None) -> dict[str, Any]:
    """Count rows, requests, groups and texts of ``train.parquet`` and ``test.parquet``, and what they share.

    Args:
        folder: holds the two parts.
        info: ``stories`` decides whether a shared group or text is a leak.
        how: kind and parameters of the split; stands in the audit as it is.
        dropped: rows left out of both parts, and why.

    Returns:
        ``{**how, "rows": {train, test}, "requests" | "groups" | "texts": {train, test, shared}, "dropped": {...},
        "stories": bool}``. Texts are told apart by ``ad_id`` (the hash of the text, in story data).

    Raises:
        Refused: stories or texts are shared, and the recipe has stories.
    """
    files = {side: folder / f"{side}.parquet" for side in ("train", "test")}
    names = pq.read_schema(files["train"]).names
    audit: dict[str, Any] = {**how, "rows": {s: pq.read_metadata(f).num_rows for s, f in files.items()},
                             "dropped": dropped or {"rows": 0}, "stories": info.stories}
    for label, column in (("requests", "request_id"), ("groups", "group_id"), ("texts", "ad_id")):
        if column in names:
            audit[label] = _shared(files, column)
    groups, texts = audit.get("groups", {"shared": 0}), audit["texts"]
    if info.stories and (groups["shared"] or texts["shared"]):
        raise Refused(
            f"a split by {how['kind']} leaks: {texts['shared']:,} texts and {groups['shared']:,} stories of "
            f"{info.name} would stand in both the training and the test part, and a model that only remembers "
            "texts would look good; use split: {kind: story}")
    return audit


def _shared(files: dict[str, Path], column: str) -> dict[str, int]:
    values = {side: pc.unique(pq.read_table(file, columns=[column]).column(column)) for side, file in files.items()}
    shared = pc.sum(pc.is_in(values["test"], value_set=values["train"]).cast(pa.int64())).as_py() or 0
    return {"train": len(values["train"]), "test": len(values["test"]), "shared": int(shared)}
