"""Several ranks on this machine: processes with gloo over the loopback, as torchrun would start them.

A fork server imports the heavy libraries once, so that a rank starts at once.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torchrec", "recsys.models.embeddings.sharded", "recsys.training.trainer"])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _rank(rank: int, size: int, port: int, to: Connection, function: Callable[..., Any], args: tuple) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    import torch

    from recsys.training.world import World

    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        world = World.from_environment("cpu")
        # Plain pickle: multiprocessing's own would hand tensors over in memory that ends with the process.
        to.send_bytes(pickle.dumps((True, function(world, *args))))
        world.close()
    except BaseException:
        to.send_bytes(pickle.dumps((False, traceback.format_exc())))


def run_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(world, *args)`` on ``size`` ranks; their results by rank. ``function`` must stand in a module."""
    port, ends, processes = free_port(), [], []
    for rank in range(size):
        here, there = CONTEXT.Pipe(duplex=False)
        processes.append(CONTEXT.Process(target=_rank, args=(rank, size, port, there, function, args), daemon=True))
        processes[-1].start()
        there.close()
        ends.append(here)
    found = []
    try:
        for rank, end in enumerate(ends):
            assert end.poll(240), f"rank {rank} says nothing"
            good, result = pickle.loads(end.recv_bytes())
            assert good, f"rank {rank}: {result}"
            found.append(result)
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    return found
