"""What is ranked for a request: the user's features, the eligible candidates, and the table that the model sees."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import RankingConfig
from recsys.errors import InputError
from recsys.features.dense import read_numbers
from recsys.log import log
from recsys.retrieval.retriever import Query, Retriever
from recsys.serving.ad_table import AdTable, as_filter
from recsys.serving.counts import Counts
from recsys.serving.pacing import Pacer
from recsys.serving.protocol import ScorerLike, score_rows
from recsys.serving.rank_requests import CONTEXT_TYPES, RankRequest
from recsys.serving.requests import warm_up_table
from recsys.serving.slates import Arm
from recsys.serving.user_store import UserStore, fallbacks, open_users


@dataclass(frozen=True)
class Inventory:
    """One version of the ads and the state of their budgets."""

    ads: AdTable
    pacer: Pacer | None


@dataclass(frozen=True)
class Prepared:
    """A request with its candidates, ready for the model.

    Attributes:
        table: the model's columns; K rows as if in the first slot, followed, where prices depend on the model's view of
            the later slots (VCG), by K rows a further slot.
        rows: int64[K], candidates in the ads table, ascending.
        side: one row: context and features of the user.
    """

    request: RankRequest
    arm: Arm
    inventory: Inventory
    rows: np.ndarray
    source: str
    user_known: bool
    side: pa.Table
    table: pa.Table
    ts: int


class CandidateSource:
    """Prepares requests; called from several threads at once.

    Args:
        config: ads, users, context, filters, retrieval, pacing.
        counts: where users without features and retrievals that found nothing are counted.
        retriever: proposes candidates; default: what ``config.retrieve`` says.
        served: the models of now: a version of the ads that lacks what they need is not taken.

    Raises:
        InputError: a file that is not what it should be.
    """

    def __init__(self, config: RankingConfig, counts: Counts, retriever: Retriever | None = None,
                 served: Callable[[], list[ScorerLike]] = list) -> None:
        self._config, self._counts, self._served = config, counts, served
        self.users: UserStore | None = None if config.users is None else open_users(config.users)
        self._fallback = {} if config.users is None or self.users is None else fallbacks(
            config.users, self.users.schema)
        self._seen = _signature(config.ads)
        self.inventory = self._read_ads(None)
        self._retriever = retriever or _retriever(config, self.inventory.ads)
        self._checked: dict[int, tuple[ScorerLike, AdTable, list[tuple[str, str]]]] = {}

    def refresh(self) -> bool:
        """Read the ads again if their file is another; requests in flight keep the version they have.

        Returns:
            Whether it was.

        Raises:
            InputError: the new table is not what it should be; the old one goes on being served.
        """
        seen = _signature(self._config.ads)
        if seen == self._seen:
            return False
        self._seen = seen  # a damaged file is complained of once
        read = self._read_ads(self.inventory)
        for scorer in self._served():
            self.sources(scorer, read.ads)
        self.inventory = read
        self._counts.add(ads_read=1)
        return True

    def watch(self, ending: threading.Event) -> None:
        """Call :meth:`refresh` now and then, until told to end."""
        while not ending.wait(self._config.ads_poll_seconds):
            try:
                self.refresh()
            except (InputError, OSError) as error:
                self._counts.add(ads_refused=1)
                log.error("the ads stay as they are: %s", error)

    def prepare(self, request: RankRequest, arm: Arm, scorer: ScorerLike, now: int) -> Prepared:
        """As :meth:`recsys.serving.ranking.Ranking.prepare`."""
        inventory = self.inventory
        sources = self.sources(scorer, inventory.ads)
        side, known = self.side(request)
        rows, source, _ = self.candidates(inventory.ads, request, side, self._config.retrieve.k)
        slots = request.k if arm.policy.mechanism == "vcg" and ("slot", "request") in sources else 1
        table = self._table(inventory.ads, request, side, rows, sources, slots)
        return Prepared(request, arm, inventory, rows, source, known, side, table,
                        now if request.ts is None else request.ts)

    def sources(self, scorer: ScorerLike, ads: AdTable | None = None) -> list[tuple[str, str]]:
        """(column, request | context | ad | user) of everything that the model needs.

        Args:
            scorer: the model.
            ads: that it is to rank; default: those of now.

        Raises:
            InputError: a column that nothing brings, or whose values the model cannot take.
        """
        ads = ads or self.inventory.ads
        held = self._checked.get(id(scorer))
        if held is not None and held[0] is scorer and held[1] is ads:
            return held[2]
        users = [] if self.users is None else self.users.schema.names
        made = []
        for name in scorer.columns:
            places = [place for place, names in (
                ("request", ("user_id", "surface", "slot")), ("context", self._config.context),
                ("ad", ads.columns), ("user", users)) if name in names]
            if len(places) != 1 and places[:1] != ["request"]:
                raise InputError("a column of the model that " + ("several bring" if places else "nothing brings"),
                                 file=scorer.model_id, column=name, got=places or None,
                                 expected="one of: the ads table, the users, the configuration's context")
            made.append((name, places[0]))
        self._check(scorer, ads, dict(made))
        self._checked = {**dict(list(self._checked.items())[-16:]), id(scorer): (scorer, ads, made)}
        return made

    def _check(self, scorer: ScorerLike, ads: AdTable, sources: dict[str, str]) -> None:
        """That the model can take the ads, and a user whom nobody knows: found out now, not by a request."""
        one = warm_up_table(kinds := scorer.kinds)
        for name, place in sources.items():
            if place == "ad":
                column = ads.table[name]
                if kinds[name] == "number":
                    read_numbers(ads.table, name, ads.file, 0)
                elif kinds[name] == "row" and column.null_count:
                    raise InputError("null id", file=ads.file, column=name, got="null",
                                     row=pc.index(pc.is_null(column), True).as_py(), expected="a row of its table")
                value = column.slice(0, 1)
            elif place == "user" and self.users is not None:
                kind = self.users.schema.field(name).type
                value = pa.array([self._fallback.get(name, pa.scalar(None, kind)).as_py()], kind)
            else:
                continue
            one = one.set_column(one.column_names.index(name), name, value)
        try:
            score_rows(scorer, one)
        except InputError as error:
            if sources.get(str(error.column)) != "user":
                raise InputError(error.message, file=ads.file, column=error.column, got=error.got,
                                 expected=error.expected) from None
            raise InputError(f"a user who is not known cannot be scored: {error.message}", file=scorer.model_id,
                             column=error.column, got=error.got,
                             expected=f"users.fallback of that column: {error.expected}") from None

    def side(self, request: RankRequest) -> tuple[pa.Table, bool]:
        """One row of context and features of the user, and whether the user is known."""
        columns: dict[str, Any] = {name: pa.array([request.context[name]], CONTEXT_TYPES[kind])
                                   for name, kind in self._config.context.items()}
        known = False
        if self.users is not None:
            user, found = self.users.get_many([request.user_id])
            known = bool(found[0])
            self._counts.add(users_unknown=int(not known))
            columns |= {name: user[name] for name in user.column_names}
            columns |= {name: columns[name].fill_null(value) for name, value in self._fallback.items()
                        if columns[name].null_count}
        return pa.table(columns), known

    def candidates(self, ads: AdTable, request: RankRequest, side: pa.Table,
                    k: int) -> tuple[np.ndarray, str, np.ndarray]:
        """Rows of eligible candidates, where they are from, and scores to order them by."""
        where = ads.where({**request.context, "surface": request.surface}, request.where)
        mask = ads.eligible(where)
        if request.candidates is not None:
            rows = ads.rows_of(request.candidates)
            if (rows < 0).any():
                raise InputError("no such ad", file="request", column="candidates",
                                 got=request.candidates[int(np.argmax(rows < 0))], expected="ads of the ads table")
            rows = np.sort(rows[mask[rows]])
            return rows, "request", np.zeros(len(rows))
        if self._retriever is not None:
            features = side.to_pylist()[0] if side.num_columns else {}
            found = self._retriever.retrieve(Query(request.user_id, features, request.surface), k, as_filter(where))
            rows = ads.rows_of(found.ad_ids)
            kept = (rows >= 0) & mask[np.maximum(rows, 0)]
            if kept.any():
                order = np.argsort(rows[kept], kind="stable")
                return rows[kept][order], found.source, np.asarray(found.scores, np.float64)[kept][order]
            self._counts.add(retrieved_nothing=1)
        rows = ads.best(mask, k)
        return rows, "all", np.zeros(len(rows)) if ads.bid is None else ads.bid[rows]

    def _table(self, ads: AdTable, request: RankRequest, side: pa.Table, rows: np.ndarray,
               sources: list[tuple[str, str]], slots: int) -> pa.Table:
        n = len(rows) * slots
        of_ads = [name for name, place in sources if place == "ad"]
        taken = iter(ads.table.select(of_ads).take(pa.array(np.tile(rows, slots))).columns)
        columns: dict[str, Any] = {}
        for name, place in sources:
            if place == "ad":
                columns[name] = next(taken)
            elif name == "slot":
                columns[name] = pa.array(np.repeat(np.arange(slots, dtype=np.int32), len(rows)))
            elif place == "request":
                columns[name] = pa.repeat(pa.scalar(getattr(request, name), pa.string()), n)
            else:
                columns[name] = repeated(side[name], n)
        return pa.table(columns)

    def _read_ads(self, before: Inventory | None) -> Inventory:
        arms = self._config.experiment.arms.values() if self._config.experiment else ()
        policies = [self._config.policy, *(a.policy for a in arms if a.policy is not None)]
        ads = AdTable(self._config.ads, self._config.filters, min(p.reserve for p in policies))
        if self._config.pacing is None:
            return Inventory(ads, None)
        pacer = Pacer(ads.budget, self._config.pacing)
        if before is not None and before.pacer is not None:
            pacer.carry_over(before.pacer, before.ads.rows_of(ads.ids))
        return Inventory(ads, pacer)


def repeated(column: pa.ChunkedArray, n: int) -> pa.Array:
    """The one value of a column, n times."""
    if pa.types.is_nested(column.type) or pa.types.is_dictionary(column.type):
        return column.combine_chunks().take(pa.array(np.zeros(n, np.int64)))
    return pa.repeat(column[0], n)


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _retriever(config: RankingConfig, ads: AdTable) -> Retriever | None:
    r = config.retrieve
    if r.towers is not None:
        from recsys.serving.two_tower import TwoTowerRetriever

        return TwoTowerRetriever.load(r.towers)
    if r.index is None or r.content is None:
        return None
    from recsys.content.vectors import for_ads, load_vectors
    from recsys.retrieval import LiveIndex
    from recsys.retrieval.retriever import HistoryRetriever

    return cast(Retriever, HistoryRetriever(LiveIndex(r.index), for_ads(load_vectors(r.content), ads.table),
                                            r.history, r.latest))
