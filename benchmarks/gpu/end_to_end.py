"""Whole steps: DLRM and DCNv2 training and inference, Llama-shaped embedding, exact top-k."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, pairwise
from typing import Any

import torch
from measure import has, seconds
from recsys.kernels.binomial_loss import binomial_loss
from recsys.kernels.cross_layer import cross_layer
from recsys.kernels.dot_interaction import dot_interaction
from recsys.kernels.lookup_interaction import lookup_interaction
from torch import nn

COUNTS, TABLES = 13, 26


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers)


class FlatTables:
    """26 tables below each other with row-wise Adagrad, where FBGEMM is missing: one row update a distinct id."""

    def __init__(self, rows: int, dim: int, device: torch.device) -> None:
        self.weight = torch.empty(TABLES * rows, dim, device=device).uniform_(-0.01, 0.01)
        self.sums = torch.zeros(TABLES * rows, device=device)
        self.first_row = torch.arange(TABLES, device=device) * rows

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        self._rows = (ids + self.first_row[:, None]).T.reshape(-1)
        self._found = self.weight[self._rows].view(ids.shape[1], TABLES, -1).requires_grad_()
        return self._found

    def update(self) -> None:
        assert self._found.grad is not None
        rows, place = self._rows.unique(return_inverse=True)
        total = torch.zeros(len(rows), self.weight.shape[1], device=rows.device)
        total.index_add_(0, place, self._found.grad.flatten(0, 1))
        sums = self.sums[rows] + total.square().mean(1)
        self.sums[rows] = sums
        self.weight[rows] -= 0.005 * total / (sums.sqrt() + 1e-8)[:, None]


class FbgemmTables:
    """The same in FBGEMM's fused kernel, as the project's ``fused`` backend runs it."""

    def __init__(self, rows: int, dim: int, device: torch.device) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        self._op = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, dim, EmbeddingLocation.DEVICE, ComputeDevice.CUDA)] * TABLES,
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=0.005, eps=1e-8, device=device)
        self._op.init_embedding_weights_uniform(-0.01, 0.01)

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        offsets = torch.arange(ids.numel() + 1, device=ids.device)
        return self._op(ids.flatten(), offsets).view(ids.shape[1], TABLES, -1)

    def update(self) -> None:
        """Done in backward."""


class Model(nn.Module):
    """The dense part, of MLPerf's shapes: bottom 512-256-D, top 1024-1024-512-256-1; DCNv2: 3 cross layers."""

    def __init__(self, kind: str, dim: int, rank: int, tiny: bool) -> None:
        super().__init__()
        self.kind, vectors = kind, TABLES + 1
        self.bottom = mlp((COUNTS, *((16,) if tiny else (512, 256)), dim))
        width = vectors * dim if kind == "dcnv2" else dim + vectors * (vectors - 1) // 2
        self.cross = nn.ParameterList()
        if kind == "dcnv2":
            for _ in range(3):
                for shape in ((rank, width), (width, rank), (width,)):
                    self.cross.append(nn.Parameter(torch.randn(shape) * shape[-1] ** -0.5 * (len(shape) - 1)))
        hidden = (16,) if tiny else (1024, 1024, 512, 256)
        self.top = nn.Sequential(mlp((width, *hidden)), nn.Linear(hidden[-1], 1))

    def forward(self, dense: torch.Tensor, looked_up: torch.Tensor, kernels: str) -> torch.Tensor:
        bottom = self.bottom(dense)
        x = torch.cat([looked_up.to(bottom.dtype), bottom.unsqueeze(1)], dim=1)
        if self.kind == "dlrm":
            return self.top(dot_interaction(x, TABLES, TABLES + 1, kernels))
        first = y = x.flatten(1)
        for i in range(0, len(self.cross), 3):
            y = cross_layer(first, y, *self.cross[i : i + 3], kernels=kernels)
        return self.top(y)


