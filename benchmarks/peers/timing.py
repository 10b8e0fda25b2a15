"""What the peers' scripts share: reading the Parquet files, the clock, the one line of JSON they print."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import log_loss, roc_auc_score

BATCH, DIM = 4096, 16


class Run:
    """Times one peer from its first look at the files to its AUC.

    Attributes:
        dense, sparse: feature names; ``rows``: table rows of each sparse feature.
    """

    def __init__(self, data: Path) -> None:
        about = json.loads((data / "dataset.json").read_text())
        self.dense, self.sparse = about["dense"], about["sparse"]
        self.rows = [about["id_rows"][name] for name in self.sparse]
        self._data, self._samples = data, 0
        self._began = time.perf_counter()

    def read(self, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Dense float32 [n, 13], ids int64 [n, 26], clicks float32 [n]."""
        table = pq.read_table(self._data / f"{part}.parquet")
        dense = np.column_stack([table[n].to_numpy() for n in self.dense]).astype(np.float32)
        ids = np.column_stack([table[n].to_numpy() for n in self.sparse])
        if part == "train":
            self._samples = table.num_rows
        return dense, ids, table["click"].to_numpy().astype(np.float32)

    def finish(self, clicks: np.ndarray, probabilities: np.ndarray, **more: object) -> None:
        """Print the result."""
        seconds = time.perf_counter() - self._began
        print(json.dumps({"samples_per_second": self._samples / seconds, "seconds": seconds,
                          "auc": float(roc_auc_score(clicks, probabilities)),
                          "log_loss": float(log_loss(clicks, probabilities.astype(np.float64))), **more}))
