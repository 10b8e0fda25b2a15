from __future__ import annotations

import pytest
import torch
from recsys.kernels import dispatch

from recsys.errors import InputError


def test_a_cpu_gets_triton_only_where_asked_for_and_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2)
    assert not dispatch.uses_triton("auto", x)
    assert not dispatch.uses_triton("reference", x)
    assert dispatch.uses_triton("triton", x)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match="Triton kernels cannot run here"):
        dispatch.uses_triton("triton", x)


def test_without_the_package_or_for_double_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="float64"):
        dispatch.uses_triton("triton", torch.zeros(2, dtype=torch.float64))
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert not dispatch.uses_triton("auto", torch.zeros(2, device="meta"))
    with pytest.raises(InputError, match="package triton"):
        dispatch.uses_triton("triton", torch.zeros(2))


def test_an_unknown_choice_is_an_error() -> None:
    with pytest.raises(InputError, match="no such kernels"):
        dispatch.uses_triton("cuda", torch.zeros(2))
