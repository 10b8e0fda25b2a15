from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import ModelConfig, TrainingConfig
from recsys.errors import InputError, Refused
from recsys.models.bundle import load_bundle
from recsys.models.scoring import Scoring
from recsys.serving.artefact import load_program, program_inputs
from recsys.serving.export import Bounds, export_bundle
from recsys.serving.scorer import Scorer
from recsys.stage import read_manifest
from recsys.training.trainer import train_model
from recsys.training.world import World
from tests.ranks import run_ranks
from tests.training.test_run_folder import cut
from tests.training.toy import toy_content, toy_split, toy_table

LOOSE = Bounds(max_dp=0.1, mean_dp=0.02, auc=0.02)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = toy_split(tmp_path_factory.mktemp("export") / "split")
    pq.write_table(toy_table(600, 7), folder / "valid.parquet")
    return folder


@pytest.fixture(scope="module")
def trained(split: Path) -> Path:
    model = ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), content_dim=8)
    train_model(split, model, TrainingConfig(epochs=1, batch_size=128), split.parent / "model", content=toy_content())
    return split.parent / "model"


@pytest.fixture(scope="module")
def bundle(split: Path, trained: Path) -> Path:
    export_bundle(trained, split.parent / "bundle", data=split, calibration="platt", bounds=LOOSE, program=False)
    return split.parent / "bundle"


def test_scoring_a_bundle_imports_little(bundle: Path, tmp_path: Path) -> None:
    pq.write_table(toy_table(300, 9), tmp_path / "in.parquet")
    code = ("import sys; from recsys.serving import score_batch; score_batch(*sys.argv[1:]);"
            "print(sorted({'torchrec', 'torch._dynamo', 'scipy.optimize', 'sklearn'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, bundle, tmp_path / "in.parquet", tmp_path / "out"], check=True,
                          capture_output=True, text=True)
    assert done.stdout.strip() == "[]"  # each takes a process of a job a tenth of its start, or more


def test_a_bundle_scores_as_the_model_and_as_its_example(trained: Path, bundle: Path) -> None:
    table, facts = toy_table(300, 9), read_manifest(bundle)["facts"]  # type: ignore[index]
    scorer = Scorer.load(bundle)
    assert scorer.model_id == facts["model_id"] != Scorer.load(trained).model_id
    line = json.loads((bundle / "model.json").read_text())["scoring"]["calibration"]["arrays"]["platt"]
    z = scorer.encoder.encode(table)
    apart = np.abs(scorer.logits(z) - Scorer.load(trained).logits(z))
    assert 0 < apart.max() < 0.1  # packed, and yet near
    want = 1 / (1 + np.exp(-(scorer.logits(z)[:, 0] * line[0][0] + line[0][1])))
    np.testing.assert_allclose(scorer.score(table)["click"], want, rtol=1e-12)
    example = scorer.score(pq.read_table(bundle / "example.parquet"))
    np.testing.assert_allclose(example["click"], json.loads((bundle / "example.json").read_text())["p_click"],
                               atol=1e-4)
    losses = facts["calibration"]["log_loss"]["click"]
    assert losses["after"] < losses["before"] + 0.01
    assert "not for decisions" in (bundle / "card.md").read_text().lower()
    assert set(facts["files"]) == {p.name for p in bundle.iterdir()} - {"manifest.json"}
    assert not any(p.suffix in (".pkl", ".pt", ".bin") for p in bundle.iterdir())


def test_a_bundle_of_triton_kernels_scores_alike(split: Path, trained: Path, tmp_path: Path) -> None:
    """The experiment file's ``kernels`` reaches lookup and interaction of what is served (here in the interpreter)."""
    table, found = toy_table(20, 9), {}
    for kernels in ("reference", "auto", "triton"):
        model = shutil.copytree(trained, tmp_path / f"model-{kernels}")
        spec = json.loads((model / "model.json").read_text())
        spec["model"]["kernels"] = kernels
        (model / "model.json").write_text(json.dumps(spec))
        scoring = Scoring("int8", "float32")
        export_bundle(model, tmp_path / kernels, data=split, scoring=scoring, bounds=LOOSE, rows=40, program=False)
        scorer = Scorer.load(tmp_path / kernels)
        found[kernels] = scorer.logits(scorer.encoder.encode(table))
    np.testing.assert_allclose(found["auto"], found["reference"], atol=1e-5)
    np.testing.assert_allclose(found["triton"], found["reference"], atol=1e-5)


