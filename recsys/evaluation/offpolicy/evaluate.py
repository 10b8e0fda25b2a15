"""From a log and a target policy, both Parquet files of any length, to estimates with intervals, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.contracts import IMPRESSIONS, POLICY, open_parquet, read_parquet
from recsys.errors import InputError
from recsys.evaluation.certify.certificate import certificate
from recsys.evaluation.columns import require_column
from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy import nuisance as models
from recsys.evaluation.offpolicy.answer import answer
from recsys.evaluation.offpolicy.estimators import ESTIMATORS, SLATE, Outcomes, estimator
from recsys.evaluation.offpolicy.join import ENGAGED_MS, Joined, Log, join_policy, log_of
from recsys.evaluation.offpolicy.rows import Metric, gaps_of, outcomes_of, require_not_direct
from recsys.evaluation.offpolicy.scan import Scan, Units, scan
from recsys.evaluation.offpolicy.slate import slate_weights
from recsys.evaluation.offpolicy.stream import Misaligned, batches
from recsys.evaluation.offpolicy.totals import Totals
from recsys.log import log as logger
from recsys.log import progress

DEFAULT = ("dm", "ips", "snips", "clipped_ips", "sub_gaussian_ips", "dr", "sndr", "replay")
WITH_MODEL = ("switch_dr", "dros", "sub_gaussian_dr")  # with q = 0 they shrink towards 0: no default without a model
NuisanceKind = Literal["auto", "ranker", "none", "logistic", "boosting"]
_CONTRACT = {c.name: c.type for c in IMPRESSIONS.columns}


class _Pairs:
    """The joined batches of one evaluation; made twice where an outcome model is fitted first."""

    def __init__(self, log: Path, target: Path, facts: Scan, features: Sequence[str], clusters: pa.Table | None,
                 whole_slates: bool) -> None:
        self.log, self.target, self.facts, self.clusters = log, target, facts, clusters
        self.whole_slates = whole_slates
        wanted = dict.fromkeys(("request_id", "slot", "ad_id", "propensity", "click", "dwell_ms", facts.unit,
                                *features))
        self.log_columns = [n for n in wanted if n in facts.columns]
        opened = open_parquet(target)
        have, self.policy_rows = opened.schema_arrow.names, opened.metadata.num_rows
        for column in POLICY.columns:
            if column.required and column.name not in have:
                raise InputError("missing column", file=target, column=column.name, got=sorted(have),
                                 expected=f"{column.type} ({POLICY.name})")
        optional = ("expected_click", "price_per_click", "cluster", "logging_probability")
        self.policy_columns = [c.name for c in POLICY.columns if c.required] + [n for n in optional if n in have]

    def __call__(self, aligned: bool, label: str) -> Iterator[tuple[pa.Table, pa.Table]]:
        with progress("rows") as bar:
            task = bar.add_task(label, total=self.facts.rows)
            for rows, policy in batches(self.log, self.target, self.log_columns, self.policy_columns, aligned,
                                        self.whole_slates):
                for name in rows.column_names:
                    if name in _CONTRACT:  # values were checked by the scan
                        at = rows.column_names.index(name)
                        rows = rows.set_column(at, name, rows.column(name).cast(_CONTRACT[name]))
                if self.clusters is not None:
                    policy = _with_clusters(policy, self.clusters)
                yield rows, policy
                bar.advance(task, rows.num_rows)


    def join(self, log: Log, policy: pa.Table, known: pa.Array | None = None) -> Joined:
        """The policy rows of a batch looked up; errors name the target's file, and the row where all of it is there."""
        try:
            return join_policy(log, policy, "target", known)
        except InputError as wrong:
            row = wrong.row if policy.num_rows == self.policy_rows else None
            raise InputError(wrong.message, file=self.target, column=wrong.column, row=row, got=wrong.got,
                             expected=wrong.expected) from None


def _with_clusters(policy: pa.Table, clusters: pa.Table) -> pa.Table:
    at = pc.index_in(policy.column("ad_id"), value_set=clusters.column("ad_id").combine_chunks())
    found = clusters.column("cluster").take(at)
    if found.null_count:
        row = pc.index(pc.is_null(found), True).as_py()
        raise InputError("ad without a cluster", file="clusters", column="ad_id", expected="every ad of the policy",
                         got=policy.column("ad_id")[row].as_py())
    if "cluster" in policy.column_names:
        policy = policy.drop_columns(["cluster"])
    return policy.append_column("cluster", found)


