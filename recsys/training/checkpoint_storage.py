"""Where torch.distributed.checkpoint puts tensors: safetensors files and one JSON manifest. No pickle.

PyTorch's own file storage keeps its metadata as a pickle; its safetensors storage takes neither scalars nor several
pieces of a table in one process. Here a checkpoint is a folder of ``rank-N.safetensors`` and ``manifest.json``, which
is written last: a folder without it is no checkpoint. The manifest says which piece of which tensor lies in which file,
the size and SHA-256 of every file, and (in ``sha256``) its own.

    folder/rank-0.safetensors   what rank 0 holds: its pieces of sharded tensors, its share of the replicated ones
    folder/rank-1.safetensors
    folder/manifest.json        {"format", "facts", "files": {NAME: {"bytes", "sha256"}},
                                 "tensors": {NAME: {"dtype", "shape", "pieces": [{"offsets", "sizes", "file", "key"}]}}}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from recsys.stage import MANIFEST, sha256_file, sha256_json, write_json

FORMAT = 1
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
           torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
           torch.bool: "BOOL"}
_BACK = {name: dtype for dtype, name in _DTYPES.items()}
_BLOCK = 1 << 24


class Damaged(Exception):
    """A checkpoint that must not be used; the message says which file and what is wrong with it."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        Damaged: missing, unreadable, changed since it was written, or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing: writing it was never finished") from None
    except (OSError, ValueError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from None
    if manifest.pop("sha256", None) != sha256_json(manifest):
        raise Damaged(f"{MANIFEST} does not have its own SHA-256")
    if manifest["format"] != FORMAT:
        raise Damaged(f"{MANIFEST} is of format {manifest['format']}, not {FORMAT}")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, after every file was read and compared with it.

    Raises:
        Damaged: a file is missing, of another size, or of another SHA-256.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise Damaged(f"{name} has {size:,} bytes, not {expected['bytes']:,}")
        if sha256_file(path) != expected["sha256"]:
            raise Damaged(f"{name} does not have the SHA-256 of the manifest")
    return manifest


def _write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[int, str]:
    """Write a safetensors file (https://github.com/huggingface/safetensors#format) and hash it on the way.

    The library's own writer first makes bytes of the whole; this one writes the tensors' memory as it is, and both
    writing and hashing let other threads run.
    """
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        def put(data: Any) -> None:
            nonlocal size
            view = memoryview(data)
            for start in range(0, len(view), _BLOCK):
                block = view[start : start + _BLOCK]
                digest.update(block)
                size += len(block)
                while len(block):  # an unbuffered write may take less than it was given
                    block = block[file.write(block) :]

        put(len(head).to_bytes(8, "little"))
        put(head)
        for tensor in tensors.values():
            put(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        os.fsync(file.fileno())
    return size, digest.hexdigest()


class SafetensorsWriter(StorageWriter):
    """Writes one checkpoint into a folder; rank 0 (the coordinator) publishes it by the manifest.

    Args:
        folder: seen by all ranks.
        facts: what else the manifest should say, JSON-able.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder, self._facts = folder, facts

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: a writer writes once."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """A path."""
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give each rank the name of its file."""
        return [replace(plan, storage_data=f"rank-{rank}.safetensors") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file."""
        found: list[WriteResult] = []
        if plan.items:
            keys = [_key(item) for item in plan.items]
            data = {key: planner.resolve_data(item).detach().cpu()  # type: ignore[union-attr]
                    for key, item in zip(keys, plan.items, strict=True)}
            size, digest = _write_file(self._folder / plan.storage_data, data)
            where = {"file": plan.storage_data, "bytes": size, "sha256": digest}
            found = [WriteResult(i.index, data[k].numel() * data[k].element_size(), {**where, "key": k})
                     for k, i in zip(keys, plan.items, strict=True)]
        future: Future[list[WriteResult]] = Future()
        future.set_result(found)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the manifest: from now on the folder is a checkpoint."""
        where = {(r.index.fqn, r.index.offset): r.storage_data for ranks in results for r in ranks}
        tensors = {}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            pieces = [{"offsets": list(c.offsets), "sizes": list(c.sizes),
                       **{k: where[name, c.offsets][k] for k in ("file", "key")}} for c in tensor.chunks]
            tensors[name] = {"dtype": _DTYPES[tensor.properties.dtype], "shape": list(tensor.size), "pieces": pieces}
        files = {w["file"]: {"bytes": w["bytes"], "sha256": w["sha256"]} for w in where.values()}
        # Through JSON first: the hash is of what a reader will see (tuples become lists, keys strings).
        manifest = json.loads(json.dumps({"format": FORMAT, "facts": dict(self._facts), "files": files,
                                          "tensors": tensors}))
        write_json(self._folder / MANIFEST, {**manifest, "sha256": sha256_json(manifest)})


def _key(item: WriteItem) -> str:
    data = item.tensor_data
    if data is None:
        raise TypeError(f"{item.index.fqn}: a checkpoint holds tensors; everything else goes into the manifest's facts")
    whole = data.chunk.sizes == data.size
    return item.index.fqn if whole else f"{item.index.fqn}@{','.join(str(o) for o in data.chunk.offsets)}"


class SafetensorsReader(StorageReader):
    """Reads a checkpoint's tensors, or pieces of them, into tensors sharded in any way.

    Args:
        folder: of the checkpoint.
        manifest: what :func:`verify` gave.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._folder, self._manifest = folder, manifest

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: a reader may read several times."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """A path."""
        return True

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Shapes and pieces, from the manifest."""
        tensors: dict[str, Any] = {}
        where: dict[MetadataIndex, tuple[str, str]] = {}
        for name, tensor in self._manifest["tensors"].items():
            chunks = [ChunkStorageMetadata(torch.Size(p["offsets"]), torch.Size(p["sizes"])) for p in tensor["pieces"]]
            tensors[name] = TensorStorageMetadata(TensorProperties(_BACK[tensor["dtype"]]),
                                                  torch.Size(tensor["shape"]), chunks)
            where |= {MetadataIndex(name, p["offsets"]): (p["file"], p["key"]) for p in tensor["pieces"]}
        return Metadata(tensors, storage_data=where)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Keep where the pieces lie."""
        self._where = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As planned."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy the wanted rows of each piece into the target."""
        by_file: dict[str, list[tuple[str, ReadItem]]] = {}
        for item in plan.items:
            file, key = self._where[item.storage_index]
            by_file.setdefault(file, []).append((key, item))
        for file, items in by_file.items():
            with safe_open(self._folder / file, "pt") as handle:
                for key, item in items:
                    target = planner.resolve_tensor(item).detach()
                    if item.lengths:
                        part = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True))
                        target.copy_(handle.get_slice(key)[part])
                    else:
                        target.copy_(handle.get_tensor(key))
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def empty(self, prefix: str) -> dict[str, torch.Tensor]:
        """Targets on the CPU for all tensors whose names begin with ``prefix``, by full name."""
        return {n: torch.empty(t["shape"], dtype=_BACK[t["dtype"]]) for n, t in self._manifest["tensors"].items()
                if n.startswith(prefix)}
