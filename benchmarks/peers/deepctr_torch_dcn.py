"""DeepCTR-Torch's DCN, as its documentation trains it: arrays in memory, ``model.fit``.

    PYTHON_OF_PEERS benchmarks/peers/deepctr_torch_dcn.py DATA THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import DCN
from timing import BATCH, DIM, Run


def main(data: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    run = Run(Path(data))
    columns = [SparseFeat(n, vocabulary_size=r, embedding_dim=DIM) for n, r in zip(run.sparse, run.rows, strict=True)]
    columns += [DenseFeat(n, 1) for n in run.dense]
    model = DCN(linear_feature_columns=columns, dnn_feature_columns=columns, cross_num=2, dnn_hidden_units=(512, 256),
                task="binary", device="cpu", seed=0)
    model.compile("adam", "binary_crossentropy")

    def arrays(part: str):
        dense, ids, clicks = run.read(part)
        named = {n: ids[:, i] for i, n in enumerate(run.sparse)} | {n: dense[:, i] for i, n in enumerate(run.dense)}
        return named, clicks

    named, clicks = arrays("train")
    model.fit(named, clicks, batch_size=BATCH, epochs=1, verbose=0, shuffle=True)
    named, clicks = arrays("test")
    run.finish(clicks, model.predict(named, batch_size=BATCH).reshape(-1))


if __name__ == "__main__":
    main(*sys.argv[1:])
