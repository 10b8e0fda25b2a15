"""TorchRec's own DLRM with an EmbeddingBagCollection and a plain loop: what its tutorial shows.

    python benchmarks/peers/torchrec_plain.py DATA THREADS plain|fused

``plain``: unsharded EmbeddingBagCollection, one torch optimizer over everything. ``fused``: the same model and loop
around a FusedEmbeddingBagCollection, the stronger of the two.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from timing import BATCH, DIM, Run
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def main(data: str, threads: str, kind: str) -> None:
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    run = Run(Path(data))
    tables = [EmbeddingBagConfig(name=n, embedding_dim=DIM, num_embeddings=r, feature_names=[n])
              for n, r in zip(run.sparse, run.rows, strict=True)]
    if kind == "fused":
        bags = FusedEmbeddingBagCollection(tables, optimizer_type=RowWiseAdagrad,
                                           optimizer_kwargs={"lr": 0.05, "eps": 1e-8}, device=torch.device("cpu"))
    else:
        bags = EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))
    # DLRM checks for the plain class, of which the fused one is not a child; it is used in the same way.
    model = DLRM(bags if kind == "plain" else EmbeddingBagCollection(tables=tables, device=torch.device("meta")),
                 len(run.dense), [512, 256, DIM], [512, 256, 1])
    if kind == "fused":
        model.sparse_arch.embedding_bag_collection = bags
    dense_parameters = [p for n, p in model.named_parameters() if "embedding" not in n]
    optimizers = [torch.optim.Adam(dense_parameters, lr=1e-3)]
    if kind == "plain":
        optimizers.append(torch.optim.Adagrad(bags.parameters(), lr=0.05))

    def batches(part: str):
        dense, ids, clicks = run.read(part)
        for start in range(0, len(clicks), BATCH):
            rows = slice(start, start + BATCH)
            n = len(clicks[rows])
            sparse = KeyedJaggedTensor.from_lengths_sync(
                keys=run.sparse, values=torch.from_numpy(np.ascontiguousarray(ids[rows].T).reshape(-1)),
                lengths=torch.ones(n * len(run.sparse), dtype=torch.int64))
            yield torch.from_numpy(dense[rows]), sparse, torch.from_numpy(clicks[rows])

    loss = torch.nn.BCEWithLogitsLoss()
    for dense, sparse, clicks in batches("train"):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(model(dense, sparse).squeeze(1), clicks).backward()
        for optimizer in optimizers:
            optimizer.step()
    found, truth = [], []
    with torch.no_grad():
        for dense, sparse, clicks in batches("test"):
            found.append(torch.sigmoid(model(dense, sparse).squeeze(1)).numpy())
            truth.append(clicks.numpy())
    run.finish(np.concatenate(truth), np.concatenate(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
