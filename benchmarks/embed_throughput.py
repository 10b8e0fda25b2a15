"""Texts a second of the content encoders beside what one would write without them, and the same vectors.

    python benchmarks/embed_throughput.py [--texts 256] [--repeats 5] [--peer PYTHON]

Distinct Upworthy headlines, a random sample. ``plain`` is the usual transformers loop: batches of 32 texts in the given
order, padded to the longest, mean over the mask. ``sentence-transformers`` runs in an environment of its own (its
python is ``--peer``), batches of 32. All take turns within a repeat; what is reported are medians over repeats and the
median of each repeat's ratio. Every contender is given the same threads (OMP_NUM_THREADS).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 32
PEER = """
import json, sys, time
import numpy as np
import sentence_transformers, torch
from sentence_transformers import SentenceTransformer, models
torch.set_num_threads(int(sys.argv[4]))
kwargs = {"dtype": getattr(torch, sys.argv[3])}
word = models.Transformer(sys.argv[1], max_seq_length=256, model_kwargs=kwargs)
model = SentenceTransformer(modules=[word, models.Pooling(word.get_word_embedding_dimension(), "mean"),
                                     models.Normalize()], device="cpu")
print(sentence_transformers.__version__, flush=True)
for line in sys.stdin:
    texts = json.loads(line)
    start = time.perf_counter()
    vectors = model.encode(texts, batch_size=int(sys.argv[5]), show_progress_bar=False)
    seconds = time.perf_counter() - start
    np.save(sys.argv[2], np.asarray(vectors, np.float32))
    print(seconds, flush=True)
