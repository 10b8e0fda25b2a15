"""Train the within-test ridge ranker on a split of randomised tests: one stage, one model folder."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import ModelConfig
from recsys.contracts import IMPRESSIONS, read_parquet
from recsys.errors import InputError
from recsys.models.ridge import Features, Floats, Ridge, Tests, fit_ridge
from recsys.stage import Stage, run_stage, sha256_bytes, write_json

Content = tuple[list[str], np.ndarray]


@dataclass(frozen=True)
class RidgeModel:
    """A fitted ridge and the content vectors of the candidates it can score.

    Attributes:
        ridge: the ranker.
        ad_ids: N ids; ``vectors`` float32[N, d] their content vectors.
        support_rows: int64[m], where ``ridge.support`` stands among them; empty for a linear ridge.
    """

    ridge: Ridge
    ad_ids: list[str]
    vectors: np.ndarray
    support_rows: np.ndarray

    def score(self, table: pa.Table) -> Floats:
        """Scores of the table's ``ad_id`` column, float64[rows]; only differences within a test mean anything.

        Raises:
            InputError: an ad without a content vector.
        """
        rows = _rows_of(table["ad_id"], self.ad_ids)
        return self.ridge.score(self.vectors[rows])

    def save(self, folder: Path) -> None:
        """Write model.json and model.safetensors."""
        from safetensors.numpy import save_file

        ridge, features = self.ridge, self.ridge.features
        save_file({"mean": features.mean, "scale": features.scale, "weights": ridge.weights, "vectors": self.vectors,
                   "support_rows": self.support_rows}, folder / "model.safetensors")
        write_json(folder / "model.json", {
            "kind": "ridge", "scaling": ridge.scaling, "gamma": ridge.gamma, "penalty": ridge.penalty,
            "widths": list(features.widths),
            "cross_validated_error": ridge.errors, "ad_ids": self.ad_ids})

    @classmethod
    def load(cls, folder: Path) -> RidgeModel:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: not a ridge model's folder.
        """
        from safetensors.numpy import load_file

        file = folder / "model.json"
        if not file.is_file():
            raise InputError("not a model folder", file=folder, got="no model.json",
                             expected="a folder of recsys train")
        about = json.loads(file.read_text())
        if about.get("kind") != "ridge":
            raise InputError("another kind of model", file=file, column="kind", got=about.get("kind"), expected="ridge")
        arrays = load_file(folder / "model.safetensors")
        # The first version knew one block and no kernel.
        rows = arrays.get("support_rows", np.zeros(0, np.int64))
        features = Features(arrays["mean"], arrays["scale"], tuple(about.get("widths", [len(arrays["mean"])])))
        ridge = Ridge(features, arrays["weights"], about["scaling"], about.get("gamma", 0.0), about["penalty"],
                      about["cross_validated_error"], arrays["vectors"][rows] if len(rows) else None)
        return cls(ridge, about["ad_ids"], arrays["vectors"], rows)


def _rows_of(ad_id: pa.ChunkedArray, known: list[str]) -> np.ndarray:
    at = pc.index_in(ad_id, value_set=pa.array(known))
    if at.null_count:
        row = int(pc.index(pc.is_null(at), True).as_py())
        raise InputError("an ad without a content vector", column="ad_id", row=row, got=ad_id[row].as_py(),
                         expected="an ad of ads.parquet")
    return np.asarray(at.to_numpy())


