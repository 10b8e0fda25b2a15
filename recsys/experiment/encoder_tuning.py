"""``recsys tune-encoder``: which layers, pooling and prompt of an encoder suit a set of headline tests.

Every text is read once per prompt, all layers and poolings from that reading. Then layers are added one by one as long
as the ranker's cross-validated error falls. Only training stories are read: the test part has no vectors here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import EncoderConfig, ExperimentConfig, parse_model
from recsys.content import embed_texts, for_ads, load_vectors
from recsys.content.transformer import layer_number
from recsys.content.weights import find_weights
from recsys.contracts import IMPRESSIONS, read_parquet
from recsys.errors import InputError
from recsys.experiment.run import one_ranker, prepare_data
from recsys.log import log
from recsys.models.ridge import Tests, fit_ridge
from recsys.stage import write_json
from recsys.training.ridge import training_rows

LEAST_GAIN = 0.001  # of the error, relative to predicting nothing, for which one more layer is worth having


@dataclass(frozen=True)
class _Learnable:
    """Training candidates: rows of the training ads, outcomes, stories."""

    rows: np.ndarray
    tests: Tests
    story: np.ndarray


def tune_encoder(config: ExperimentConfig, out: str | Path, data_home: str | Path | None = None,
                 arm: str | None = None, *, layers: Sequence[int] = (), poolings: Sequence[str] = ("mean",),
                 prompts: Sequence[str] = (), most: int = 4) -> dict[str, Any]:
    """Search an arm's one encoder on the training stories.

    Args:
        config: an experiment of headline tests (``model.kind: ridge``).
        out: folder of the search: ``encoder.json``, and the vectors, which a later run does not make again.
        data_home: folder of raw files.
        arm: which arm, where there are several with a ranker.
        layers: hidden layers to try; default: every third.
        poolings: each is tried by itself.
        prompts: templates with {text}; default: the encoder's own, or the text alone.
        most: layers at most.

    Returns:
        ``tried``: [{"prompt", "pooling", "layer": [...], "error"}], errors being cross-validated over stories and
        relative to predicting no difference; ``before``, the error of the encoder as it stands; ``best``, one of
        ``tried``; ``set``: overrides as ``--set`` takes them.

    Raises:
        InputError: not an experiment of headline tests, or the arm has not one network encoder.
    """
    out = Path(out)
    name = one_ranker(config, arm)
    encoder = config.encoders[config.arms[name].encoders[0]] if len(config.arms[name].encoders) == 1 else None
    if config.model.kind != "ridge" or encoder is None or encoder.kind not in ("llama", "sentence"):
        raise InputError("nothing to search", file="experiment", column=f"arms.{name}.content",
                         got=config.arms[name].content, expected="one encoder of kind llama or sentence, and "
                                                                 "model.kind: ridge")
    if most < 1:
        raise InputError("out of range", file="--most", got=most, expected="at least 1")
    prepare_data(config, [name], out, data_home)
    train = read_parquet(out / "split" / "train.parquet", IMPRESSIONS)
    ads = read_parquet(out / "split" / "ads.parquet")
    ads = ads.filter(pc.is_in(ads["ad_id"], value_set=pc.unique(train["ad_id"])))
    ids = ads["ad_id"].to_pylist()
    rows, tests, story, _ = training_rows(train, ids, np.arange(len(ids)))
    learnable = _Learnable(rows, tests, story)
    depth = int(find_weights(encoder.model or {"llama": "smollm2-135m", "sentence": "minilm"}[encoder.kind],
                             encoder.revision).config()["num_hidden_layers"])
    tried_layers = sorted({layer_number(n, depth) for n in layers or (*range(3, depth, 3), depth)})
    tried: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts or [encoder.prompt]):
        all_of_it = parse_model(EncoderConfig, encoder.model_dump() | {
            "layer": tuple(tried_layers), "pooling": tuple(poolings), "prompt": prompt, "adapt": None}, "tune-encoder")
        blocks = _read(all_of_it, ads, out / "content" / f"{config.arms[name].encoders[0]}-{number}")
        for pooling in poolings:
            own = {layer: blocks[layer, pooling] for layer in tried_layers}
            tried += [{"prompt": prompt, "pooling": pooling, **step}
                      for step in _forward(own, learnable, config, most)]
    stands = parse_model(EncoderConfig, encoder.model_dump() | {"adapt": None}, "tune-encoder")
    as_it_stands = _read(stands, ads, out / "content" / config.arms[name].encoders[0])
    best = min(tried, key=lambda one: one["error"])
    key = f"encoders.{config.arms[name].encoders[0]}"
    found = {"encoder": config.arms[name].encoders[0], "before": _error(list(as_it_stands.values()), learnable, config),
             "best": best, "tried": tried,
             "set": [f"{key}.layer={best['layer']}", f"{key}.pooling={best['pooling']}",
                     *([f"{key}.prompt={best['prompt']!r}"] if best["prompt"] is not None else [])]}
    write_json(out / "encoder.json", found)
    return found


def _read(encoder: EncoderConfig, ads: pa.Table, store: Path) -> dict[tuple[int, str], np.ndarray]:
    """(layer as it was asked for, pooling) -> vectors of the ads [n, hidden]."""
    embed_texts(ads, encoder, store)
    _, matrix = for_ads(load_vectors(store), ads)
    names = [(layer, pooling) for layer in encoder.layers for pooling in encoder.poolings]
    return dict(zip(names, np.split(matrix, len(names), axis=1), strict=True))


def _error(blocks: list[np.ndarray], data: _Learnable, config: ExperimentConfig) -> float:
    x = np.concatenate(blocks, axis=1)[data.rows]
    ridge = fit_ridge(x, data.tests, data.story, config.model.penalties, config.seed, gammas=config.model.gammas,
                      widths=tuple(b.shape[1] for b in blocks))
    return min(ridge.errors.values())


def _forward(blocks: dict[int, np.ndarray], data: _Learnable, config: ExperimentConfig,
             most: int) -> list[dict[str, Any]]:
    """Forward selection: the layer that lowers the error most is added, while one does."""
    chosen: list[int] = []
    lowest = float("inf")
    steps: list[dict[str, Any]] = []
    while len(chosen) < min(most, len(blocks)):
        found: list[dict[str, Any]] = [{"layer": sorted([*chosen, layer]),
                  "error": _error([blocks[n] for n in sorted([*chosen, layer])], data, config)}
                 for layer in blocks if layer not in chosen]
        step = min(found, key=lambda one: one["error"])
        steps += found
        log.info("tune-encoder: layers %s, error %.4f", step["layer"], step["error"])
        if step["error"] > lowest - LEAST_GAIN:
            break
        chosen, lowest = step["layer"], step["error"]
    return steps