class _Models:
    """The outcome models of one evaluation: the usual one, and MRDR's."""

    def __init__(self, pairs: _Pairs, kind: models.Kind, features: list[str], robust: bool, folds: int,
                 seed: int) -> None:
        self.pairs, self.kind, self.features, self.robust, self.folds, self.seed = (
            pairs, kind, features, robust, folds, seed)
        self.plain: models.Nuisance | None = None
        self.mrdr: models.Nuisance | None = None

    def fold(self, rows: pa.Table) -> NDArray[np.int64]:
        return models.folds_of(rows.column(self.pairs.facts.unit).cast(pa.string()), self.folds)

    def fit(self, aligned: bool) -> None:
        """Fit on at most TRAIN_ROWS rows drawn evenly from all of the log."""
        share = min(1.0, models.TRAIN_ROWS / self.pairs.facts.rows)
        rng, tables, folds, weights = np.random.default_rng(self.seed), [], [], []
        for rows, policy in self.pairs(aligned, "reading for the outcome model"):
            keep = np.flatnonzero(rng.random(rows.num_rows) < share)
            if not len(keep):
                continue
            chosen = rows.take(pa.array(keep))
            tables.append(chosen)
            folds.append(self.fold(chosen))
            if self.robust:
                log = log_of(rows, np.zeros(rows.num_rows, dtype=np.int64))
                pi = self.pairs.join(log, policy).chosen
                # pi (1 - p) / p^2: what each squared error adds to DR's variance
                weights.append((pi * (1 - log.propensity) / log.propensity**2)[keep])
        table, fold = pa.concat_tables(tables), np.concatenate(folds)
        self.plain = models.Nuisance(self.kind, self.features, self.folds, self.seed).fit(table, fold)
        if self.robust:
            self.mrdr = models.Nuisance(self.kind, self.features, self.folds, self.seed).fit(
                table, fold, np.concatenate(weights))

    def lay_over(self, rows: pa.Table, policy: pa.Table, log: Log,
                 known: pa.Array) -> tuple[Joined, tuple[Floats, Floats] | None]:
        """The joined policy with the fitted expectations, and MRDR's (q, v)."""
        fold, robust = self.fold(rows), None
        assert self.plain is not None
        arm = self.pairs.join(log, _expecting(policy, self.plain.predict(rows, policy, fold)), known)
        if self.mrdr is not None:
            other = self.pairs.join(log, _expecting(policy, self.mrdr.predict(rows, policy, fold)), known)
            assert other.q is not None
            assert other.q_policy is not None
            robust = (other.q, other.q_policy)
        return arm, robust


def _expecting(policy: pa.Table, q: Floats) -> pa.Table:
    if "expected_click" in policy.column_names:
        policy = policy.drop_columns(["expected_click"])
    return policy.append_column("expected_click", pa.array(q))