def train_ridge(split_dir: Path, model: ModelConfig, out: Path, *, content: Content,
                widths: tuple[int, ...] | None = None, seed: int = 0, name: str = "ridge") -> dict[str, Any]:
    """Fit the ranker on ``split_dir/train.parquet`` and write its model folder.

    Args:
        split_dir: train.parquet and test.parquet of randomised tests (trials, successes, group_id).
        model: ``penalties`` and ``gammas`` are tried by cross-validation on training stories.
        out: the model folder.
        content: ad ids and content vectors float [N, d] of the ads of both parts.
        widths: lengths of the blocks that a content vector is made of; default: one.
        seed: of the folds.
        name: in the log and the metrics.

    Returns:
        The contents of ``out/metrics.json``: the chosen scaling and penalty, the cross-validated error of each, usage.
    """
    ad_ids, vectors = content
    hashed = sha256_bytes("\0".join(ad_ids).encode() + np.ascontiguousarray(vectors).tobytes())
    config = {"penalties": list(model.penalties), "gammas": list(model.gammas), "content": hashed, "seed": seed,
              "name": name, "widths": widths}

    def build(stage: Stage) -> None:
        started = time.perf_counter()
        train = read_parquet(split_dir / "train.parquet", IMPRESSIONS)
        x, tests, story, rows = training_rows(train, ad_ids, vectors, split_dir / "train.parquet")
        ridge = fit_ridge(x, tests, story, model.penalties, seed, widths=widths, gammas=model.gammas)
        support = rows if ridge.support is not None else rows[:0]
        RidgeModel(ridge, ad_ids, np.ascontiguousarray(vectors, dtype=np.float32), support).save(stage.folder)
        seconds = time.perf_counter() - started
        write_json(stage.path("metrics.json"), {
            "train": {"cross_validated_error": min(ridge.errors.values()), "scaling": ridge.scaling,
                      "gamma": ridge.gamma, "penalty": ridge.penalty, "errors": ridge.errors, "n": len(x)},
            "test": _test_metrics(ridge, read_parquet(split_dir / "test.parquet", IMPRESSIONS), ad_ids, vectors),
            "samples_per_second": len(x) / seconds, "input_stall_share": 0.0, "seconds": seconds,
            "usage": {"stage": "train", "seconds": seconds, "device": "cpu", "samples": len(x)}})
        stage.rows["train"] = len(x)

    inputs = {part: split_dir / f"{part}.parquet" for part in ("train", "test")}
    run_stage("train-ridge", out, config=config, inputs=inputs, build=build)
    return dict(json.loads((out / "metrics.json").read_text()))


def training_rows(table: pa.Table, ad_ids: list[str], vectors: np.ndarray,
                  file: Path | None = None) -> tuple[np.ndarray, Tests, np.ndarray, np.ndarray]:
    """What :func:`recsys.models.ridge.fit_ridge` learns from: tests with at least two candidates that had viewers.

    Args:
        table: IMPRESSIONS with trials, successes and group_id.
        ad_ids: N ids; ``vectors`` [N, d] their content vectors.
        file: named in errors.

    Returns:
        Vectors [n, d], outcomes, stories (int64[n] codes) and rows of ``vectors`` (int64[n]) of n candidates.

    Raises:
        InputError: a column is missing, an ad has no vector, or no test has a choice.
    """
    for column in ("trials", "successes", "group_id"):
        if column not in table.column_names:
            raise InputError("missing column", file=file, column=column, got=sorted(table.column_names),
                             expected="randomised tests with counts and stories")
    table = table.filter(pc.greater(table["trials"], 0))
    request = _codes(table["request_id"])
    table = table.filter(pa.array(np.bincount(request)[request] >= 2))
    if not table.num_rows:
        raise InputError("no test has two candidates with viewers", file=file, expected="tests to learn from")
    counts = (table[c].to_numpy().astype(np.float64) for c in ("trials", "successes"))
    tests = Tests(_codes(table["request_id"]), *counts)
    rows = _rows_of(table["ad_id"], ad_ids).astype(np.int64)
    return vectors[rows], tests, _codes(table["group_id"]), rows


def _test_metrics(ridge: Ridge, table: pa.Table, ad_ids: list[str], vectors: np.ndarray) -> dict[str, Any]:
    """Within-test AUC: over pairs of candidates of one test whose click rates differ, the share ordered right.

    Ties of the score count half. A ridge gives no probabilities, so entropy and calibration are null.
    """
    x, tests, _, _ = training_rows(table, ad_ids, vectors)
    score, rate = ridge.score(x), tests.successes / tests.trials
    right = pairs = 0.0
    for rows in np.split(np.argsort(tests.test, kind="stable"), np.cumsum(np.bincount(tests.test))[:-1]):
        better = rate[rows][:, None] > rate[rows][None]
        ahead = np.sign(score[rows][:, None] - score[rows][None])
        right, pairs = right + ((ahead[better] + 1) / 2).sum(), pairs + better.sum()
    return {"auc": float(right / pairs) if pairs else None, "auc_kind": "within test", "normalized_entropy": None,
            "log_loss": None, "calibration_ratio": None, "n": len(x)}


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    return np.unique(column.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1].astype(np.int64)
