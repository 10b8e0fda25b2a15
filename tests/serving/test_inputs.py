from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.serving.inputs import RowReader, plan_shards, read_inputs


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 200), group=st.integers(1, 70), shard=st.integers(1, 90), batch=st.integers(1, 50),
       data=st.data())
def test_shards_cover_every_row_once_in_batches_that_do_not_move(tmp_path: Path, rows: int, group: int, shard: int,
                                                                 batch: int, data: st.DataObject) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"n": range(rows)}), path, row_group_size=group)
    shards = plan_shards(read_inputs([path]), shard)
    assert [n for s in shards for n in range(s.start, s.stop)] == list(range(rows))
    skipped = data.draw(st.sets(st.sampled_from(shards)))
    whole, resumed = RowReader(path, ["n"], batch), RowReader(path, ["n"], batch)
    for s in shards:
        batches = [t["n"].to_pylist() for t in whole.read(s.start, s.stop)]
        assert [n for b in batches for n in b] == list(range(s.start, s.stop))
        if s not in skipped:
            assert [t["n"].to_pylist() for t in resumed.read(s.start, s.stop)] == batches
