"""The processes that train one model together: who they are, and the few things that they say to each other.

``torchrun`` starts them and gives each a rank; alone, a process is a world of one and nothing here costs anything.
"""

from __future__ import annotations

import atexit
import datetime as dt
import errno
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from recsys.errors import InputError, RecsysError
from recsys.stage import Stage, run_stage

T = TypeVar("T", np.ndarray, torch.Tensor)

# Rank 0 may prepare data for hours while the others wait.
_PATIENCE = dt.timedelta(days=7)


class LostRank(OSError):
    """Another rank ended without a word: killed, out of memory, or its machine is gone."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "ended without a word (killed, out of memory, or its machine is gone); the "
                                           "same command goes on from the last checkpoint", "another rank")


class PeerError(RecsysError):
    """Another rank met an error that the user is meant to read; it has printed it.

    ``reported`` tells the command line to end without a line of its own.
    """

    reported = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class World:
    """One process among ``size``.

    Attributes:
        rank, size: number of this process, number of processes.
        device: where its tensors live.
        local_rank, local_size: the same within the machine.
    """

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0
    local_size: int = 1
    _store: Any = field(default=None, repr=False)
    _messages: int = field(default=0, repr=False)

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> World:
        """This process alone."""
        return cls(0, 1, torch.device(device))

    @classmethod
    def from_environment(cls, device: str = "auto") -> World:
        """The world that torchrun's variables describe (RANK, WORLD_SIZE, LOCAL_RANK, ...); alone without them.

        Joins the default process group: nccl between GPUs, gloo between CPUs.

        Raises:
            InputError: no such device, or fewer GPUs than ranks on this machine.
        """
        from recsys.models.bundle import pick_device

        size = int(os.environ.get("WORLD_SIZE", 1))
        at = pick_device(device)
        if size == 1:
            return cls.single(at)
        local, count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if at.type == "cuda":
            if torch.cuda.device_count() < count:
                raise InputError("more ranks than GPUs", column="--nproc-per-node", got=count,
                                 expected=f"at most {torch.cuda.device_count()}, or device cpu")
            at = torch.device("cuda", local)
            torch.cuda.set_device(at)
        store, rank, size = next(dist.rendezvous("env://", timeout=_PATIENCE))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if at.type == "cuda" else "gloo", store=dist.PrefixStore("group", store),
                                    rank=rank, world_size=size)
        # A name that only these processes know: an elastic restart finds what earlier ones left in the store.
        name = torch.frombuffer(bytearray(secrets.token_bytes(16)), dtype=torch.uint8).to(at)
        dist.broadcast(name, 0)
        return cls(rank, size, at, local, count, dist.PrefixStore(name.cpu().numpy().tobytes().hex(), store))

    def group(self) -> dist.ProcessGroup:
        """The process group of all ranks; a world of one makes one of its own where a backend asks for it."""
        if not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0,
                                    world_size=1)
        group = dist.group.WORLD
        assert group is not None
        return group

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0: the one that writes."""
        return self.rank == 0

    def all_reduce_sum(self, value: T) -> T:
        """Sum over ranks, in a new array or tensor of the same shape, dtype and device."""
        if self.size == 1:
            return value.copy() if isinstance(value, np.ndarray) else value.clone()
        if isinstance(value, np.ndarray):
            found = torch.from_numpy(np.array(value)).to(self.device)
            dist.all_reduce(found)
            return np.asarray(found.cpu().numpy()).reshape(value.shape)
        found = value.detach().to(self.device, copy=True)
        dist.all_reduce(found)
        return found.to(value.device)

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's bytes on every rank; others hand in None. They wait for rank 0 however long it works."""
        if self.size == 1:
            assert data is not None
            return data
        self._messages += 1
        key = f"message-{self._messages}"
        if self.is_main:
            assert data is not None
            self._store.set(key, str(len(data)))
        else:
            while not self._store.check([key]):
                self._raise_told()
                time.sleep(0.02)
        size = int(self._store.get(key))
        buffer = torch.frombuffer(bytearray(data or bytes(size) or b"\0"), dtype=torch.uint8).to(self.device)
        dist.broadcast(buffer, 0)
        return bytes(buffer.cpu().numpy().tobytes()[:size])

    def from_main(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns on rank 0, which alone runs it; JSON-able. Others wait, however long it takes."""
        return json.loads(self.broadcast_bytes(json.dumps(work()).encode() if self.is_main else None))

    def run_stage(self, name: str, out: Path, *, config: Mapping[str, Any], inputs: Mapping[str, str | Path],
                  build: Callable[[Stage], None]) -> None:
        """:func:`recsys.stage.run_stage` on rank 0, its ``build`` on all ranks in the same folder, which all must see.

        What other ranks put into ``stage.rows`` and ``stage.facts`` is not kept. Unfinished work is resumed.
        """
        told: list[Path] = []

        def on_main(stage: Stage) -> None:
            told.append(stage.folder)
            self.broadcast_bytes(str(stage.folder).encode())
            build(stage)
            self.barrier()  # nobody works in the folder any more when it gets its final name

        if self.is_main:
            run_stage(name, out, config=config, inputs=inputs, build=on_main, resume=True)
            if not told:
                self.broadcast_bytes(b"")
        elif folder := self.broadcast_bytes(None).decode():
            build(Stage(Path(folder)))
            self.barrier()
        self.barrier()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a piece of work that all ranks take part in; what ends one ends all, with one line.

        A rank's :class:`RecsysError` is told to the others, which raise :class:`PeerError` where they notice.

        Raises:
            LostRank: another rank ended without saying why.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except PeerError:
            raise
        except RecsysError as error:
            # The first rank to say it prints it: all ranks may have met the same error.
            if self._store.add("errors", 1) > 1:
                raise PeerError(str(error), error.exit_code) from error
            self._store.set("error", f"{error.exit_code} {error}")
            raise
        except RuntimeError as error:
            if not _is_connection(error):
                raise  # a fault of the program: its traceback is what helps
            until = time.monotonic() + 2  # the word may still be under way
            while time.monotonic() < until:
                self._raise_told()
                time.sleep(0.1)
            raise LostRank from error

    def _raise_told(self) -> None:
        """Raise the error that another rank has told."""
        if self._store.check(["error"]):
            code, _, line = self._store.get("error").decode().partition(" ")
            raise PeerError(line, int(code))

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def end_rank(code: int) -> NoReturn:
    """End this process, which was one of several ranks, with ``code``; everything that it wrote is on its way.

    Not by ``sys.exit``: gloo's threads let go of the last collective's tensors a moment after it is done, and one that
    does so while Python is being taken down aborts the process (pytorch/pytorch pull request 179291), which torchrun
    takes for a failed rank.
    """
    logging.shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(
        word in str(error).lower() for word in ("connection", "gloo", "nccl", "socket", "broken pipe"))
