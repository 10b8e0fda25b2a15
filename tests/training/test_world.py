from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from recsys.errors import InputError
from recsys.training.world import LostRank, PeerError, World
from tests.ranks import run_ranks


def test_alone_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = World.from_environment("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    value = np.array([1.0, 2.0])
    summed = world.all_reduce_sum(value)
    np.testing.assert_array_equal(summed, value)
    summed[0] = 9
    assert value[0] == 1
    assert world.broadcast_bytes(b"x") == b"x"
    with world.together():
        world.barrier()
    assert not torch.distributed.is_initialized()


def _talk(world: World) -> dict:
    counts = world.all_reduce_sum(np.array([[world.rank + 1, 2**53 - 1]], np.int64))
    scalar = world.all_reduce_sum(np.array(0.5))
    tensor = torch.full((2,), 1.0 + world.rank)
    summed = world.all_reduce_sum(tensor)
    said = [world.broadcast_bytes(b if world.is_main else None) for b in (b"\x00one", b"", b"three")]
    world.barrier()
    return {"counts": counts.tolist(), "scalar": float(scalar), "summed": summed.tolist(), "kept": tensor.tolist(),
            "said": said}


def test_ranks_sum_and_hear_rank_zero() -> None:
    one, two = run_ranks(2, _talk)
    assert one["counts"] == two["counts"] == [[3, 2**54 - 2]]
    assert one["scalar"] == 1.0
    assert one["summed"] == two["summed"] == [3.0, 3.0]
    assert two["kept"] == [2.0, 2.0]
    assert one["said"] == two["said"] == [b"\x00one", b"", b"three"]


def _fail(world: World, how: str) -> tuple:
    try:
        with world.together():
            if how == "both" or (how == "input" and world.rank == 1):
                raise InputError("bad", column="x")
            if how == "killed" and world.rank == 1:
                raise KeyboardInterrupt  # ends below without a word
            world.all_reduce_sum(np.ones(1))
    except KeyboardInterrupt:
        world.close()
        return ("gone",)
    except (InputError, PeerError, LostRank) as error:
        world.close() if isinstance(error, InputError) else None
        return type(error).__name__, str(error), getattr(error, "exit_code", 1), getattr(error, "reported", False)
    return ("finished",)


def test_an_error_on_one_rank_ends_all_with_one_line() -> None:
    zero, one = run_ranks(2, _fail, "input")
    assert one == ("InputError", "column x: bad", 2, False)
    assert zero == ("PeerError", "column x: bad", 2, True)


def test_the_same_error_on_all_ranks_is_said_once() -> None:
    found = run_ranks(2, _fail, "both")
    assert sorted(f[0] for f in found) == ["InputError", "PeerError"]


def test_a_rank_that_vanishes_is_named_a_lost_rank() -> None:
    zero, one = run_ranks(2, _fail, "killed")
    assert one == ("gone",)
    assert zero[0] == "LostRank"
    assert "goes on from the last checkpoint" in zero[1]


def test_environment_of_torchrun_is_what_counts() -> None:
    found = run_ranks(2, _who)
    assert found == [(0, 2, 0, 2, True), (1, 2, 1, 2, False)]
    assert "RANK" not in os.environ


def _who(world: World) -> tuple:
    return world.rank, world.size, world.local_rank, world.local_size, world.is_main


def test_a_rank_ends_with_its_code_whatever_its_threads_are_at() -> None:
    """What is printed and left to ``atexit`` is done; threads that never end, as gloo's may be, are not waited for."""
    code = ("import atexit, threading, time\nfrom recsys.training.world import end_rank\n"
            "atexit.register(print, 'last')\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
            "print('first')\nend_rank(3)\n")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout.split()) == (3, ["first", "last"]), ended.stderr