def evaluate(
    log: str | Path, target: str | Path, *, estimators: Sequence[str] | None = None, metric: Metric = "ctr",
    unit: str | None = None, nuisance: NuisanceKind = "auto", features: Sequence[str] | None = None,
    clusters: str | Path | pa.Table | None = None,
    interval: Literal["auto", "betting", "t", "bootstrap", "el"] = "auto", folds: int = 3,
    confidence: float = 0.95, draws: int = 1000, seed: int = 0, engaged_ms: float = ENGAGED_MS,
) -> dict[str, Any]:
    """Estimates of a target policy's value on a log, each with an interval, and diagnostics (docs/ope.md).

    Args:
        log: IMPRESSIONS, Parquet, with logged propensities and clicks.
        target: POLICY, Parquet.
        estimators: names of :data:`ESTIMATORS`; default: all that the files have what it takes for.
        metric: ``ctr``, ``engagement`` or ``revenue_per_mille``, per shown slot.
        unit: column of the independent unit; default ``user_id`` where every row has one, else ``request_id``.
        nuisance: outcome model: ``ranker`` (the target's ``expected_click``), ``logistic`` or ``boosting``
            (scikit-learn, cross-fitted), ``none`` (q = 0); ``auto``: the ranker's where it is there, else none.
        features: context columns of the fitted model; default: the log's columns outside the contract.
        clusters: table (or Parquet file) of ``ad_id`` and ``cluster``, for MIPS.
        interval: ``auto`` (docs/decisions/0026-certification.md), or a method by name
            (:func:`recsys.evaluation.intervals.asked_for`).
        folds: of the cross-fit.
        confidence: coverage aimed at.
        draws: of the clustered bootstrap, where ``interval`` asks for it.
        seed: of models, draws and orders.
        engaged_ms: dwell time from which a click counts as engagement, milliseconds.

    Raises:
        InputError: a file breaks its contract, or lacks what was asked for by name.
        Refused: the evidence cannot carry an answer.
    """
    log, target = Path(log), Path(target)
    names = list(dict.fromkeys(estimators if estimators is not None else DEFAULT))
    for name in names:
        estimator(name)
    if names == ["dm"]:
        require_not_direct("dm")
    facts = scan(log, unit, engaged_ms)
    if isinstance(clusters, str | Path):
        clusters = read_parquet(clusters)
    if clusters is not None:
        for column in ("ad_id", "cluster"):
            require_column(clusters, column, "clusters")
        names += [] if estimators or "mips" in names else ["mips"]
    fitted = nuisance in ("logistic", "boosting")
    modelled = fitted or (nuisance != "none" and "expected_click" in open_parquet(target).schema_arrow.names)
    if estimators is None:
        names += [*(WITH_MODEL if modelled else ()), *(("mrdr",) if fitted else ())]
    used = list(features if features is not None else models.context_columns(facts.schema)) if fitted else []
    for name in used:
        if name not in facts.columns:
            raise InputError("missing column", file=log, column=name, got=sorted(facts.columns), expected="a feature")
    slates = any(n in SLATE for n in names)
    pairs = _Pairs(log, target, facts, used, clusters, slates)
    fit = _Models(pairs, nuisance, used, "mrdr" in names, folds, seed) if fitted else None  # type: ignore[arg-type]
    try:
        totals = _totals(pairs, facts, names, metric, nuisance, fit, engaged_ms, True)
    except Misaligned:
        logger.info("requests of the two files come in different orders: cutting both by request first")
        totals = _totals(pairs, facts, names, metric, nuisance, fit, engaged_ms, False)
    _require_asked(totals, estimators or (), facts)
    result = answer(totals, interval, confidence, draws, seed)
    return {"metric": metric, "unit": facts.unit, "confidence": confidence, "n": facts.rows,
            "logged_value": facts.value if metric == "ctr" else None,
            "nuisance": nuisance if fitted else "ranker" if modelled else "none", **result,
            "certificate": certificate("offpolicy")}


def _totals(pairs: _Pairs, facts: Scan, names: list[str], metric: Metric, nuisance: str, fit: _Models | None,
            engaged_ms: float, aligned: bool) -> Totals:
    if fit is not None:
        fit.fit(aligned)
    totals, units = Totals(names, facts.rows), Units(facts.rows)
    for rows, policy in pairs(aligned, "evaluating"):
        log, robust = log_of(rows, units.codes(rows.column(facts.unit)), engaged_ms), None
        if nuisance == "none" and "expected_click" in policy.column_names:
            policy = policy.drop_columns(["expected_click"])
        if fit is None:
            arm = pairs.join(log, policy, facts.ads)
        else:
            arm, robust = fit.lay_over(rows, policy, log, facts.ads)
        if nuisance == "ranker" and arm.q is None:
            raise InputError("missing column", file=pairs.target, column="expected_click",
                             expected="the ranker's expected click of every candidate, or another --nuisance")
        made = outcomes_of(log, arm, metric, facts.engaged_share)
        if made is None:
            raise InputError("missing column", file=pairs.target if metric == "revenue_per_mille" else pairs.log,
                             column="price_per_click" if metric == "revenue_per_mille" else "dwell_ms",
                             expected=f"what the metric {metric} is made of")
        totals.add(_complete(made, log, robust, names, facts), log.clusters, arm.outside,
                   gaps_of(log, arm, metric, facts.engaged_share))
    return totals


def _complete(made: Outcomes, log: Log, robust: tuple[Floats, Floats] | None, names: list[str],
              facts: Scan) -> Outcomes:
    slate = slate_weights(log, made.weight, made.q_policy) if any(n in SLATE for n in names) else None
    # matches of a log that was not uniform favour what it favoured: replay has no answer there
    chosen = made.chosen if facts.constant else None
    return replace(made, robust=robust, slate=slate, chosen=chosen)


NEEDS = {
    "dm": "an outcome model: expected_click in the target, or --nuisance logistic",
    "mrdr": "--nuisance logistic or boosting",
    "mips": "columns cluster (or --clusters) and logging_probability in the target",
    "replay": "a log of uniformly random choices (one propensity in every row)",
}


def _require_asked(totals: Totals, asked: Sequence[str], facts: Scan) -> None:
    for name in asked:
        if not totals.levels(ESTIMATORS[name].name):
            raise InputError("the estimator lacks what it needs", file="--estimators", got=name,
                             expected=NEEDS.get(name, "other files"))
