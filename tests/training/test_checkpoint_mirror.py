from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.config import ModelConfig, TrainingConfig
from recsys.errors import InputError
from recsys.log import log
from recsys.stage import MANIFEST, sha256_json, write_json
from recsys.storage import filesystem
from recsys.training.checkpoint_mirror import Mirror
from recsys.training.checkpoint_storage import FORMAT, _write_file, verify
from recsys.training.trainer import train_model
from tests.ranks import free_port
from tests.stores import STORES
from tests.training.test_torchrun import MODEL, SCRIPT, TRAINING
from tests.training.toy import toy_split

ROOT = Path(__file__).parents[2]


def _checkpoint(folder: Path, name: str, identity: str = "mine", best: str | None = None) -> Path:
    """A small checkpoint that is whole."""
    to = folder / name
    to.mkdir(parents=True)
    size, digest = _write_file(to / "rank-0.safetensors", {"x": torch.arange(10.0)})
    manifest: dict[str, Any] = {"format": FORMAT, "tensors": {},
                                "facts": {"identity": identity, "state": {"best_checkpoint": best}},
                                "files": {"rank-0.safetensors": {"bytes": size, "sha256": digest}}}
    write_json(to / MANIFEST, {**manifest, "sha256": sha256_json(manifest)})
    return to


def _push(address: str, *folders: Path, identity: str = "mine") -> None:
    mirror = Mirror(address, identity)
    for folder in folders:
        mirror.push(folder)
    mirror.close()


def test_a_new_machine_gets_the_newest_and_the_best(tmp_path: Path) -> None:
    there, a, b = str(tmp_path / "bucket" / "run"), tmp_path / "a", tmp_path / "b"
    best = _checkpoint(a, "epoch-0001-batch-000000000")
    newest = _checkpoint(a, "epoch-0002-batch-000000000", best=best.name)
    _push(there, best, newest)
    Mirror(there, "mine").fetch(b)
    assert sorted(p.name for p in b.iterdir()) == [best.name, newest.name]
    for name in (best.name, newest.name):
        assert verify(b / name) == verify(a / name)
    shutil.rmtree(b / best.name)
    Mirror(there, "mine").fetch(b)  # what is here is as new: nothing is fetched
    assert [p.name for p in b.iterdir()] == [newest.name]


def test_what_is_kept_there_is_what_is_kept_here(tmp_path: Path) -> None:
    there, a = tmp_path / "bucket", tmp_path / "a"
    names = [f"epoch-{i:04d}-batch-000000000" for i in range(3)]
    _push(str(there), _checkpoint(a, names[0]), _checkpoint(a, names[1]))
    shutil.rmtree(a / names[0])
    _push(str(there), _checkpoint(a, names[2]))
    assert sorted(p.parent.name for p in there.glob(f"*/{MANIFEST}")) == names[1:]
    assert not list((there / names[0]).glob("*"))


def test_half_a_copy_is_none_and_a_damaged_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    there, a = tmp_path / "bucket", tmp_path / "a"
    names = [f"epoch-{i:04d}-batch-000000000" for i in range(3)]
    _push(str(there), *[_checkpoint(a, n) for n in names])
    (there / names[2] / MANIFEST).unlink()  # killed before the manifest
    file = there / names[1] / "rank-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    log.propagate = True
    Mirror(str(there), "mine").fetch(tmp_path / "b")
    log.propagate = False
    assert [p.name for p in (tmp_path / "b").iterdir()] == [names[0]]
    assert f"{names[1]} is not used" in caplog.text


