"""LightGBM, or a model of DeepCTR-Torch, on a split folder: probabilities of its test part.

    PYTHON_OF_PEERS benchmarks/peers/tabular.py FOLDER MODEL SEED '{"settings": ...}' OUT.npy

MODEL: lightgbm | DCN | DCNMix | DeepFM | xDeepFM | AutoInt | DIN ... Every peer gets the columns that dataset.json
names: numbers (for the networks log-scaled and standardised as ours are), categories with those seen less than
``min_count`` times as one, and, where it can take them, the latest 20 entries of the lists (for DIN ``liked`` attended
over by the ad; for the others their means).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

LENGTH = 20


class Folder:
    """Columns of both parts as arrays."""

    def __init__(self, folder: Path, min_count: int) -> None:
        self.info = json.loads((folder / "dataset.json").read_text())
        self.parts = {p: pq.read_table(folder / f"{p}.parquet") for p in ("train", "test")}
        self._min_count = min_count
        self.rows: dict[str, dict[str, int]] = {}

    def click(self, part: str) -> np.ndarray:
        return self.parts[part]["click"].to_numpy().astype(np.float32)

    def numbers(self, name: str, part: str, scaled: bool) -> np.ndarray:
        def raw(part: str) -> np.ndarray:
            return self.parts[part][name].to_numpy().astype(np.float64)

        if not scaled:
            return raw(part)
        train, x = (np.sign(v) * np.log1p(np.abs(v)) for v in (raw("train"), raw(part)))
        return np.nan_to_num((x - np.nanmean(train)) / max(np.nanstd(train), 1e-9)).astype(np.float32)

    def _codes_of(self, name: str) -> dict[str, int]:
        if name not in self.rows:
            values, counts = np.unique(self.parts["train"][name].to_numpy(zero_copy_only=False).astype(str),
                                       return_counts=True)
            order = np.argsort(-counts, kind="stable")
            kept = [values[i] for i in order if counts[i] >= self._min_count]
            self.rows[name] = {v: i for i, v in enumerate(kept, 2)}  # 0 pads lists, 1 is what is rare or new
        return self.rows[name]

    def size(self, name: str) -> int:
        return len(self._codes_of(name)) + 2

    def categories(self, name: str, part: str) -> np.ndarray:
        known = self._codes_of(name)
        return np.array([known.get(str(v), 1) for v in self.parts[part][name].to_pylist()])

    def lists(self, name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
        known = self._codes_of("ad_id")
        column = [[known.get(v, 1) for v in (row or [])[-LENGTH:]] for row in self.parts[part][name].to_pylist()]
        out = np.zeros((len(column), LENGTH), np.int64)
        for i, row in enumerate(column):
            out[i, : len(row)] = row
        return out, np.array([max(len(row), 1) for row in column])


def boosted(data: Folder, seed: int, settings: dict[str, Any]) -> np.ndarray:
    import lightgbm as lgb

    left_out = settings.pop("without", [])
    sparse = [n for n in data.info["sparse"] if n not in left_out]

    def matrix(part: str) -> np.ndarray:
        return np.column_stack([*(data.numbers(n, part, False) for n in data.info["dense"]),
                                *(data.categories(n, part) for n in sparse)])

    first = len(data.info["dense"])
    model = lgb.LGBMClassifier(**settings, verbose=-1, n_jobs=1, random_state=seed)
    model.fit(matrix("train"), data.click("train"),
              categorical_feature=list(range(first, first + len(sparse))) or "auto")
    return model.predict_proba(matrix("test"))[:, 1]


def network(data: Folder, name: str, seed: int, settings: dict[str, Any]) -> np.ndarray:
    import torch
    from deepctr_torch import models
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

    torch.set_num_threads(1)
    dim, epochs, lr, batch = (settings.pop(k) for k in ("dim", "epochs", "lr", "batch_size"))
    left_out = settings.pop("without", [])
    sparse = [n for n in data.info["sparse"] if n not in left_out]
    lists = [n for n in data.info["sequence"] if n not in left_out and "ad_id" in sparse]
    attended = lists[:1] if name == "DIN" else []
    columns = [SparseFeat(n, data.size(n), embedding_dim=dim) for n in sparse]
    columns += [DenseFeat(n, 1) for n in data.info["dense"]]
    for n in lists:
        own = "hist_ad_id" if n in attended else n
        columns.append(VarLenSparseFeat(SparseFeat(own, data.size("ad_id"), embedding_dim=dim, embedding_name="ad_id"),
                                        maxlen=LENGTH, combiner="mean", length_name=f"{own}_length"))
    common = {"task": "binary", "device": "cpu", "seed": seed, **settings}
    if name == "DIN":
        model = models.DIN(columns, ["ad_id"], **common)
    else:
        model = getattr(models, name)(columns, columns, **common)
    model.compile(torch.optim.Adam(model.parameters(), lr=lr), "binary_crossentropy")

    def arrays(part: str) -> dict[str, np.ndarray]:
        found = {n: data.categories(n, part) for n in sparse}
        found |= {n: data.numbers(n, part, True) for n in data.info["dense"]}
        for n in lists:
            own = "hist_ad_id" if n in attended else n
            found[own], found[f"{own}_length"] = data.lists(n, part)
        return found

    model.fit(arrays("train"), data.click("train"), batch_size=batch, epochs=epochs, verbose=0, shuffle=True)
    return model.predict(arrays("test"), batch_size=8192).reshape(-1)


def main(folder: str, name: str, seed: str, settings: str, out: str) -> None:
    given = json.loads(settings)
    data = Folder(Path(folder), given.pop("min_count", 2))
    make = boosted if name == "lightgbm" else lambda *a: network(a[0], name, *a[1:])
    np.save(out, np.asarray(make(data, int(seed), given), np.float64))


if __name__ == "__main__":
    main(*sys.argv[1:])
