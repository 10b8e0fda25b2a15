from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluation.offpolicy import stream
from recsys.evaluation.offpolicy.stream import Misaligned, batches, column_hash


@given(st.lists(st.one_of(st.none(), st.text(max_size=12)), max_size=40))
def test_hash_depends_on_the_string_alone(values: list[str | None]):
    whole = pa.array([*values, "padding", ""], pa.string())
    code = column_hash(whole)
    assert (column_hash(pa.chunked_array([whole.slice(0, 1), whole.slice(1)])) == code).all()
    assert (column_hash(whole.slice(1)) == code[1:]).all()
    alike = {v or "": h for v, h in zip(whole.to_pylist(), code.tolist(), strict=True)}
    assert len(set(alike.values())) == len(alike)  # no collision among so few


def test_hash_spreads_evenly():
    code = column_hash(pa.array([f"user{k}" for k in range(60_000)])) % np.uint64(64)
    counts = np.bincount(code.astype(int), minlength=64)
    assert ((counts - 937.5) ** 2 / 937.5).sum() < 120  # chi-square of 63 degrees of freedom: p about 2e-5


def files(folder: Path, requests: int, order: np.ndarray | None = None) -> tuple[Path, Path]:
    """Requests of one to three slots, and candidates of each; policy rows carry further requests too."""
    rng = np.random.default_rng(requests)
    request, slot = zip(*[(f"r{r}", s) for r in range(requests) for s in range(rng.integers(1, 4))], strict=True)
    log = pa.table({"request_id": request, "slot": pa.array(slot, pa.int32())})
    target = [(f"r{r}", s, f"a{a}") for r in range(requests) for s in range(3) for a in range(rng.integers(1, 5))]
    target = target if order is None else [target[k] for k in rng.permutation(len(target))]
    policy = pa.table({"request_id": [t[0] for t in target], "slot": pa.array([t[1] for t in target], pa.int32()),
                       "ad_id": [t[2] for t in target]})
    pq.write_table(log, folder / "log.parquet")
    pq.write_table(policy, folder / "policy.parquet")
    return folder / "log.parquet", folder / "policy.parquet"


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("read", [1, 7, 64])
def test_every_row_once_with_all_of_its_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aligned: bool, read: int
):
    monkeypatch.setattr(stream, "WHOLE_ROWS", 5)
    monkeypatch.setattr(stream, "READ_ROWS", read)
    monkeypatch.setattr(stream, "BATCH_ROWS", 13)
    monkeypatch.setattr(stream, "PART_ROWS", 120)
    log, policy = files(tmp_path, 90, None if aligned else np.ones(1))
    wanted: dict[str, int] = {}
    for name in pq.read_table(policy)["request_id"].to_pylist():
        wanted[name] = wanted.get(name, 0) + 1
    seen, count = [], 0
    for rows, own in batches(log, policy, ["request_id", "slot"], ["request_id", "slot", "ad_id"], aligned):
        count += 1
        names = own["request_id"].to_pylist()
        for name in set(rows["request_id"].to_pylist()):
            assert names.count(name) == wanted[name]
        seen += list(zip(rows["request_id"].to_pylist(), rows["slot"].to_pylist(), strict=True))
    assert count > 1
    table = pq.read_table(log)
    assert sorted(seen) == sorted(zip(table["request_id"].to_pylist(), table["slot"].to_pylist(), strict=True))


def test_ids_of_other_types_are_compared_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq.write_table(pa.table({"request_id": [1, 2, 3]}), tmp_path / "log.parquet")
    pq.write_table(pa.table({"request_id": pa.array(["1", "2", "3"], pa.large_string())}), tmp_path / "policy.parquet")
    monkeypatch.setattr(stream, "WHOLE_ROWS", 1)
    for aligned in (True, False):
        (log, policy), = batches(tmp_path / "log.parquet", tmp_path / "policy.parquet", ["request_id"], ["request_id"],
                                 aligned)
        assert sorted(log["request_id"].to_pylist()) == sorted(policy["request_id"].to_pylist()) == ["1", "2", "3"]


def test_other_order_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, small in (("WHOLE_ROWS", 5), ("READ_ROWS", 20), ("BATCH_ROWS", 13), ("PART_ROWS", 100)):
        monkeypatch.setattr(stream, name, small)
    log, policy = files(tmp_path, 400, np.ones(1))
    with pytest.raises(Misaligned):
        list(batches(log, policy, ["request_id", "slot"], ["request_id", "slot", "ad_id"]))
