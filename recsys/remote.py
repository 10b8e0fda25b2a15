"""Folders in an object store, worked on as folders of this machine: brought here first, copied back as they grow.

    with at_hand("s3://bucket/runs/mine") as folder:      # a Path; what is there is here
        ...                                               # stages write into it
    # what they finished is there

A bucket cannot rename, and has no folders. So a copy is what its ``_index.json`` says, which is written last and holds
every file's size and SHA-256; files that are about to be replaced leave the index before, so that a copy killed
half way is a smaller one, not a damaged one. What is unfinished here (hidden folders) is not copied; a killed stage is
begun again elsewhere, but for training, which goes on from its mirrored checkpoints (``training.mirror``).

Beside the folder here lies what both sides had when they last agreed: a result that could not be copied is kept and
copied by the next run, and a file that another machine has removed is removed here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.log import log
from recsys.stage import write_json
from recsys.storage import SCHEMES, file_size, filesystem, first_line, is_url, need_bucket, open_output

INDEX = "_index.json"
EVERY = 60.0
"""Seconds between copies of what was finished meanwhile."""
OWN = frozenset({"score"})
"""Verbs that read and write addresses themselves, piece by piece."""
_BLOCK = 8 << 20


@contextlib.contextmanager
def addresses_at_hand(arguments: Sequence[str]) -> Iterator[list[str]]:
    """A command line whose addresses are folders of this machine, for as long as it runs.

    Args:
        arguments: the words after ``recsys``; a word, or what follows ``--option=``, may be the s3://, gs:// or
            abfs:// address of a folder or a file. Other addresses (redis://, https://) are left as they are, and so are
            what follows ``--set`` and ``--file``, and all where the verb is one of :data:`OWN`.

    Raises:
        InputError: under torchrun with several ranks, which must all see the folder.
    """
    found, addresses = list(arguments), {}
    with contextlib.ExitStack() as stack:
        if not OWN & set(found[:4]):  # options of every verb may stand before it
            for i, word in enumerate(found):
                option, _, value = word.partition("=") if word.startswith("--") else ("", "", word)
                settings = {option, found[i - 1] if i else ""} & {"--set", "--file"}
                if is_url(value) and value.partition("://")[0] in SCHEMES and not settings:
                    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                        raise InputError("several ranks need a folder that all of them see", file=value,
                                         expected="a mounted bucket, or a path with training.mirror")
                    here = str(stack.enter_context(at_hand(value)))
                    found[i] = f"{option}={here}" if option else here
                    addresses[here] = value.rstrip("/")
        try:
            yield found
        except InputError as error:  # a copy's path says nothing to who gave an address
            here = next((h for h in addresses if str(error.file).startswith(h)), "")
            if not here:
                raise
            raise InputError(error.message, file=addresses[here] + str(error.file).removeprefix(here),
                             column=error.column, row=error.row, got=error.got, expected=error.expected) from None


@contextlib.contextmanager
def at_hand(address: str, cache: Path | None = None) -> Iterator[Path]:
    """The folder at ``address`` on this machine; what changes in it is copied back, also where the work ends badly.

    A file's address gives the file, which is not copied back.

    Args:
        address: s3://, gs:// or abfs:// address of a folder.
        cache: where copies lie; default ``RECSYS_CACHE``, else ``~/.cache/recsys``.

    Raises:
        InputError: the store cannot be read, or its copy is damaged; or it does not take the result, which is then
            whole on this machine, and the same command copies it.
    """
    root = cache or Path(os.environ.get("RECSYS_CACHE", Path.home() / ".cache" / "recsys"))
    if file_size(address) is not None:
        folder, _, name = address.rpartition("/")
        remote = Remote(folder, root / hashlib.sha256(address.encode()).hexdigest()[:16])
        remote.fetch(name)
        yield remote.folder / name
        return
    remote = Remote(address, root / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16])
    remote.pull()
    done = threading.Event()

    def copy() -> None:
        while not done.wait(EVERY):
            try:
                remote.push()
            except OSError as error:
                log.warning("%s: not copied (%s); tried again", address, first_line(error))

    thread = threading.Thread(target=copy, name="recsys-remote", daemon=True)
    thread.start()
    try:
        yield remote.folder
    finally:
        done.set()
        thread.join()
        try:
            copied = remote.push()
        except OSError as error:
            raise InputError(f"the object store does not take the result, which is whole in {remote.folder}; the same "
                             "command copies it", file=address, got=first_line(error),
                             expected="an address that may be written") from None
        if copied:
            log.info("copied to %s", address)


class Remote:
    """A folder in an object store and its copy on this machine."""

    def __init__(self, address: str, folder: Path) -> None:
        self.folder, self._address = folder, address.rstrip("/")
        self._system, self._root = filesystem(self._address)
        folder.mkdir(parents=True, exist_ok=True)
        self._agreed = folder.with_name(f".{folder.name}.agreed.json")
        self._known: dict[str, tuple[int, int, str]] = {}  # size, mtime and SHA-256 of what was hashed before
        self._there: dict[str, dict[str, Any]] = {}  # files of the copy

    def pull(self) -> None:
        """Bring what is there and not here, or other there than here.

        Raises:
            InputError: the store cannot be read, or a file there is not what the index says.
        """
        from pyarrow import fs

        try:
            found = self._system.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        except OSError as error:
            raise InputError("the object store cannot be read", file=self._address, got=first_line(error),
                             expected="an address that may be read and written") from None
        if not found and is_url(self._address):
            need_bucket(self._address)  # hours of work must not end before a misspelt one
        names = {f.path.removeprefix(self._root).lstrip("/"): f.size for f in found if f.is_file}
        if INDEX in names:
            wanted = self._there = self._files_of(self._read(INDEX))
        else:  # put there by other tools
            wanted = {n: {"bytes": size, "sha256": None} for n, size in names.items()}
        agreed = self._files_of(self._agreed.read_bytes()) if INDEX in names and self._agreed.is_file() else {}
        for name, expected in wanted.items():
            if any(part.startswith(".") for part in Path(name).parts) or Path(name).is_absolute():
                raise InputError("a name that is not one of ours", file=f"{self._address}/{name}")
            here = self._file(name)
            if here is None or not (here == expected or expected == agreed.get(name)
                                    or expected == {"bytes": here["bytes"], "sha256": None}):
                self.fetch(name, expected["sha256"])
        for name, before in agreed.items():
            if name not in wanted and self._file(name) == before:
                (self.folder / name).unlink()
        if INDEX in names:
            write_json(self._agreed, {"files": self._there})
        else:
            self._there = self._here()

    def _files_of(self, index: bytes) -> dict[str, dict[str, Any]]:
        try:
            return {str(n): {"bytes": int(f["bytes"]), "sha256": f["sha256"]}
                    for n, f in json.loads(index)["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("damaged index", file=f"{self._address}/{INDEX}", got=first_line(error),
                             expected="an index that recsys wrote; remove it to take the files as they are") from None

    def fetch(self, name: str, expected: str | None = None) -> None:
        """Bring one file here.

        Raises:
            InputError: it cannot be read, or its SHA-256 is not the expected one.
        """
        here, digest = self.folder / name, hashlib.sha256()
        here.parent.mkdir(parents=True, exist_ok=True)
        partial = here.with_name(f".{here.name}.{os.getpid()}.partial")
        try:
            with self._open(name) as source, partial.open("wb") as target:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    target.write(block)
            if expected not in (None, digest.hexdigest()):
                raise InputError("not what its index says: damaged, or being written by another run",
                                 file=f"{self._address}/{name}", got=digest.hexdigest(), expected=expected)
            os.replace(partial, here)
        finally:
            partial.unlink(missing_ok=True)

    def _open(self, name: str) -> Any:
        try:
            return self._system.open_input_stream(f"{self._root}/{name}")
        except OSError as error:
            raise InputError("cannot be read", file=f"{self._address}/{name}", got=first_line(error),
                             expected="what the index lists") from None

    def _read(self, name: str) -> bytes:
        with self._open(name) as source:
            return bytes(source.read())

    def push(self) -> bool:
        """Copy what is finished here and not there; returns whether there was anything.

        Raises:
            OSError: the store does not take it.
        """
        from pyarrow import fs

        files = self._here()
        if files == self._there:
            return False
        kept, old = {n: f for n, f in self._there.items() if files.get(n) == f}, set(self._there) - set(files)
        if kept != self._there:
            self._put_index(kept)
        for name, file in files.items():
            if name not in kept:
                self._put(name, (self.folder / name).read_bytes() if file["bytes"] < _BLOCK else None)
        self._put_index(files)
        for name in old:
            if self._system.get_file_info(f"{self._root}/{name}").type != fs.FileType.NotFound:
                self._system.delete_file(f"{self._root}/{name}")
        return True

    def _put_index(self, files: dict[str, dict[str, Any]]) -> None:
        self._put(INDEX, (json.dumps({"files": files}, indent=1) + "\n").encode())
        self._there = files
        write_json(self._agreed, {"files": files})

    def _file(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        return {"bytes": path.stat().st_size, "sha256": self._hash(name)} if path.is_file() else None

    def _here(self) -> dict[str, dict[str, Any]]:
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
                with contextlib.suppress(FileNotFoundError):  # a stage has just replaced its folder
                    file = self._file(name)
                    files |= {} if file is None else {name: file}
        return files

    def _put(self, name: str, data: bytes | None) -> None:
        with open_output(self._system, f"{self._root}/{name}") as target:
            if data is not None:
                target.write(data)
                return
            with (self.folder / name).open("rb") as source:
                while block := source.read(_BLOCK):
                    target.write(block)

    def _hash(self, name: str) -> str:
        path = self.folder / name
        state = path.stat()
        known = self._known.get(name)
        if known is None or known[:2] != (state.st_size, state.st_mtime_ns):
            with path.open("rb") as handle:
                known = (state.st_size, state.st_mtime_ns, hashlib.file_digest(handle, "sha256").hexdigest())
            self._known[name] = known
        return known[2]