def rankers(device: torch.device, tiny: bool, compiles: bool = True) -> dict[str, Any]:
    """Samples/s of training and inference with Triton, reference and compiled reference ops."""
    batch, dim, rank = (6, 16, 8) if tiny else (65_536, 128, 512)
    rows = 20
    if device.type == "cuda":  # tables, with one float a row of optimizer state, take 40 % of what is free
        rows = int(0.4 * torch.cuda.mem_get_info(device)[0] / (TABLES * (dim + 1) * 4)) if not tiny else 20
    on_fbgemm = device.type == "cuda" and has("fbgemm_gpu")
    tables: Any = (FbgemmTables if on_fbgemm else FlatTables)(rows, dim, device)
    batches = [(torch.randn(batch, COUNTS, device=device), torch.randint(0, rows, (TABLES, batch), device=device),
                (torch.rand(batch, 1, device=device) < 0.1).float()) for _ in range(4)]
    found: dict[str, Any] = {"batch": batch, "dim": dim, "rows_a_table": rows,
                             "tables": "fbgemm" if on_fbgemm else "torch, distinct ids"}
    ones, weight = torch.ones(batch, 1, device=device), torch.ones(batch, device=device)
    for kind in ("dlrm", "dcnv2"):
        found[kind] = {}
        for name in ("triton", "reference", *(["compiled"] if compiles else [])):
            torch.manual_seed(0)
            model = Model(kind, dim, rank, tiny).to(device)
            optimizer = torch.optim.Adagrad(model.parameters(), lr=0.005, foreach=True)
            forward: Any = torch.compile(model) if name == "compiled" else model
            # On a CPU (--tiny) "triton" is what a CPU runs.
            kernels = ("auto" if device.type == "cpu" else name) if name == "triton" else "reference"
            stream = cycle(batches)

            def step(forward: Any = forward, model: Any = model, optimizer: Any = optimizer, kernels: str = kernels,
                     stream: Any = stream) -> torch.Tensor:
                dense, ids, clicks = next(stream)
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device.type, torch.bfloat16):
                    logits = forward(dense, tables.lookup(ids), kernels)
                loss = binomial_loss(logits.float(), ones, clicks, weight, kernels=kernels).loss / batch
                loss.backward()
                optimizer.step()
                tables.update()
                return loss.detach()

            def infer(forward: Any = forward, kernels: str = kernels, stream: Any = stream) -> torch.Tensor:
                dense, ids, _ = next(stream)
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                    return forward(dense, tables.lookup(ids), kernels)

            # The tables go on from contender to contender: loss is a sign of life, not a comparison.
            loss = float(step())
            found[kind][name] = {"train_samples_per_second": batch / seconds(step, device),
                                 "infer_samples_per_second": batch / seconds(infer, device), "loss": loss}
        of = found[kind]
        of["train_speedup_over_reference"] = (of["triton"]["train_samples_per_second"]
                                              / of["reference"]["train_samples_per_second"])
    return found


def fused_inference(device: torch.device, tiny: bool) -> dict[str, float]:
    """DLRM inference that looks up and interacts in one op, tables in bfloat16."""
    batch, dim, rows = (6, 16, 20) if tiny else (65_536, 128, 1_000_000)
    tables = torch.empty(TABLES * rows, dim, device=device, dtype=torch.bfloat16).uniform_(-1, 1)
    first_row = torch.arange(TABLES, device=device) * rows
    ids, dense = torch.randint(0, rows, (TABLES, batch), device=device), torch.randn(batch, COUNTS, device=device)
    model = Model("dlrm", dim, 8, tiny).to(device)

    def run() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            return model.top(lookup_interaction(tables, ids, first_row, model.bottom(dense)))

    return {"infer_samples_per_second": batch / seconds(run, device)}


def llama(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Tokens/s of mean-pooled embedding by a decoder of Llama-3.2-1B's shape: random weights, bfloat16, no padding."""
    from transformers import LlamaConfig, LlamaModel

    shape = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
             "intermediate_size": 8192, "vocab_size": 128_256, "head_dim": 64}
    texts, tokens = 128, 128
    if tiny:
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                 "intermediate_size": 64, "vocab_size": 100, "head_dim": 16}
        texts, tokens = 2, 8
    model = LlamaModel(LlamaConfig(**shape)).to(device, torch.bfloat16).eval()
    ids = torch.randint(0, shape["vocab_size"], (texts, tokens), device=device)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).last_hidden_state.float().mean(1)

    taken = seconds(run, device)
    numbers = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
    return {"texts": texts, "tokens_a_text": tokens, "tokens_per_second": texts * tokens / taken,
            "flops_per_second": 2 * numbers * texts * tokens / taken}


def top_k(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Exact inner-product search: queries/s of torch in bfloat16 and float32, and of FAISS where it is installed."""
    items, queries, dim, k = (200, 4, 16, 5) if tiny else (1_000_000, 1024, 128, 100)
    corpus, asked = (torch.randn(n, dim, device=device) for n in (items, queries))

    def run(a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any]:
        # Scores of some corpus rows at a time need not all be in memory; the best of each part, then of all.
        def search() -> torch.Tensor:
            parts = [(b @ block.T).topk(min(k, len(block)), dim=1) for block in a.split(1 << 17)]
            return torch.cat([p.values for p in parts], dim=1).topk(k, dim=1).values

        return search

    found: dict[str, Any] = {"items": items, "queries": queries, "dim": dim, "k": k}
    for name, dtype in (("torch_bfloat16", torch.bfloat16), ("torch_float32", torch.float32)):
        found[name] = queries / seconds(run(corpus.to(dtype), asked.to(dtype)), device)
    if has("faiss"):
        import faiss

        index: Any = faiss.IndexFlatIP(dim)
        name = "faiss_cpu_float32"
        if device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
            index, name = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim), "faiss_gpu_float32"
        elif not tiny:
            return found  # a CPU's index beside a GPU's product says nothing
        index.add(corpus.float().cpu().numpy())
        vectors = asked.float().cpu().numpy()
        found[name] = queries / seconds(lambda: index.search(vectors, k), torch.device("cpu"))
    return found
