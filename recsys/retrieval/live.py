"""An index that takes updates while it is searched: immutable main index + flat delta + tombstones, and compaction.

Writers make a new snapshot and replace the old one by one assignment; a search takes the snapshot it finds and never
waits. Updates live in memory until :meth:`LiveIndex.compact` publishes them as a new version.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.config import IndexConfig
from recsys.errors import InputError
from recsys.retrieval.engine import Allowed
from recsys.retrieval.filters import Where, rows_where
from recsys.retrieval.index import Index, check_ids, check_k, write_index
from recsys.retrieval.versions import current


@dataclass(frozen=True)
class Snapshot:
    """What one search sees. ``delta`` is a view of a buffer that grows behind it, never inside it."""

    main: Index
    alive: np.ndarray  # bool [N]: main rows that were not deleted or replaced
    delta: np.ndarray  # float32 [m, dim]
    delta_alive: np.ndarray  # bool [m]
    ads: pa.Table  # the delta's ads, as main.ads
    _allowed: dict[str, tuple[Allowed | None, np.ndarray]] = field(default_factory=dict)

    def allowed(self, where: Where) -> tuple[Allowed | None, np.ndarray]:
        """Main rows that a search may return, and rows of the delta, int64."""
        key = str(where)
        if (found := self._allowed.get(key)) is None:
            main, late = self.alive, self.delta_alive
            if (chosen := self.main.allowed(where)) is not None:
                main, late = main & chosen.mask, late & rows_where(self.ads, where)
            found = self._allowed[key] = (None if main.all() else Allowed(main), np.flatnonzero(late))
        return found

    def search(self, queries: np.ndarray, k: int, where: Where = None) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`recsys.retrieval.index.Index.search`."""
        check_k(k)
        unit = self.main.unit(queries)
        allowed, late = self.allowed(where)
        rows, scores = self.main.engine.nearest(unit, k, allowed)
        ids = self.main.names(rows)
        if len(late):
            # Of a long delta only what is found is touched: its other names and vectors are neither copied nor sorted.
            more = (unit @ self.delta.T)[:, late]
            top = np.argpartition(-more, k - 1, axis=1)[:, :k] if k < len(late) else np.tile(
                np.arange(len(late)), (len(unit), 1))
            names = self.ads["ad_id"].take(pa.array(late[top].ravel())).to_numpy(zero_copy_only=False)
            ids = np.concatenate([ids, names.reshape(top.shape)], axis=1)
            scores = np.concatenate([scores, np.take_along_axis(more, top, 1)], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            ids, scores = np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)
        return ids, scores

    def content(self) -> tuple[pa.Table, np.ndarray]:
        """All living ads and their vectors, main first."""
        table = pa.concat_tables([self.main.ads.filter(pa.array(self.alive)),
                                  self.ads.filter(pa.array(self.delta_alive))]).combine_chunks()
        return table, np.concatenate([self.main.vectors()[self.alive], self.delta[self.delta_alive]])