def test_new_ads_join_a_bundle(bundle: Path) -> None:
    _, vectors = toy_content()
    scorer, table = Scorer.load(bundle), toy_table(20, 9)
    np.testing.assert_array_equal(scorer.with_ads(["new"], vectors[:1]).score(table)["click"],
                                  scorer.score(table)["click"])


def test_beyond_the_bounds_nothing_is_published(split: Path, trained: Path, tmp_path: Path) -> None:
    for bounds in (replace(LOOSE, max_dp=1e-9), replace(LOOSE, mean_dp=1e-9)):
        with pytest.raises(Refused, match="held-out rows") as error:
            export_bundle(trained, tmp_path / "b", data=split, scoring=Scoring("int4"), bounds=bounds)
        assert error.value.exit_code == 3
        assert not list(tmp_path.iterdir())
    exact = export_bundle(trained, tmp_path / "b", data=split, scoring=Scoring("fp32", "float32"), program=False,
                          bounds=Bounds(max_dp=1e-6, mean_dp=1e-6, auc=1e-6))
    assert exact["facts"]["differences"]["click"]["max_dp"] < 1e-6
    assert "scorer.pt2" not in exact["facts"]["files"]


def test_a_damaged_file_is_found_when_it_is_loaded(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    damage(copy / "model.safetensors")
    with pytest.raises(InputError, match="damaged file"):
        load_bundle(copy)
    with pytest.raises(InputError, match="no exported program"):
        load_program(copy)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("calibration", ["platt", "isotonic"])
def test_calibration_is_never_fitted_on_test_rows(split: Path, trained: Path, tmp_path: Path, calibration: str) -> None:
    bare = toy_split(tmp_path / "split")
    with pytest.raises(InputError, match="no rows to calibrate on"):
        export_bundle(trained, tmp_path / "b", data=bare, calibration=calibration)  # type: ignore[arg-type]
    assert export_bundle(trained, tmp_path / "b", data=bare, program=False,
                         bounds=LOOSE)["facts"]["part"] == "test"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "history", "calibration", "content"), [
    ("dlrm", "attention", "isotonic", True), ("dcnv2", "mean", "none", False),
    ("finalmlp", "attention", "platt", False)])
def test_the_program_gives_the_bundles_scores_on_any_rows(split: Path, tmp_path: Path, kind: str, history: str,
                                                          calibration: str, content: bool) -> None:
    config = ModelConfig(kind=kind, embedding_dim=4, bottom=(8,), top=(16,), streams=((16,), (16,)), content_dim=8,
                         history=history, history_length=3)  # type: ignore[arg-type]
    train_model(split, config, TrainingConfig(epochs=1, batch_size=256), tmp_path / "model",
                content=toy_content() if content else None)
    export_bundle(tmp_path / "model", tmp_path / "bundle", data=split, calibration=calibration,  # type: ignore[arg-type]
                  bounds=LOOSE)
    program, exact = load_program(tmp_path / "bundle"), Scorer(load_bundle(tmp_path / "bundle", precision="float32"))
    assert not [n for n in program.graph.nodes if "recsys" in str(n.target) or "fbgemm" in str(n.target)]
    for rows in (1, 40):
        table = toy_table(rows, 11)
        found = program(*program_inputs(exact.encoder.encode(table))).numpy()
        np.testing.assert_allclose(found[:, 0], exact.score(table)["click"], atol=1e-5)
    damage(tmp_path / "bundle/scorer.pt2")
    with pytest.raises(InputError, match="damaged file"):
        load_program(tmp_path / "bundle")


