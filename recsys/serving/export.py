"""Publish a model for scoring: one folder, its scores compared with the trainer's before it appears.

    export_bundle("work/model", "work/bundle", data="work/split")

The model is a finished one, or that of a run that has not finished, from its checkpoints.

A bundle is a model folder with packed tables, so that everything that scores takes it as it takes a model folder, and:
schema.json, example.parquet and example.json (rows and their scores), card.md, scorer.pt2, manifest.json with the
SHA-256 of every file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit

from recsys.config import ModelConfig, parse_model
from recsys.contracts import iter_parquet
from recsys.datasets.info import load_dataset_info
from recsys.errors import InputError, Refused
from recsys.log import log
from recsys.models.bundle import Bundle, load_bundle, save_bundle
from recsys.models.calibration import Calibration, Kind
from recsys.models.folder import SPEC, WEIGHTS
from recsys.models.scoring import Scoring
from recsys.retrieval.versions import served_manifest
from recsys.serving.index_fit import check_index
from recsys.serving.protocol import HEAD_COLUMNS
from recsys.serving.scorer import Scorer
from recsys.stage import Stage, run_stage, sha256_file, write_atomic, write_json
from recsys.training.data import training_labels
from recsys.training.labels import read_labels
from recsys.training.metrics import StreamingMetrics
from recsys.training.run_folder import load_unfinished
from recsys.training.source import label_columns

EXAMPLE_ROWS = 16


@dataclass(frozen=True)
class Bounds:
    """How far a bundle's scores may be from the trainer's, before calibration, on held-out rows.

    Attributes:
        max_dp, mean_dp: largest and mean difference of a probability.
        auc: change of a head's AUC.
    """

    max_dp: float = 0.03
    mean_dp: float = 0.002
    auc: float = 0.0005


@dataclass(frozen=True)
class _Source:
    """The trained model, its model.json, the files that it is read from, and of an unfinished run the checkpoints."""

    spec: dict[str, Any]
    files: dict[str, Path]
    load: Callable[[], Bundle]
    checkpoints: list[dict[str, Any]] | None = None
    metrics: Path | None = None

    @cached_property
    def trained(self) -> Bundle:
        return self.load()

    @property
    def config(self) -> ModelConfig:
        return parse_model(ModelConfig, self.spec["model"], SPEC)


@dataclass(frozen=True)
class _HeldOut:
    """Rows with their labels: trials and successes [n, heads]."""

    table: pa.Table
    trials: np.ndarray
    successes: np.ndarray


def export_bundle(model: str | Path, out: str | Path, *, data: str | Path, scoring: Scoring | None = None,
                  calibration: Kind = "none", index: str | Path | None = None, program: bool = True,
                  bounds: Bounds | None = None, rows: int = 100_000) -> dict[str, Any]:
    """Publish a bundle.

    Args:
        model: model folder (``recsys train``), the folder of a run that was killed or is going on, or one of its
            checkpoints: see :func:`recsys.training.run_folder.load_unfinished`.
        out: the bundle; replaced as a whole.
        data: split folder with dataset.json. Scores are compared on its valid.parquet, or test.parquet where there is
            none.
        scoring: how tables are kept and products made.
        calibration: fitted on the first half of valid.parquet's rows and measured on the second; never on test rows.
        index: folder of ``recsys index`` whose served version belongs to this model
            (:func:`recsys.serving.index_fit.check_index`).
        program: also write scorer.pt2.
        bounds: what is still called equal.
        rows: held-out rows at most.

    Returns:
        The manifest; ``facts`` has the checksums, the differences found and the calibration's effect.

    Raises:
        InputError: no model folder or whole checkpoint, no held-out rows, a calibration without valid.parquet, an index
            of other ads or other content.
        Refused: the scores differ by more than the bounds; nothing is written.
    """
    model, data = Path(model), Path(data)
    scoring, bounds = scoring or Scoring(), bounds or Bounds()
    part = "valid" if (data / "valid.parquet").is_file() else "test"
    if calibration != "none" and part == "test":
        raise InputError("no rows to calibrate on", file=data / "valid.parquet", expected="held-out rows that are not "
                         "the test part, or --calibration none")
    source = _source(model)
    config = {"scoring": scoring.to_json(), "calibration": calibration, "program": program, "bounds": asdict(bounds),
              "rows": rows, "index": None if index is None else served_manifest(index)["key"]}

    def build(stage: Stage) -> None:
        about = None if index is None else check_index(index, source.trained)
        held_out = _read(data, part, source, rows)
        _write(stage, source, held_out, scoring, calibration, bounds)
        facts = stage.facts
        facts["checkpoints"] = source.checkpoints
        facts["index"] = about
        facts["part"] = part
        _describe(stage, held_out, program, facts, data)
        facts["files"] = {p.name: sha256_file(p) for p in sorted(stage.folder.iterdir())}
        stage.rows["held_out"] = held_out.table.num_rows

    inputs = {**source.files, "data": data / f"{part}.parquet"}
    manifest = run_stage("export", out, config=config, inputs=inputs, build=build)
    if not manifest["cached"]:
        found = manifest["facts"]["differences"]
        log.info("export: %s; largest difference of a probability %.2g, mean %.2g (%s)", manifest["facts"]["model_id"],
                 max(d["max_dp"] for d in found.values()), max(d["mean_dp"] for d in found.values()), out)
    return manifest


def _source(model: Path) -> _Source:
    if not (model / SPEC).is_file():
        found = load_unfinished(model)
        return _Source(found.spec, found.files, lambda: found.bundle, found.facts)
    spec = json.loads((model / SPEC).read_text())
    if spec.get("scoring") is not None:
        raise InputError("is a bundle already", file=model, expected="a model folder of recsys train")
    metrics = model / "metrics.json"
    return _Source(spec, {"model": model / SPEC, "weights": model / WEIGHTS}, lambda: load_bundle(model, "cpu"),
                   metrics=metrics if metrics.is_file() else None)


def _read(data: Path, part: str, source: _Source, rows: int) -> _HeldOut:
    labels, file = training_labels(data, source.config), data / f"{part}.parquet"
    columns = list(dict.fromkeys([*source.trained.encoder.columns, *label_columns(labels)]))
    tables, have = [], 0
    for table in iter_parquet(file, columns=columns):
        tables.append(table.slice(0, rows - have))
        have += tables[-1].num_rows
        if have >= rows:
            break
    table = pa.concat_tables(tables)
    if not table.num_rows:
        raise InputError("no rows", file=file, got="0 rows", expected="held-out rows")
    return _HeldOut(table, *read_labels(table, labels, file, 0))


def _write(stage: Stage, source: _Source, held_out: _HeldOut, scoring: Scoring, calibration: Kind,
           bounds: Bounds) -> None:
    """Write the model's files, compare, calibrate."""
    trained, folder = source.trained, stage.folder
    name = str(source.spec.get("name", "model"))

    def save(how: Scoring) -> None:
        save_bundle(folder, trained.models, trained.encoder, source.config, name, trained.content, trained.transform,
                    trained.quantiser, {"trained": trained.model_id}, scoring=how)

    save(scoring)
    want = _logits(Scorer(trained), held_out.table)
    got = _logits(Scorer.load(folder, "cpu"), held_out.table)
    stage.facts["differences"] = found = {
        head: _differences(want[:, i], got[:, i], held_out.trials[:, i], held_out.successes[:, i])
        for i, head in enumerate(trained.heads)}
    for head, difference in found.items():
        for limit, value in asdict(bounds).items():
            if abs(difference[limit]) > value:
                raise Refused(f"head {head}: {limit} of the bundle against the trainer's model is "
                              f"{abs(difference[limit]):.3g}, more than {value:g} on {len(want)} held-out rows: export "
                              "with finer tables (--embeddings) or --precision float32")
    if calibration != "none":
        half = len(got) // 2
        fitted = Calibration.fit(calibration, got[:half], held_out.trials[:half], held_out.successes[:half])
        after = fitted.apply(got)
        stage.facts["calibration"] = {"kind": calibration, "fitted_on": f"valid.parquet, {half} rows", "log_loss": {
            head: {"before": _log_loss(got[half:, i], held_out.trials[half:, i], held_out.successes[half:, i]),
                   "after": _log_loss(after[half:, i], held_out.trials[half:, i], held_out.successes[half:, i])}
            for i, head in enumerate(trained.heads)}}
        save(replace(scoring, calibration=fitted))
    else:
        stage.facts["calibration"] = {"kind": "none"}
    if source.metrics is not None:
        shutil.copy(source.metrics, folder / "metrics.json")


