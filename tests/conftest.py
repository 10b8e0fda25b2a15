"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first kernel is defined; tests run on CPUs
# Shared machines are noisy, so no deadline on the clock; fixed examples, so that a red run can be run again.
settings.register_profile("shared", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def data_home() -> Path:
    """The folder of small real data copies, named by RECSYS_DATA_HOME."""
    home = os.environ.get("RECSYS_DATA_HOME")
    if not home or not Path(home).is_dir():
        pytest.skip("RECSYS_DATA_HOME names no folder: tests on real published data need it (see data/README.md)")
    return Path(home)
