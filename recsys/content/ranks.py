"""Embedding by several processes that torchrun started, on one machine or many, over one store on a shared disk.

    torchrun --nproc-per-node 8 -m recsys embed work/ads --model /path/to/Llama-3.2-1B

Each rank embeds its own share into part files of the same store; rank 0 joins them when all are there. The part files
are all that the ranks have to do with each other, so a killed run goes on where it was, with any number of ranks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from recsys.errors import InputError
from recsys.log import log

T = TypeVar("T")
_POLL, _TELL = 0.5, 30.0  # seconds between looks at the disk, and between lines in the log


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started.

    Args:
        rank: number of this process, of ``world``.
        local: processes on this machine, which share its time and its processors.
    """

    rank: int = 0
    world: int = 1
    local: int = 1

    @staticmethod
    def of_environment() -> Ranks:
        """From RANK, WORLD_SIZE and LOCAL_WORLD_SIZE; a single process where torchrun did not start it.

        Raises:
            InputError: one of them is not a number, or they contradict each other.
        """
        names = {"rank": "RANK", "world": "WORLD_SIZE", "local": "LOCAL_WORLD_SIZE"}
        try:
            found = Ranks(**{k: int(os.environ[name]) for k, name in names.items() if name in os.environ})
        except ValueError as error:
            raise InputError("not a number", file="environment", column="RANK, WORLD_SIZE or LOCAL_WORLD_SIZE",
                             got=str(error), expected="what torchrun sets") from None
        if not 0 <= found.rank < found.world or not 1 <= found.local <= found.world:
            raise InputError("ranks contradict each other", file="environment", got=found,
                             expected="what torchrun sets")
        return found

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's items; the shares of all ranks are disjoint, cover the items and are alike in length."""
        return list(items[self.rank :: self.world])

    def wait(self, ready: Callable[[], T | None], what: str) -> T:
        """Look until ``ready`` gives something; torchrun ends the wait where another rank died."""
        began = told = time.monotonic()
        while (found := ready()) is None:
            if (now := time.monotonic()) - told > _TELL:
                told = now
                log.info("embed: rank %d of %d has waited %.0f s for %s", self.rank, self.world, now - began, what)
            time.sleep(_POLL)
        return found