def _logits(scorer: Scorer, table: pa.Table) -> np.ndarray:
    return scorer.logits(scorer.encoder.encode(table))


def _log_loss(z: np.ndarray, trials: np.ndarray, successes: np.ndarray) -> float:
    return float((trials * np.logaddexp(0, z) - successes * z).sum() / trials.sum())


def _differences(want: np.ndarray, got: np.ndarray, trials: np.ndarray, successes: np.ndarray) -> dict[str, float]:
    apart = np.abs(expit(got) - expit(want))
    auc = []
    for z in (want, got):
        metrics = StreamingMetrics()
        metrics.update(z, trials.astype(np.float64), successes.astype(np.float64))
        auc.append(metrics.result()["auc"])
    change = 0.0 if None in auc else auc[1] - auc[0]
    return {"max_dp": float(apart.max()), "mean_dp": float(apart.mean()), "auc": float(change)}


def _describe(stage: Stage, held_out: _HeldOut, program: bool, facts: dict[str, Any], data: Path) -> None:
    """Schema, example, program and card of the bundle that stands in the stage's folder."""
    folder = stage.folder
    scorer = Scorer.load(folder, "cpu")
    facts["model_id"] = scorer.model_id
    write_json(folder / "schema.json", {
        "inputs": [{"name": n, "kind": scorer.kinds[n]} for n in scorer.columns],
        "outputs": [{"name": HEAD_COLUMNS[h], "kind": "probability"} for h in scorer.heads],
        "block": {"dense": scorer.dense_columns, "ids": scorer.id_columns}})
    example = held_out.table.select(scorer.columns).slice(0, EXAMPLE_ROWS)
    pq.write_table(example, folder / "example.parquet", compression="zstd")
    scores = scorer.score(example)
    write_json(folder / "example.json", {HEAD_COLUMNS[h]: p.tolist() for h, p in scores.items()})
    if program:
        facts["program"] = _program(folder, scorer, held_out.table.slice(0, 1000))
    write_atomic(folder / "card.md", _card(folder, scorer, facts, data))