class LiveIndex:
    """A served index. One process writes; any number of threads search, and none of them ever waits for a writer."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._write = threading.RLock()
        self._compacting = threading.Lock()
        self._log: list[tuple[Any, ...]] | None = None
        self._start(Index.open(folder))

    def _start(self, main: Index) -> None:
        self._buffer = np.empty((1024, main.transform.dim), np.float32)
        self._where = {key: row for row, key in enumerate(main.ads["ad_id"].to_pylist())}  # delta row r is -1 - r
        self._snapshot = Snapshot(main, np.ones(len(main), bool), self._buffer[:0], np.ones(0, bool),
                                  main.ads.slice(0, 0))

    @property
    def snapshot(self) -> Snapshot:
        """What a search that starts now sees."""
        return self._snapshot

    def __len__(self) -> int:
        return len(self._where)

    def search(self, queries: np.ndarray, k: int, where: Where = None) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`recsys.retrieval.index.Index.search`, over all updates that were finished when it began."""
        return self._snapshot.search(queries, k, where)

    def upsert(self, ads: pa.Table | Sequence[str], vectors: np.ndarray) -> None:
        """Add ads, or replace those whose ad_id is there.

        Args:
            ads: ad_ids, or a table with ``ad_id`` and the index's columns to filter on (one that is missing is null,
                and passes no filter).
            vectors: float [n, d], as the encoder gives them.

        Raises:
            InputError: no rows, an id twice, vectors that do not fit; nothing was changed.
        """
        table = self._fit(ads if isinstance(ads, pa.Table) else pa.table({"ad_id": pa.array(ads, pa.string())}))
        unit = self._snapshot.main.unit(vectors)
        if len(unit) != table.num_rows:
            raise InputError("another number of vectors than of ads", got=len(unit), expected=str(table.num_rows))
        with self._write:
            self._put(table, unit)
            if self._log is not None:
                self._log.append(("put", table, unit))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete ads; unknown ids are passed over. Returns how many were there."""
        with self._write:
            known = [key for key in dict.fromkeys(ids) if key in self._where]
            self._snapshot = self._without(known)
            for key in known:
                del self._where[key]
            if self._log is not None:
                self._log.append(("delete", known))
        return len(known)

    def _fit(self, table: pa.Table) -> pa.Table:
        check_ids(table["ad_id"].to_pylist())
        schema = self._snapshot.main.ads.schema
        columns = [table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(table.num_rows, f.type)
                   for f in schema]
        return pa.table(columns, names=schema.names)

    def _without(self, ids: Sequence[str]) -> Snapshot:
        at = np.array([self._where[key] for key in ids if key in self._where], np.int64)
        alive, late = self._snapshot.alive, self._snapshot.delta_alive
        if (main := at[at >= 0]).size:
            alive = alive.copy()
            alive[main] = False
        if (gone := -1 - at[at < 0]).size:
            late = late.copy()
            late[gone] = False
        return replace(self._snapshot, alive=alive, delta_alive=late, _allowed={})

    def _put(self, table: pa.Table, unit: np.ndarray) -> None:
        ids = table["ad_id"].to_pylist()
        before = self._without(ids)
        start, end = len(before.delta), len(before.delta) + len(unit)
        if end > len(self._buffer):
            grown = np.empty((max(end, 2 * len(self._buffer)), self._buffer.shape[1]), np.float32)
            grown[:start] = self._buffer[:start]
            self._buffer = grown
        self._buffer[start:end] = unit  # no snapshot reaches here yet
        ads = pa.concat_tables([before.ads, table])
        self._snapshot = replace(before, delta=self._buffer[:end], ads=ads if ads["ad_id"].num_chunks < 64 else
                                 ads.combine_chunks(), _allowed={},
                                 delta_alive=np.concatenate([before.delta_alive, np.ones(len(unit), bool)]))
        self._where.update({key: -1 - row for row, key in enumerate(ids, start)})

    def compact(self, config: IndexConfig | None = None) -> dict[str, Any]:
        """Publish all living ads as a new version and serve it; updates that come meanwhile are carried over.

        Args:
            config: of the new version; None: as the current one was built.

        Returns:
            The new version's manifest.
        """
        with self._compacting:
            with self._write:
                begun, self._log = self._snapshot, []
            facts = begun.main.manifest["facts"]
            try:
                table, unit = begun.content()
                manifest = write_index(self.folder, table, unit, begun.main.transform, facts["origin"],
                                       config or IndexConfig(**facts["config"]))
                self._swap(Index.open(self.folder))
            finally:
                self._log = None
        return manifest

    def _swap(self, main: Index) -> None:
        behind = LiveIndex.__new__(LiveIndex)  # replayed out of sight, so that no search sees a state that never was
        behind._write, behind._log = threading.RLock(), None
        behind._start(main)
        with self._write:
            for entry in self._log or ():
                if entry[0] == "put":
                    behind._put(*entry[1:])
                else:
                    behind.delete(entry[1])
            self._buffer, self._where, self._snapshot = behind._buffer, behind._where, behind._snapshot

    def refresh(self) -> bool:
        """Serve the folder's current version, if another process published or rolled back; True if it changed.

        Raises:
            InputError: this index holds updates that are not compacted and would be lost, or the version is damaged;
                the version served so far goes on.
        """
        with self._compacting, self._write:
            served = current(self.folder)
            if served is not None and served["version"] == self._snapshot.main.folder.name:
                return False
            if len(self._snapshot.delta) or not self._snapshot.alive.all():
                raise InputError("updates since the last compaction would be lost", file=self.folder,
                                 expected="compact() first, or write in one process only")
            self._swap(Index.open(self.folder))
            return True
