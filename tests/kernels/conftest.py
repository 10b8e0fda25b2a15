"""Triton's interpreter, for small tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest


@pytest.fixture(autouse=True, scope="package")
def _indices_are_not_checked_for_overflow() -> Iterator[None]:
    """Half of the interpreter's time goes into this, and no index of these tests comes near 2^31."""
    from triton.runtime.interpreter import interpreter_builder

    options = interpreter_builder.options
    interpreter_builder.options = replace(options, sanitize_overflow=False)
    yield
    interpreter_builder.options = options
