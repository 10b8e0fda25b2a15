"""Checkpoints copied to an object store, so that a run goes on where another machine, or another cloud, began it.

    mirror = Mirror("s3://bucket/runs/mine/member-0", identity)
    mirror.fetch(folder)          # the newest whole one, where this machine has none as new
    mirror.push(folder / name)    # in a thread of its own; the manifest last, so half a copy is no checkpoint
    mirror.close()

Nothing is renamed: an object store cannot. A copy counts once its manifest is there, and is verified by the manifest's
checksums before it is used, as a checkpoint on disk is.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyarrow import fs

from recsys.errors import InputError
from recsys.log import log
from recsys.stage import MANIFEST
from recsys.storage import filesystem, first_line, open_output
from recsys.training.checkpoint_storage import Damaged, read_manifest, verify

_BLOCK = 8 << 20


class Mirror:
    """One member's checkpoints in an object store.

    Args:
        address: s3://, gs:// or abfs:// address of a folder that is this run's alone; a path will do, too.
        identity: hash of everything that makes a run this run; in the facts of every manifest.

    Raises:
        InputError: an address of another kind, or an object store without credentials.
    """

    def __init__(self, address: str, identity: str) -> None:
        self._address, self._identity = address, identity
        self._system, self._root = filesystem(address)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recsys-mirror")
        self._pushing: Future[None] | None = None

    def fetch(self, folder: Path) -> None:
        """Bring the newest whole checkpoint into ``folder``, and the one with the best weights that it refers to.

        Nothing where ``folder`` has one as new. One that is damaged is named, and the one before it taken.

        Raises:
            InputError: the address holds another run's checkpoints, or cannot be read.
        """
        have = {p.parent.name for p in folder.glob(f"epoch-*/{MANIFEST}")}
        for name in sorted(self._published(), reverse=True):
            if have and name <= max(have):
                return
            try:
                manifest = self._fetch_one(name, folder)
                best = manifest["facts"]["state"]["best_checkpoint"]
                if best is not None and best not in {*have, name}:
                    self._fetch_one(best, folder)
            except Damaged as error:
                log.warning("mirrored checkpoint %s/%s is not used: %s", self._address, name, error)
                shutil.rmtree(folder / name, ignore_errors=True)
                continue
            log.info("fetched %s from %s", name, self._address)
            return

    def _published(self) -> list[str]:
        try:
            files = self._system.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        except OSError as error:
            raise InputError("the mirror cannot be read", file=self._address, column="training.mirror",
                             got=first_line(error),
                             expected="an address that may be read and written") from None
        return [Path(f.path).parent.name for f in files if f.is_file and f.base_name == MANIFEST]

    def _fetch_one(self, name: str, folder: Path) -> dict[str, Any]:
        to = folder / name
        to.mkdir(parents=True, exist_ok=True)
        data = self._read(f"{name}/{MANIFEST}")
        try:
            facts = json.loads(data)
            files, identity = list(facts["files"]), facts["facts"].get("identity")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{MANIFEST} cannot be read ({error})") from None
        if identity != self._identity:
            shutil.rmtree(to)
            raise InputError("the mirror holds another run's checkpoints", file=f"{self._address}/{name}",
                             column="training.mirror", got=identity,
                             expected=f"{self._identity}: same data, model and training settings; or another address")
        for file in files:
            with self._open(f"{name}/{file}") as source, (to / Path(file).name).open("wb") as target:
                while block := source.read(_BLOCK):
                    target.write(block)
        (to / MANIFEST).write_bytes(data)
        return verify(to)

    def _open(self, name: str) -> Any:
        try:
            return self._system.open_input_stream(f"{self._root}/{name}")
        except OSError:
            raise Damaged(f"{name} is missing") from None

    def _read(self, name: str) -> bytes:
        with self._open(name) as source:
            return bytes(source.read())

    def push(self, checkpoint: Path) -> None:
        """Copy a checkpoint that is whole, behind the caller's back; a failure is a warning, and training goes on."""
        self._pushing = self._thread.submit(self._push, checkpoint)

    def _push(self, checkpoint: Path) -> None:
        try:
            manifest = read_manifest(checkpoint)
            names = [*manifest["files"], MANIFEST]  # the manifest last
            for file in names:
                with (checkpoint / file).open("rb") as source, \
                        open_output(self._system, f"{self._root}/{checkpoint.name}/{file}") as target:
                    while block := source.read(_BLOCK):
                        target.write(block)
            self._prune(checkpoint)
        except Damaged:  # pruned here before its turn came: a newer one follows
            return
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("checkpoint %s is not mirrored to %s: %s", checkpoint.name, self._address,
                        first_line(error))

    def _prune(self, newest: Path) -> None:
        """Keep what the folder on disk keeps; of the rest the manifests go first, so that no half is left in use."""
        kept = {p.parent.name for p in newest.parent.glob(f"epoch-*/{MANIFEST}")} | {newest.name}
        files = self._system.get_file_info(fs.FileSelector(self._root, recursive=True))
        old = [f.path for f in files if f.is_file and Path(f.path).parent.name not in kept]
        for path in sorted(old, key=lambda p: not p.endswith(MANIFEST)):
            self._system.delete_file(path)

    def close(self) -> None:
        """Wait for what is being copied."""
        self._thread.shutdown(wait=True)
