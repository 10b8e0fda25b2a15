from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Boosting on few rows: on a busy machine its threads wait for each other ten times as long as they work."""
    import sklearn.ensemble  # noqa: F401  # its OpenMP must be there to be limited

    with threadpool_limits(1, "openmp"):
        yield