@pytest.mark.parametrize("manifest", ["", "[]", "7", '{"files": 5, "facts": {}}', '{"files": {}, "facts": null}'])
def test_a_manifest_of_another_shape_is_a_damaged_copy(manifest: str, tmp_path: Path,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "there" / "epoch-0001" / MANIFEST
    path.parent.mkdir(parents=True)
    path.write_text(manifest)
    (tmp_path / "here").mkdir()
    log.propagate = True
    Mirror(str(tmp_path / "there"), "id").fetch(tmp_path / "here")
    log.propagate = False
    assert "is not used" in caplog.text
    assert not list((tmp_path / "here").iterdir())


def test_another_runs_checkpoints_are_refused(tmp_path: Path) -> None:
    there = str(tmp_path / "bucket")
    _push(there, _checkpoint(tmp_path / "a", "epoch-0000-batch-000000001", identity="other"))
    with pytest.raises(InputError, match=r"another run's checkpoints; got 'other'; expected mine"):
        Mirror(there, "mine").fetch(tmp_path / "b")
    assert not list((tmp_path / "b").glob("*"))


def test_a_store_that_does_not_take_it_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bucket").write_text("a file where a folder should be")
    log.propagate = True
    _push(str(tmp_path / "bucket"), _checkpoint(tmp_path / "a", "epoch-0000-batch-000000001"))
    log.propagate = False
    assert "is not mirrored" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_every_store_gives_back_what_it_was_given(store: str, tmp_path: Path) -> None:
    with STORES[store]() as (address, _):
        there, a = f"{address}/team/run", tmp_path / "a"
        names = [f"epoch-{i:04d}-batch-000000000" for i in range(3)]
        _push(there, *[_checkpoint(a, n) for n in names[:2]])
        shutil.rmtree(a / names[0])
        _push(there, _checkpoint(a, names[2], best=names[1]))
        system, root = filesystem(there)
        with system.open_output_stream(f"{root}/{names[2]}/rank-0.safetensors") as damaged:
            damaged.write(b"x")
        Mirror(there, "mine").fetch(tmp_path / "b")
        assert [p.name for p in (tmp_path / "b").iterdir()] == [names[1]]
        assert verify(tmp_path / "b" / names[1]) == verify(a / names[1])
        Mirror(f"{address}/nothing/here", "mine").fetch(tmp_path / "c")
        assert not (tmp_path / "c").exists()


def _start(script: Path, split: Path, out: Path, ranks: int, training: dict[str, Any]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    launch = [] if ranks == 1 else ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d",
                                    f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    return subprocess.Popen([sys.executable, *launch, str(script), str(split), str(out), json.dumps(MODEL),
                             json.dumps(training)],
                            env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def _kill(process: subprocess.Popen[str]) -> None:
    """The machine is gone: the launcher and all that it started, without a word."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True,
                              check=False).stdout.split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("store", "first", "second"), [("s3", 1, 1), ("gs", 2, 1)])
def test_a_run_that_is_killed_on_one_cloud_ends_on_another(store: str, first: int, second: int,
                                                           tmp_path: Path) -> None:
    """Each cloud is a process group and a disk of its own; all they share is a bucket.

    One rank on both: the metrics of a run that was never stopped, bit by bit. Another number of ranks: sums in another
    order, within 2e-3.
    """
    split = toy_split(tmp_path / "split", n=8000)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    with STORES[store]() as (address, _):
        training = {**TRAINING, "epochs": 3, "batch_size": 32, "checkpoint_seconds": 0.3, "mirror": f"{address}/run"}
        a = _start(script, split, tmp_path / "a" / "out", first, training)
        system, root = filesystem(f"{address}/run/member-0")
        from pyarrow import fs

        until = time.monotonic() + 240
        seen: set[str] = set()
        try:
            while len(seen) < 3 and time.monotonic() < until:
                assert a.poll() is None, a.communicate()[0]
                found = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
                seen |= {f.path for f in found if f.base_name == MANIFEST}
                time.sleep(0.1)
        finally:
            if a.poll() is None:
                _kill(a)
        assert len(seen) >= 3
        assert not (tmp_path / "a" / "out").exists()
        b = _start(script, split, tmp_path / "b" / "out", second, training)
        said, _ = b.communicate(timeout=400)
        assert b.returncode == 0, said
        assert "fetched epoch-" in said
        assert "goes on from" in said
        whole = train_model(split, ModelConfig(**MODEL), TrainingConfig(**{**training, "mirror": None}),
                            tmp_path / "whole") if second != 1 or first != 1 else None
        if whole is None:  # in a process like the others, for the last bit
            alone = _start(script, split, tmp_path / "whole", 1, {**training, "mirror": None})
            assert alone.wait(400) == 0
            whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
        moved = json.loads((tmp_path / "b" / "out" / "metrics.json").read_text())
        for part in ("train", "validation", "test"):
            for name in ("auc", "log_loss", "normalized_entropy"):
                if first == second:
                    assert moved[part][name] == whole[part][name], (part, name)
                else:
                    assert moved[part][name] == pytest.approx(whole[part][name], abs=2e-3), (part, name)
        assert moved["usage"]["samples"] == whole["usage"]["samples"]
