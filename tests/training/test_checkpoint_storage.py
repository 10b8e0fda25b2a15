from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from recsys.training.checkpoint_storage import Damaged, SafetensorsReader, SafetensorsWriter, read_manifest, verify


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"table.a": torch.randn(7, 4), "half": torch.randn(3).bfloat16(), "scalar": torch.tensor(3.25),
            "steps": torch.tensor(12, dtype=torch.int64), "bytes": torch.arange(256, dtype=torch.uint8),
            "sums": torch.tensor([1 / 3, 1e300], dtype=torch.float64), "empty": torch.zeros(0, 4),
            "strided": torch.randn(4, 6).T, "flag": torch.tensor([True, False])}


def _save(folder: Path, tensors: dict[str, torch.Tensor], **facts: object) -> None:
    dcp.save(tensors, storage_writer=SafetensorsWriter(folder, facts), no_dist=True)


def test_every_tensor_comes_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = _tensors()
    _save(tmp_path / "c", tensors, epoch=3)
    manifest = verify(tmp_path / "c")
    assert manifest["facts"] == {"epoch": 3}
    reader = SafetensorsReader(tmp_path / "c", manifest)
    targets = reader.empty("")
    dcp.load(targets, storage_reader=reader, no_dist=True)
    assert targets.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(targets[name], tensor), name
        assert targets[name].dtype == tensor.dtype
    # any safetensors reader opens the file
    assert torch.equal(load_file(tmp_path / "c" / "rank-0.safetensors")["table.a"], tensors["table.a"])


def test_files_are_those_of_the_manifest_and_no_pickle(tmp_path: Path) -> None:
    _save(tmp_path / "c", _tensors())
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["manifest.json", "rank-0.safetensors"]
    assert list(read_manifest(tmp_path / "c")["files"]) == ["rank-0.safetensors"]


def test_only_tensors_go_in(tmp_path: Path) -> None:
    with pytest.raises(dcp.api.CheckpointException, match="holds tensors"):
        _save(tmp_path / "c", {"a": torch.ones(1), "words": {"lr": 0.1}})
    assert not (tmp_path / "c" / "manifest.json").exists()


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda c: _flip(c / "rank-0.safetensors", -1), "rank-0.safetensors does not have the SHA-256"),
    (lambda c: _flip(c / "rank-0.safetensors", 20), "rank-0.safetensors does not have the SHA-256"),
    (lambda c: (c / "rank-0.safetensors").write_bytes((c / "rank-0.safetensors").read_bytes()[:-1]),
     r"rank-0.safetensors has [\d,]+ bytes, not"),
    (lambda c: (c / "rank-0.safetensors").unlink(), "rank-0.safetensors is missing"),
    (lambda c: (c / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda c: (c / "manifest.json").write_bytes((c / "manifest.json").read_bytes()[:50]), "cannot be read"),
    (lambda c: (c / "manifest.json").write_text((c / "manifest.json").read_text().replace('"epoch": 3', '"epoch": 4')),
     "does not have its own SHA-256"),
])
def test_damage_is_named(tmp_path: Path, damage: object, message: str) -> None:
    _save(tmp_path / "c", _tensors(), epoch=3)
    verify(tmp_path / "c")
    damage(tmp_path / "c")  # type: ignore[operator]
    with pytest.raises(Damaged, match=message):
        verify(tmp_path / "c")


def test_every_flipped_byte_of_the_manifest_is_seen(tmp_path: Path) -> None:
    _save(tmp_path / "c", {"a": torch.ones(2)}, epoch=3)
    path = tmp_path / "c" / "manifest.json"
    text = path.read_bytes()
    for at in range(0, len(text), 7):
        if text[at : at + 1].isspace():
            continue  # layout is no content
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        with pytest.raises(Damaged):
            read_manifest(tmp_path / "c")
    path.write_bytes(text)
    assert json.loads(text)["facts"] == read_manifest(tmp_path / "c")["facts"]
