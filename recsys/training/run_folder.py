"""A run that has not finished: its checkpoints, and beside them the definition of the model that they are of.

    OUT's partial folder/checkpoint/definition/   model.json, vocabulary.parquet, content.safetensors, manifest.json
                                    member-0/epoch-0001-batch-000000072/

A checkpoint holds weights by name and nothing of columns, vocabularies or content; with the definition it is a model.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp

from recsys.config import ModelConfig, TrainingConfig
from recsys.content.semantic_ids import ResidualQuantiser
from recsys.content.vectors import CorpusTransform
from recsys.errors import InputError
from recsys.log import log
from recsys.models.bundle import Bundle, bundle_of
from recsys.models.folder import SPEC, Parts, check_files, read_definition, write_definition
from recsys.models.ranker import correct_for_sampling
from recsys.stage import MANIFEST, sha256_file, write_json
from recsys.training.checkpoint import Found, newest
from recsys.training.checkpoint_storage import Damaged, SafetensorsReader, verify
from recsys.training.data import TrainingData

CHECKPOINTS, DEFINITION = "checkpoint", "definition"


def write_run_definition(checkpoints: Path, data: TrainingData, model: ModelConfig, training: TrainingConfig, seed: int,
                         name: str, content: np.ndarray | None, transform: CorpusTransform | None,
                         quantiser: ResidualQuantiser | None) -> None:
    """Write the definition of a run's model, once; ``checkpoints`` is the folder of all members' checkpoints."""
    folder = checkpoints / DEFINITION
    if (folder / MANIFEST).is_file():  # a run that goes on: same key, same definition
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_definition(folder, data.encoder, model, name, content, transform, quantiser, {
        "seed": seed, "training": training.model_dump(mode="json"), "failure_keep": list(data.failure_keep)})
    write_json(folder / MANIFEST, {"facts": {"files": {p.name: sha256_file(p) for p in sorted(folder.iterdir())}}})


@dataclass(frozen=True)
class Unfinished:
    """The model of a run that has not finished.

    Attributes:
        bundle: its rankers, probabilities corrected for the sampling of training rows.
        spec: the definition's model.json.
        files: label -> file: what the model was read from, checksums of everything.
        facts: of each member the checkpoint's ``name``, ``step``, ``epoch``, ``samples`` and ``sha256``.
    """

    bundle: Bundle
    spec: dict[str, Any]
    files: dict[str, Path]
    facts: list[dict[str, Any]]


def load_unfinished(path: Path) -> Unfinished:
    """The model of a run, or of one checkpoint of it; nothing in the folder is touched, so the run may be going on.

    Args:
        path: the model folder that the run would have written (or the hidden partial folder beside it, which holds its
            checkpoints): the best weights so far by the validation slice, as a run that ends keeps them, else the
            latest; what is damaged is named and passed over. Or one checkpoint,
            ``.../checkpoint/member-0/epoch-0001-batch-000000072``: exactly its weights.

    Raises:
        InputError: no such run, a damaged checkpoint or definition, members of an ensemble that have none yet.
    """
    path = path.absolute()  # its parents are looked into, also where it was named from within them
    if path.name.startswith("epoch-"):
        whole = _whole(path)
        return _model(*_definition(path.parent.parent / DEFINITION), [whole])
    checkpoints = _checkpoints(path)
    definition, spec, loaded = _definition(checkpoints / DEFINITION)
    found = [_best(checkpoints / f"member-{m}") for m in range(int(spec["training"]["ensemble"]))]
    return _model(definition, spec, loaded, found)


def _definition(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    if not (folder / MANIFEST).is_file():
        raise InputError("no definition of a ranker beside the checkpoints", file=folder,
                         expected="what recsys train writes before the first step")
    check_files(folder)
    return folder, *read_definition(folder)


def _checkpoints(path: Path) -> Path:
    """The folder of a run's checkpoints: in ``path``, or in a partial folder of it."""
    if (path / CHECKPOINTS).is_dir():
        return path / CHECKPOINTS
    found = sorted(path.parent.glob(f".{glob.escape(path.name)}.*.partial/{CHECKPOINTS}"))
    if not found:
        raise InputError("no such file", file=path / SPEC, expected="a model folder (recsys train FILE --out FOLDER), "
                         "a run that has a checkpoint, or a checkpoint")
    if len(found) > 1:
        raise InputError("several unfinished runs", file=path, got=", ".join(p.parent.name for p in found),
                         expected="the folder of one of them")
    return found[0]


def _best(member: Path) -> Found:
    """The checkpoint that holds what the member's run would keep if it ended now."""
    def told(folder: Path, error: Damaged) -> None:
        if (folder / MANIFEST).is_file():  # else it is being written, or never was
            log.warning("checkpoint %s is not used: %s", folder, error)

    latest = newest(member, told) or newest(member, told)  # a run that goes on may have removed what was being read
    if latest is None:
        raise InputError("no checkpoint that is whole", file=member,
                         expected="one of every member, or one checkpoint named")
    best = latest.state.best_checkpoint
    return latest if best is None or best == latest.folder.name else _whole(member / best)


def _whole(folder: Path) -> Found:
    try:
        return Found(folder, verify(folder))
    except Damaged as error:
        raise InputError("damaged checkpoint", file=folder, got=str(error),
                         expected="files with the checksums of its manifest") from None


def _model(definition: Path, spec: dict[str, Any], loaded: dict[str, Any], found: list[Found]) -> Unfinished:
    weights: dict[str, torch.Tensor] = {}
    for member, checkpoint in enumerate(found):
        weights |= {f"{member}.{n}": t for n, t in _weights(checkpoint).items()}
    states = [f.state for f in found]
    model_id = f"{spec['name']} after " + ", ".join(f"{s.step:,} steps ({f.folder.name})"
                                                    for f, s in zip(found, states, strict=True))
    bundle = bundle_of(Parts({**spec, "members": len(found)}, weights, {**loaded, "model_id": model_id}, definition,
                             found[0].folder), "cpu")
    for ranker in bundle.models:
        correct_for_sampling(ranker, spec["failure_keep"])
    files = {"definition": definition / MANIFEST, **{f"checkpoint-{i}": f.folder / MANIFEST
                                                     for i, f in enumerate(found)}}
    facts = [{"name": f.folder.name, "step": s.step, "epoch": s.epoch, "samples": s.samples,
              "sha256": sha256_file(f.folder / MANIFEST)} for f, s in zip(found, states, strict=True)]
    return Unfinished(bundle, spec, files, facts)


def _weights(found: Found) -> Mapping[str, torch.Tensor]:
    """Whole weights as :meth:`recsys.models.trained.Trained.load_weights` takes them, however they were spread."""
    reader = SafetensorsReader(found.folder, found.manifest)
    weights = {**reader.empty("dense."), **reader.empty("table.")}
    try:
        dcp.load(dict(weights), storage_reader=reader, no_dist=True)
    except dcp.api.CheckpointException as error:  # a run that goes on removes what it need not keep
        raise InputError("the checkpoint went away while it was read", file=found.folder,
                         got="; ".join(str(e) for e, _ in error.failures.values()), expected="another try") from None
    return {n.removeprefix("dense."): t for n, t in weights.items()}
