from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from recsys.content import ContentVectors
from recsys.errors import InputError
from recsys.retrieval import Index, build_index, rollback
from recsys.retrieval.versions import current


def vectors(seed: int, n: int = 200) -> ContentVectors:
    return ContentVectors([f"v{seed}-{i}" for i in range(n)],
                          np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32), {})


def seed_of(index: Index) -> str:
    return index.ads["ad_id"][0].as_py().split("-")[0]


def test_publish_keeps_the_previous_version_and_rolls_back(tmp_path):
    folder = tmp_path / "index"
    for seed in range(4):
        build_index(vectors(seed), folder)
        assert seed_of(Index.open(folder)) == f"v{seed}"
    assert len([p for p in folder.iterdir() if p.is_dir()]) == 2
    assert rollback(folder) == current(folder)["version"]
    assert seed_of(Index.open(folder)) == "v2"
    rollback(folder)
    assert seed_of(Index.open(folder)) == "v3"


def test_nothing_to_go_back_to(tmp_path):
    with pytest.raises(InputError, match="not an index"):
        rollback(tmp_path / "index")
    build_index(vectors(0), tmp_path / "index")
    with pytest.raises(InputError, match="no previous"):
        rollback(tmp_path / "index")


def test_a_previous_version_that_was_tampered_with_is_refused_after_rollback(tmp_path):
    folder = tmp_path / "index"
    build_index(vectors(0), folder)
    manifest = Index.open(folder).folder / "manifest.json"
    build_index(vectors(1), folder)
    manifest.write_text(manifest.read_text() + " ")
    rollback(folder)
    with pytest.raises(InputError, match="tampered"):
        Index.open(folder)


def test_an_open_index_outlives_its_folder(tmp_path):
    build_index(vectors(0), tmp_path / "index")
    index = Index.open(tmp_path / "index")
    for seed in (1, 2):
        build_index(vectors(seed), tmp_path / "index")
    assert not index.folder.exists()
    assert index.search(np.ones((1, 16)), 3)[0].shape == (1, 3)


PUBLISH = """
import sys, itertools
import numpy as np
from recsys.content import ContentVectors
from recsys.retrieval import build_index
for seed in itertools.count(int(sys.argv[2])):
    matrix = np.random.default_rng(seed).normal(size=(200, 16)).astype(np.float32)
    build_index(ContentVectors([f"v{seed}-{i}" for i in range(200)], matrix, {}), sys.argv[1])
    print(seed, flush=True)
"""


@pytest.mark.slow
def test_kill_while_publishing_leaves_a_version_that_opens(tmp_path):
    folder = tmp_path / "index"
    build_index(vectors(0), folder)
    rng, done = np.random.default_rng(0), 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", PUBLISH, str(folder), str(done + 1)], stdout=subprocess.PIPE,
                                 text=True)
        done = int(child.stdout.readline())
        time.sleep(rng.uniform(0, 0.3))
        os.kill(child.pid, signal.SIGKILL)
        done = max([done, *map(int, child.stdout.read().split())])
        child.wait()
        assert int(seed_of(Index.open(folder)).removeprefix("v")) in (done, done + 1)
