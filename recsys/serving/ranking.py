"""Which ads are shown: retrieve, rank, explore, price, and write down with which probability.

    with Ranking.load("ranking.yaml") as ranking:
        decision = ranking.rank({"user_id": "u7", "surface": "feed", "k": 2})
        decision.answer()["ads"]
        ranking.feedback({"events": [{"impression_id": ..., "kind": "click"}]})

A request is decided in three steps, so that a service can run the middle one batched with other requests:
:meth:`Ranking.prepare` (user, candidates, the table for the model), the model, :meth:`Ranking.finish` (slate, prices,
log). A decision that cannot be logged is not made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.auction import slot_prices
from recsys.config import RankingConfig, ServedPolicyConfig, parse_model, read_yaml
from recsys.errors import InputError, RecsysError
from recsys.retrieval.retriever import Retriever
from recsys.serving.arms import assign_arm, register_experiment
from recsys.serving.candidates import CandidateSource, Prepared, repeated
from recsys.serving.counts import Counts
from recsys.serving.exploration import Slate, decision_seed, draw, ranking_scores
from recsys.serving.feedback import feedback_batch
from recsys.serving.protocol import ScorerLike, load_scorer, score_rows
from recsys.serving.rank_requests import RankRequest, parse_feedback, parse_rank
from recsys.serving.served_log import ServedLog
from recsys.serving.slates import Arm, Decision
from recsys.stage import sha256_json

_SMALLEST = 1e-12
Models = Callable[[str | None], ScorerLike]
"""The scorer of a model's name (None: the service's) as it is now."""


class Ranking:
    """Decides requests; called from several threads at once.

    Args:
        config: everything but the models.
        models: gives scorers by name; default: model folders, each loaded once.
        retriever: proposes candidates; default: what ``config.retrieve`` says.
        clock: microseconds since 1970.

    Attributes:
        counts: ``requests``; of these ``empty``, without any eligible ad, ``users_unknown``, without the user's
            features, and ``retrieved_nothing``, where the retriever had no candidate; events of ``feedback``;
            versions of the ads ``ads_read`` or ``ads_refused``.

    Raises:
        InputError: a file that is not what it should be, or a column of the model that nothing brings.
        Refused: the experiment was registered with another rule.
    """

    def __init__(self, config: RankingConfig, models: Models | None = None, retriever: Retriever | None = None,
                 clock: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self.config, self.counts, self._clock = config, Counts(), clock
        self._models, self._deciding = models or _folders(), threading.Lock()
        self._source = CandidateSource(config, self.counts, retriever, self._served)
        self._ending = threading.Event()
        self._policy_ids: dict[tuple[str | None, str], str] = {}
        self._default = Arm(None, None, config.model, config.policy)
        for arm in self.arms:
            self.check(self._models(arm.model))
        self.log = self.feedback_log = None
        if config.log is not None:
            state = config.log.state or Path(config.log.folder) / "_state"
            if config.experiment is not None:
                register_experiment(config.experiment, state)
            self.log, self.feedback_log = ServedLog("impressions", config.log), ServedLog("feedback", config.log)

        if config.ads_poll_seconds:
            threading.Thread(target=self._source.watch, args=(self._ending,), name="ads", daemon=True).start()

    @classmethod
    def load(cls, path: str | Path, models: Models | None = None) -> Ranking:
        """From a YAML file of :class:`recsys.config.RankingConfig`."""
        return cls(parse_model(RankingConfig, read_yaml(Path(path)), path), models)

    def __enter__(self) -> Ranking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> bool:
        """Publish what was logged; whether all of it could be."""
        self._ending.set()
        return not [log for log in (self.log, self.feedback_log) if log is not None and not log.close()]

    @cached_property
    def arms(self) -> list[Arm]:
        """The default policy, and those of the experiment's arms."""
        e = self.config.experiment
        return [self._default, *(() if e is None else (
            Arm(e.id, name, a.model or self.config.model, a.policy or self.config.policy)
            for name, a in sorted(e.arms.items())))]

    def check(self, scorer: ScorerLike) -> None:
        """Refuse a model that cannot rank here.

        Raises:
            InputError: a column that nothing brings, or whose values it cannot take.
        """
        self._source.sources(scorer)

    def _served(self) -> list[ScorerLike]:
        found = []
        for name in {arm.model for arm in self.arms}:
            with suppress(RecsysError, LookupError):  # one that is not loaded just now
                found.append(self._models(name))
        return found

    @property
    def followed(self) -> dict[str, Counts]:
        """All counts of this process, by what they are of: ``ranking``, ``users``, ``impressions``, ``feedback``."""
        logs = {log.name: log.counts for log in (self.log, self.feedback_log) if log is not None}
        users = {} if self._source.users is None else {"users": self._source.users.counts}
        return {"ranking": self.counts, **users, **logs}

    def parse(self, body: bytes | Mapping[str, Any], most: int | None = None) -> RankRequest:
        """A request from JSON; ``most`` is its largest ``k``."""
        return parse_rank(body, self.config.context, most or self.config.max_slots)

    def arm_of(self, request: RankRequest) -> Arm:
        """The arm that the request's unit belongs to; outside of an experiment, or without a unit, the default."""
        experiment = self.config.experiment
        unit = None if experiment is None else getattr(request, experiment.unit)
        if experiment is None or unit is None:
            return self._default
        name = assign_arm(experiment, unit)
        return next(arm for arm in self.arms if arm.arm_id == name)

    def rank(self, request: RankRequest | Mapping[str, Any] | bytes) -> Decision:
        """Decide a request.

        Raises:
            InputError: a malformed request, or features that the model cannot take.
            LogFull: the decision could not be logged, so it was not made.
        """
        request = request if isinstance(request, RankRequest) else self.parse(request)
        arm = self.arm_of(request)
        scorer = self._models(arm.model)
        prepared = self.prepare(request, arm, scorer)
        return self.finish(prepared, scorer.model_id, score_rows(scorer, prepared.table) if len(prepared.rows) else {})

    def prepare(self, request: RankRequest, arm: Arm, scorer: ScorerLike) -> Prepared:
        """Everything before the model: the user's features, eligible candidates, and their table.

        Raises:
            InputError: an unknown candidate, a filter that does not fit, a scorer whose columns nothing brings.
        """
        self.counts.add(requests=1)
        return self._source.prepare(request, arm, scorer, self._clock())

    def finish(self, prepared: Prepared, model_id: str, heads: Mapping[str, np.ndarray]) -> Decision:
        """Everything after the model: slate, propensities, prices, log, budgets.

        Args:
            prepared: of :meth:`prepare`.
            model_id: of the scorer.
            heads: head -> float64 [rows of the table] probabilities.

        Raises:
            LogFull: it could not be logged, so it was not made.
        """
        pacer = prepared.inventory.pacer
        # Where money is limited, what one decision charges must be seen by the next.
        with nullcontext() if pacer is None else self._deciding:
            decision, charges = self._decide(prepared, model_id, heads)
            if not len(decision.slate.position):
                self.counts.add(empty=1)
                return decision
            if self.log is not None:
                self.log.append(self._log_rows(prepared, decision))
            if charges is not None and pacer is not None:
                pacer.charge(decision.rows[decision.slate.position], charges)
            return decision

    def retrieve(self, request: RankRequest | Mapping[str, Any] | bytes) -> dict[str, Any]:
        """The body of ``/v1/retrieve``: candidates that may be shown, best first, without ranking them.

        Raises:
            InputError: a malformed request.
        """
        request = request if isinstance(request, RankRequest) else self.parse(request, 10_000)
        ads = self._source.inventory.ads
        side, known = self._source.side(request)
        rows, source, scores = self._source.candidates(ads, request, side, request.k)
        order = np.argsort(-scores, kind="stable")
        ids = [ads.ids[row] for row in rows[order].tolist()]
        return {"request_id": request.request_id, "user_known": known, "source": source,
                "ads": [{"ad_id": ad, "score": float(s)} for ad, s in zip(ids, scores[order], strict=True)]}

    def feedback(self, body: bytes | Mapping[str, Any]) -> int:
        """Log what came of impressions; returns how many events.

        Raises:
            InputError: a malformed event, or a service without a log.
            LogFull: none of them was logged.
        """
        events = parse_feedback(body)
        self.log_feedback(events)
        return len(events)

    def log_feedback(self, events: list[dict[str, Any]]) -> None:
        """Log what :func:`parse_feedback` has made; raises as :meth:`feedback` does."""
        if self.feedback_log is None:
            raise InputError("feedback is not logged here", file="log", expected="a ranking configuration with log")
        self.feedback_log.append(feedback_batch(events))
        self.counts.add(feedback=len(events))

    def refresh(self) -> bool:
        """Read the ads again if their file is another; whether it was (:meth:`CandidateSource.refresh`).

        Budgets keep what was spent of them.
        """
        return self._source.refresh()

    def _decide(self, prepared: Prepared, model_id: str,
                heads: Mapping[str, np.ndarray]) -> tuple[Decision, np.ndarray | None]:
        policy, request, ads = prepared.arm.policy, prepared.request, prepared.inventory.ads
        rows, k = prepared.rows, len(prepared.rows)
        weighed = {h: w for h, w in policy.heads.items() if h in heads}
        if k and not any(weighed.values()):
            raise InputError("the model has none of the heads that the policy weighs", file=model_id,
                             got=sorted(heads), expected=", ".join(policy.heads))
        rates = sum((w * heads[h] for h, w in weighed.items()), np.zeros(prepared.table.num_rows))
        rate = np.maximum(rates[:k], _SMALLEST)
        bids, live = None, np.ones(k, bool)
        if ads.bid is not None:
            bids = ads.bid[rows]
            if prepared.inventory.pacer is not None:
                bids, live = prepared.inventory.pacer.enter(rows, bids, rate)
            live &= bids >= policy.reserve
        kept = np.flatnonzero(live)
        scores = ranking_scores(rate[kept], None if bids is None else bids[kept], policy.bid_exponent)
        order = np.argsort(-scores, kind="stable")
        top = order[: max(policy.depth, request.k)]
        slots, seed = min(request.k, len(top)), decision_seed(request.request_id)
        slate = draw(scores[top], slots, policy, seed) if slots else Slate(
            np.empty(0, np.int64), np.empty(0), np.empty(0))
        final, shown = kept[top], kept[top][slate.position]
        prices = charges = None
        if bids is not None and slots:
            rivals = kept[order]  # prices know all that take part, not only those that compete for the slots
            views = np.minimum.accumulate(rates.reshape(-1, k)[:slots][:, rivals], axis=0)
            position = np.broadcast_to(views, (slots, len(rivals)))[None]
            priced = slot_prices(bids[rivals][None], rate[rivals][None], slots, mechanism=policy.mechanism,
                                 bid_exponent=policy.bid_exponent, reserve=policy.reserve, position=position)
            prices = priced[0, np.arange(slots), slate.position]
            charges = prices * rate[shown]
        ids = [ads.ids[row] for row in rows[final].tolist()]
        advertisers: list[str | None] = [None] * slots
        if "advertiser_id" in ads.columns:
            advertisers = ads.table["advertiser_id"].take(pa.array(rows[shown])).to_pylist()
        return Decision(request, prepared.arm, self._policy_id(prepared.arm, model_id), model_id, prepared.source,
                        prepared.user_known, prepared.ts, ids, scores[top], seed, slate,
                        {h: v[:k][final] for h, v in heads.items()}, None if bids is None else bids[final], prices,
                        rows[final], advertisers), charges

    def _policy_id(self, arm: Arm, model_id: str) -> str:
        key = arm.arm_id, model_id
        if (name := self._policy_ids.get(key)) is None:
            named = sha256_json({"policy": arm.policy.model_dump(mode="json"), "model": model_id})[:12]
            name = f"{arm.arm_id or 'default'}-{named}"
            self._policy_ids = {**dict(list(self._policy_ids.items())[-64:]), key: name}
        return name

    def _log_rows(self, prepared: Prepared, decision: Decision) -> pa.RecordBatch:
        shown = np.searchsorted(prepared.rows, decision.rows[decision.slate.position])  # candidates stand by row
        (batch,) = prepared.table.combine_chunks().to_batches()
        features = dict(zip(batch.schema.names, batch.take(pa.array(shown)).columns, strict=True))
        for name in self.config.context:
            if name not in features:
                features[name] = repeated(prepared.side[name], len(shown))
        return decision.log_rows(features, prepared.arm.policy.mechanism, self.config.currency)


def _folders() -> Models:
    loaded: dict[str, ScorerLike] = {}

    def get(name: str | None) -> ScorerLike:
        if name is None:
            raise InputError("no model named", file="ranking", column="model", expected="a model folder")
        if name not in loaded:
            loaded[name] = load_scorer(name)
        return loaded[name]

    return get


def replayed(decision_row: Mapping[str, Any], policy: ServedPolicyConfig, slots: int) -> Slate:
    """The slate of a logged decision again, from its row of the served log alone: ``scores`` and ``seed``."""
    return draw(np.asarray(decision_row["scores"], np.float64), slots, policy, int(decision_row["seed"]))