# Sampled failures, so that the correction shows; no validation slice, so that the last weights are the model's.
SAMPLED = TrainingConfig(epochs=1, batch_size=128, log_steps=1, negative_keep=0.5, validation_share=0.0)
EXACT = Bounds(max_dp=1e-6, mean_dp=1e-6, auc=1e-6)


def _first_epoch_exported(split: Path, whole: Path, killed: Path, out: Path) -> None:
    """A run that was killed in its second epoch, exported, scores as the run of one epoch that ended."""
    manifest = export_bundle(killed, out, data=split, scoring=Scoring("fp32", "float32"), bounds=EXACT, program=False)
    table = toy_table(300, 9)
    np.testing.assert_allclose(Scorer.load(out).score(table)["click"], Scorer.load(whole).score(table)["click"],
                               rtol=1e-5)
    (checkpoint,) = manifest["facts"]["checkpoints"]
    assert checkpoint["epoch"] == 1
    assert f"{checkpoint['step']:,} steps ({checkpoint['name']})" in (out / "card.md").read_text()


@pytest.fixture
def _left_alone() -> Iterator[None]:
    """Sharded tables make a process group even in one process, which other tests must not find."""
    yield
    World.single().close()


@pytest.mark.usefixtures("_left_alone")
@pytest.mark.parametrize("kept", ["fused", "dense", "sharded"])
def test_a_checkpoint_scores_as_the_model_at_that_step(split: Path, tmp_path: Path, kept: str) -> None:
    config = ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), content_dim=8, min_count=1,
                         embeddings=kept)  # type: ignore[arg-type]
    train_model(split, config, SAMPLED, tmp_path / "whole", content=toy_content())
    run = cut(split, tmp_path / "killed", SAMPLED.model_copy(update={"epochs": 2}), 14, config, content=toy_content())
    _first_epoch_exported(split, tmp_path / "whole", tmp_path / "killed", tmp_path / "bundle")
    (checkpoint,) = (run / "checkpoint/member-0").glob("epoch-*")
    named = export_bundle(checkpoint, tmp_path / "named", data=split, bounds=LOOSE)  # packed, and scorer.pt2 with it
    assert named["facts"]["program"]["max_dp"] < 1e-4
    assert export_bundle(checkpoint, tmp_path / "named", data=split, bounds=LOOSE)["cached"]


def _on_ranks(world: World, split: Path, out: Path) -> None:
    config = ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), min_count=1)
    tables = {"tables": {"user_id": {"sharding": "row_wise"}}}
    train_model(split, config, TrainingConfig(**{**SAMPLED.model_dump(), **tables}), out / "whole", world=world)
    twice = TrainingConfig(**{**SAMPLED.model_dump(), **tables, "epochs": 2})
    cut(split, out / "killed", twice, 14, config, world=world)


def test_what_two_ranks_left_is_whole(split: Path, tmp_path: Path) -> None:
    run_ranks(2, _on_ranks, split, tmp_path)
    _first_epoch_exported(split, tmp_path / "whole", tmp_path / "killed", tmp_path / "bundle")


def test_what_cannot_be_published_is_one_line_and_leaves_nothing(split: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from recsys.cli import app

    config = ModelConfig(embedding_dim=4, bottom=(8,), top=(16,), min_count=1)
    run = cut(split, tmp_path / "killed", SAMPLED.model_copy(update={"epochs": 2}), 14, config)
    (checkpoint,) = (run / "checkpoint/member-0").glob("epoch-*")
    damage(checkpoint / "rank-0.safetensors")
    for path, message in ((checkpoint, "damaged checkpoint"), (tmp_path / "killed", "no checkpoint that is whole"),
                          (tmp_path / "nothing", "no such file")):
        done = CliRunner().invoke(app, ["export", str(path), "--out", str(tmp_path / "b"), "--data", str(split)])
        assert isinstance(done.exception, InputError)
        assert message in str(done.exception)
        assert done.exception.exit_code == 2
    assert {p.name for p in tmp_path.iterdir()} == {run.name}