def _program(folder: Path, scorer: Scorer, table: pa.Table) -> dict[str, float]:
    import torch

    from recsys.serving.artefact import FILE, export_program, program_inputs

    whole = load_bundle(folder, "cpu", precision="float32")
    encoded = scorer.encoder.encode(table if table.num_rows > 1 else pa.concat_tables([table, table]))
    export_program(whole, encoded.slice(0, 2), folder / FILE)
    found = torch.export.load(folder / FILE).module()(*program_inputs(encoded)).numpy()
    apart = float(np.abs(found - expit(Scorer(whole).calibrated(Scorer(whole).logits(encoded)))).max())
    if not apart <= 1e-4:
        raise Refused(f"the exported program scores up to {apart:.2g} off")
    return {"max_dp": apart}


def _card(folder: Path, scorer: Scorer, facts: dict[str, Any], data: Path) -> str:
    info, spec = load_dataset_info(data), json.loads((folder / "model.json").read_text())
    heads = "".join(f"| {h} | {d['max_dp']:.2g} | {d['mean_dp']:.2g} | {d['auc']:+.2g} |\n"
                    for h, d in facts["differences"].items())
    tested = ""
    if (folder / "metrics.json").is_file():
        test = json.loads((folder / "metrics.json").read_text()).get("test") or {}
        shown = {k: test[k] for k in ("n", "auc", "log_loss", "normalized_entropy", "calibration_ratio", "ece")
                 if isinstance(test.get(k), int | float)}
        tested = "\n".join(["## On the test part, before packing", "", *(f"- {k}: {v:.6g}" for k, v in shown.items()),
                            "", ""])
    scoring = spec["scoring"]
    return f"""# {scorer.model_id}

A {spec['model']['kind']} that predicts {', '.join(scorer.heads)} of an ad shown to a user.
Packed from {spec['trained']}.

## Intended use

Ranking ads among candidates and scoring logs, by people who know the data named below. Not for decisions about
persons, and not for traffic unlike that data without a new evaluation.

## Data

{info.name}; source: {info.source or 'not stated'}; licence: {info.licence or 'not stated'}.
Inputs: {', '.join(scorer.columns)}.

{tested}## Against the trainer's model, on {facts['part']}.parquet

Tables {scoring['tables']}, products {scoring['precision']}, calibration {facts['calibration']['kind']} (the numbers are
before calibration).

| head | largest difference of a probability | mean | AUC change |
|---|---|---|---|
{heads}"""
