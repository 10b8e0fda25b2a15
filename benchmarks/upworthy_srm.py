"""Upworthy: the sample-ratio check inside and outside the weeks whose randomisation its authors call broken.

    RECSYS_DATA_HOME=... python benchmarks/upworthy_srm.py

Weeks 201325 to 201401. The raw file's arms are checked test by test for equal allocation. Writes
benchmarks/results/upworthy_srm.json.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from common import save

from recsys.contracts import read_parquet
from recsys.evaluation.health import srm_of_groups
from recsys.evaluation.randomized import week_in_broken_window


def checked(table: pa.Table, rows: np.ndarray) -> dict[str, Any]:
    part = table.filter(pa.array(rows))
    groups = part["clickability_test_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    line = srm_of_groups(part["impressions"].to_numpy(), groups)
    return {"arms": part.num_rows, "tests": len(np.unique(groups)), "fires": not line["ok"], "detail": line["detail"]}


def main() -> None:
    table = read_parquet(Path(os.environ["RECSYS_DATA_HOME"]) / "upworthy" / "packages.parquet")
    table = table.filter(pc.greater(table["impressions"], 0))
    week = table["test_week"].cast(pa.int64())
    broken = week_in_broken_window(week)
    number = week.to_numpy()
    parts = {"inside 201325..201401": broken, "outside": ~broken, "before": number < 201325, "after": number > 201401}
    found = {name: checked(table, rows) for name, rows in parts.items()}
    for name, line in found.items():
        print(f"{name:<22} {'fires' if line['fires'] else 'quiet'}: {line['detail']}")
    print(save("upworthy_srm", {"windows": found}))


if __name__ == "__main__":
    main()