"""

Run = Callable[[list[str]], tuple[float, np.ndarray]]


def headlines(n: int) -> list[str]:
    """``n`` distinct headlines in random order."""
    from recsys.contracts import read_parquet

    table = read_parquet(Path(os.environ["RECSYS_DATA_HOME"]) / "upworthy" / "packages.parquet")
    texts = sorted({t.strip() for t in table["headline"].to_pylist() if t and t.strip()})
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:n]]


def timed(encode: Callable[[list[str]], np.ndarray]) -> Run:
    """The function with its wall clock."""
    def run(texts: list[str]) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        vectors = encode(texts)
        return time.perf_counter() - start, vectors
    return run


def plain(name: str, dtype: torch.dtype) -> Run:
    """The usual transformers loop."""
    from transformers import AutoModel, AutoTokenizer

    from recsys.content.weights import find_weights

    folder = find_weights(name).folder
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=dtype).eval()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    @torch.no_grad()
    def encode(texts: list[str]) -> np.ndarray:
        parts = []
        for at in range(0, len(texts), BATCH):
            batch = tokenizer(texts[at : at + BATCH], padding=True, truncation=True, return_tensors="pt")
            hidden, mask = model(**batch).last_hidden_state.float(), batch["attention_mask"].unsqueeze(-1).float()
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(parts).numpy()
    return timed(encode)


def ours(**settings: Any) -> Run:
    """The encoder as ``recsys embed`` uses it."""
    from recsys.config import EncoderConfig
    from recsys.content import make_encoder

    encoder = make_encoder(EncoderConfig(**settings), "cpu")
    return timed(lambda texts: encoder.encode(texts).vectors)


class Peer:
    """sentence-transformers in another interpreter, asked over a pipe."""

    def __init__(self, python: str, dtype: str) -> None:
        from recsys.content.weights import find_weights

        self._file = Path(tempfile.mkdtemp()) / "vectors.npy"
        command = [python, "-c", PEER, str(find_weights("minilm").folder), str(self._file), dtype,
                   str(torch.get_num_threads()), str(BATCH)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.version = self._process.stdout.readline().strip()

    def __call__(self, texts: list[str]) -> tuple[float, np.ndarray]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(texts) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline()), np.load(self._file)


def compare(runs: dict[str, Run], texts: list[str], repeats: int) -> dict[str, Any]:
    """Interleaved repeats; the first contender is the reference of speed and of vectors."""
    first = next(iter(runs))
    vectors = {n: run(texts)[1] for n, run in runs.items()}
    seconds: dict[str, list[float]] = {n: [] for n in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run(texts)[0])
    table: dict[str, Any] = {}
    for name in runs:
        a, b = vectors[first], vectors[name]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        table[name] = {"texts_per_second": len(texts) / float(np.median(seconds[name])),
                       "lowest_cosine": float(cosine.min()), "seconds": seconds[name]}
        table[name]["times_as_fast_as"] = {
            other: float(np.median(np.divide(seconds[other], seconds[name]))) for other in runs if other != name}
        print(f"{name:40s}{table[name]['texts_per_second']:8.1f} texts/s  lowest cosine {cosine.min():.5f}  "
              f"{table[name]['times_as_fast_as'].get(first, 1.0):.2f} x {first}", flush=True)
    return table


def usage_of(texts: list[str], **settings: Any) -> dict[str, Any]:
    """usage.json of a store made of the texts: tokens, padding, utilisation."""
    import pyarrow as pa

    from recsys.config import EncoderConfig
    from recsys.content import embed_texts, read_usage

    ads = pa.table({"title": texts, "content_hash": [str(i) for i in range(len(texts))]})
    with tempfile.TemporaryDirectory() as folder:
        embed_texts(ads, EncoderConfig(**settings), Path(folder) / "store", device="cpu")
        told = read_usage(Path(folder) / "store")
    return {k: told[k] for k in ("texts", "tokens", "padding_share", "tokens_per_second", "utilisation")}


WORKER = """
import sys, time
from pathlib import Path
import pyarrow as pa
from recsys.config import EncoderConfig
from recsys.content import embed_texts
from embed_throughput import headlines
texts = headlines(int(sys.argv[2]))
ads = pa.table({"title": texts, "content_hash": [str(i) for i in range(len(texts))]})
embed_texts(ads, EncoderConfig(kind="sentence", model="minilm"), Path(sys.argv[1]), device="cpu")
"""


def by_processes(texts: int, repeats: int) -> dict[str, Any]:
    """MiniLM by one process of two threads and by two of one: texts a second of encoding, loading left out."""
    from recsys.content import read_usage

    found: dict[str, list[float]] = {"1 process, 2 threads": [], "2 processes, 1 thread": []}
    for _ in range(repeats):
        for processes, name in enumerate(found, 1):
            with tempfile.TemporaryDirectory() as folder:
                store = Path(folder) / "store"
                world = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": str(3 - processes),
                         "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
                ranks = [subprocess.Popen([sys.executable, "-c", WORKER, str(store), str(texts)],
                                          env={**world, "RANK": str(r)}) for r in range(processes)]
                assert all(code == 0 for code in [r.wait() for r in ranks])
                found[name].append(texts / read_usage(store)["seconds"])
        print({n: round(v[-1], 1) for n, v in found.items()}, flush=True)
    return {n: {"texts_per_second": float(np.median(v)), "each": v} for n, v in found.items()}


def main() -> None:
    """Print and save the tables."""
    from common import save

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=256, help="headlines for SmolLM2; 4 x as many for MiniLM")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", default=sys.executable, help="python of an environment with sentence-transformers")
    args = parser.parse_args()
    texts, more = headlines(args.texts), headlines(4 * args.texts)
    llama: dict[str, Any] = {"kind": "llama", "model": "smollm2-135m"}
    minilm: dict[str, Any] = {"kind": "sentence", "model": "minilm"}
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "batch_of_the_peers": BATCH,
                               "texts": {"smollm2": len(texts), "minilm": len(more)}}
    results["smollm2"] = compare({
        "plain float32": plain("smollm2-135m", torch.float32), "plain bfloat16": plain("smollm2-135m", torch.bfloat16),
        "recsys bfloat16": ours(**llama, dtype="bfloat16")}, texts, args.repeats)
    results["smollm2_usage"] = usage_of(texts, **llama, dtype="bfloat16")
    peers = {d: Peer(args.peer, d) for d in ("float32", "bfloat16")}
    results["minilm"] = compare({
        **{f"sentence-transformers {d}": peer for d, peer in peers.items()},
        "recsys float32": ours(**minilm, dtype="float32"), "recsys bfloat16": ours(**minilm, dtype="bfloat16"),
    }, more, args.repeats)
    results["minilm_usage"] = usage_of(more, **minilm, dtype="bfloat16")
    results["minilm_processes"] = by_processes(len(more), args.repeats)
    results["sentence_transformers"] = peers["float32"].version
    save("embed_throughput", results)


if __name__ == "__main__":
    main()
