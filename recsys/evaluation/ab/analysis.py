"""A randomised experiment, analysed by a plan that was fixed before: health first, then lifts, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from recsys.errors import InputError, Refused
from recsys.evaluation import health
from recsys.evaluation.ab.bayes import beta_binomial
from recsys.evaluation.ab.breakdown import adjust_segments, growth_of, segment_lifts
from recsys.evaluation.ab.contrast import TUNING, Contrast, aggregates, compare
from recsys.evaluation.ab.parts import Parts
from recsys.evaluation.ab.units import Metric, Units, parquet_files
from recsys.evaluation.certify.certificate import certificate
from recsys.evaluation.decision import adjust
from recsys.evaluation.intervals import choose_interval, effective
from recsys.evaluation.offpolicy.stream import column_hash

CROSSED_SHARE = 0.01  # of units in several arms, above which the randomisation is not by unit
PRE_PERIOD_ALPHA = 1e-3
UNIT_ROWS = 2_000_000  # rows in which the unit of analysis is checked


@dataclass(frozen=True)
class Plan:
    """What is decided before results exist.

    Attributes:
        baseline: name of the arm that the others are compared with.
        alpha: 1 - coverage of each interval, and level of the adjusted p-values.
        looks: how often results are looked at before the decision.
        method: ``fixed`` (one look), ``sequential`` (always-valid), or None: by ``looks``.
        multiplicity: over all variants and metrics: ``holm`` (family-wise), ``bh`` (false discoveries) or ``none``.
        tuning: units at which sequential intervals are tightest.
        winsorise: quantile of the units' numerators, all arms together, above which they are cut; None cuts none.
        shares: planned share of each arm; None means equal ones.
    """

    baseline: str
    alpha: float = 0.05
    looks: int = 1
    method: Literal["fixed", "sequential"] | None = None
    multiplicity: Literal["holm", "bh", "none"] = "holm"
    tuning: float = TUNING
    winsorise: float | None = None
    shares: dict[str, float] | None = None

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("alpha", 0 < self.alpha < 0.5, "between 0 and 0.5"), ("looks", self.looks >= 1, "at least 1"),
            ("method", self.method in (None, "fixed", "sequential"), "fixed or sequential"),
            ("multiplicity", self.multiplicity in ("holm", "bh", "none"), "holm, bh or none"),
            ("tuning", self.tuning > 0, "units > 0"),
            ("winsorise", self.winsorise is None or 0.5 < self.winsorise < 1, "a quantile between 0.5 and 1"),
        ):
            if not ok:
                raise InputError("setting not allowed", file="plan", column=name, got=getattr(self, name),
                                 expected=expected)

    @property
    def sequential(self) -> bool:
        """Whether intervals hold at every look.

        Raises:
            Refused: several looks at a p-value that is made for one.
        """
        if self.method == "fixed" and self.looks > 1:
            raise Refused(f"a fixed-horizon p-value looked at {self.looks} times finds differences that are not there "
                          "far more often than alpha says; use the always-valid one (method sequential), or look once")
        return self.looks > 1 if self.method is None else self.method == "sequential"


def analyse(units: Units, metrics: list[Metric], plan: Plan, unit: str = "unit",
            checks: list[dict[str, Any]] | None = None, segments: Mapping[str, Parts] | None = None,
            grown: tuple[str, Parts] | None = None, aa: int = 0) -> dict[str, Any]:
    """Every variant against the baseline on every metric.

    Args:
        units: one line per randomised unit (:func:`recsys.evaluation.ab.read_units`).
        metrics: those with a covariate are decided on their CUPED-adjusted comparison, the raw one stands beside.
        plan: baseline, level and policies.
        unit: name of the unit, for the report.
        checks: further health lines, such as :func:`check_unit`'s.
        segments: column -> the units by its values (:func:`recsys.evaluation.ab.parts.read_segment_parts`).
        grown: a column of time, and the units by it (:func:`recsys.evaluation.ab.parts.read_time_parts`).
        aa: draws of the A/A test of every metric on the same units, which becomes a health line; 0 for none.

    Returns:
        Plain values: ``plan``, ``unit``, ``rows``, ``arms`` (units), ``health``, ``healthy`` and, where healthy,
        ``metrics``: name -> ``variants``: arm -> numerators, denominators, ``raw`` and ``cuped`` comparisons,
        ``p_value``, ``p_adjusted``, ``significant``, ``label``; and, where asked for, ``segments`` and ``growth`` in
        the shapes of ``lift.json``; ``aa``: name -> what was found; ``certificate``. An unhealthy experiment has
        ``refused`` instead.

    Raises:
        InputError: the baseline or a share names no arm.
        Refused: a fixed-horizon p-value at several looks; no metric can be compared.
    """
    sequential = plan.sequential
    if plan.baseline not in units.arms:
        raise InputError("no such arm", file="--baseline", got=plan.baseline,
                         expected="one of " + ", ".join(units.arms))
    if len(units.arms) < 2:
        raise InputError("one arm only", file="--arm", got=units.arms, expected="a baseline and at least one variant")
    lines = [*_allocation(units, plan), *(checks or []), *_pre_period(units, metrics)]
    result: dict[str, Any] = {
        "plan": {**asdict(plan), "method": "sequential" if sequential else "fixed"}, "unit": unit, "rows": units.rows,
        "arms": dict(zip(units.arms, units.counts.tolist(), strict=True)), "health": lines,
        "healthy": all(line["ok"] for line in lines)}
    if not result["healthy"]:
        return result | {"refused": _failed(lines) + ". No lift is shown, because the arms are not comparable; mend "
                                                     "the assignment or the logging and run the test again"}
    if aa:
        result["aa"] = {m.name: _aa(units, m, plan, aa) for m in metrics}
        line = health.aa(result["aa"])
        result |= {"health": [*lines, *line], "healthy": all(one["ok"] for one in line)}
        if not result["healthy"]:
            return result | {"refused": _failed(line) + ". No lift is shown, because the test does not keep its level "
                                                        "on these units: a few carry these numbers; analyse by a "
                                                        "wider unit, winsorise, or wait for more of them"}
    result["metrics"] = {m.name: _metric(units, m, plan, sequential) for m in metrics}
    _adjust(result["metrics"], plan)
    _break_down(result["metrics"], metrics, plan, sequential, segments or {}, grown)
    return result | {"certificate": certificate("ab")}


def _failed(lines: list[dict[str, Any]]) -> str:
    return "; ".join(f"{line['check']}: {line['detail']}" for line in lines if not line["ok"])


def _aa(units: Units, metric: Metric, plan: Plan, draws: int) -> dict[str, Any]:
    from recsys.evaluation.ab.design import aa_test  # brings statsmodels

    try:
        return aa_test(units, metric, draws, plan.alpha, cap=_cap(units, metric, plan)[0])
    except Refused as reason:
        return {"refused": str(reason)}


def check_unit(path: str | Path, unit: str) -> dict[str, Any]:
    """Health line: units are not parts of something wider (a user, a story) that the log names as well.

    Looks at the first two million rows.
    """
    data = ds.dataset([str(f) for f in parquet_files(path)], format="parquet")
    wider = [n for n in ("user_id", "group_id") if n in data.schema.names and n != unit]
    table = data.head(UNIT_ROWS, columns=[unit, *wider]) if wider else pa.table({unit: pa.array([], pa.string())})
    return health.unit_of_analysis(table, unit)


def check_duplicates(path: str | Path, unit: str) -> list[dict[str, Any]]:
    """Health line: no impression stands in the log twice; none where the log does not name impressions."""
    data = ds.dataset([str(f) for f in parquet_files(path)], format="parquet")
    if "impression_id" not in data.schema.names or unit == "impression_id":
        return []
    hashes = [column_hash(batch.column(0).drop_null().cast(pa.string()))
              for batch in data.to_batches(columns=["impression_id"])]
    return [health.duplicates(pa.table({"impression_id": pa.chunked_array(hashes, pa.uint64())}), ())]


def _allocation(units: Units, plan: Plan) -> list[dict[str, Any]]:
    if plan.shares is not None and sorted(plan.shares) != units.arms:
        raise InputError("shares do not match the arms", file="--share", got=sorted(plan.shares),
                         expected=", ".join(units.arms))
    planned = None if plan.shares is None else [plan.shares[a] for a in units.arms]
    statistic, p_value = health.srm(units.counts, planned)
    seen = ", ".join(f"{a} {n:,}" for a, n in zip(units.arms, units.counts, strict=True))
    total = int(units.counts.sum()) + units.crossed
    share = units.crossed / total
    return [health.check("sample ratio", p_value >= health.SRM_ALPHA,
                         f"{seen} units; chi2 {statistic:.3f}, p = {p_value:.3g}"),
            health.check("one arm per unit", share <= CROSSED_SHARE,
                         f"{units.crossed:,} of {total:,} units were seen in several arms and are left out")]


def _pre_period(units: Units, metrics: list[Metric]) -> list[dict[str, Any]]:
    lines = []
    pairs = dict.fromkeys((m.covariate, m.covariate_denominator) for m in metrics if m.covariate is not None)
    for column, below in pairs:
        before = Metric(str(column), below)
        arms = [aggregates(units, a, before) for a in units.arms]
        try:
            p_values = [float(str(compare(arms[0], other, before).absolute.p_value)) for other in arms[1:]]
        except Refused as reason:
            lines.append(health.check(f"pre-period {before.name}", True, str(reason)))
            continue
        least = min(1.0, min(p_values) * len(p_values))
        values = ", ".join(f"{a} {m.mean(column) / m.mean(below):.5g}" for a, m in zip(units.arms, arms, strict=True))
        lines.append(health.check(f"pre-period {before.name}", least >= PRE_PERIOD_ALPHA,
                                  f"{values} before the experiment, p = {least:.3g}"))
    return lines


def _metric(units: Units, metric: Metric, plan: Plan, sequential: bool) -> dict[str, Any]:
    cap, cut = _cap(units, metric, plan)
    moments = {a: aggregates(units, a, metric, cap) for a in units.arms}
    raw = Metric(metric.numerator, metric.denominator)
    tuning = plan.tuning if sequential else None
    out: dict[str, Any] = {"winsorised": cut, "variants": {}}
    for arm in units.arms:
        if arm == plan.baseline:
            continue
        line: dict[str, Any] = {"numerators": {}, "denominators": {}}
        for name in (plan.baseline, arm):
            line["numerators"][name] = float(units.of(name, metric.numerator).sum())
            below = units.of(name, metric.denominator) if metric.denominator else None
            line["denominators"][name] = moments[name].count() if below is None else float(below.sum())
        try:
            line |= _compared(moments[plan.baseline], moments[arm], metric, raw, 1 - plan.alpha, tuning)
            events = min(effective(units.of(a, metric.numerator)) for a in (plan.baseline, arm))
            size = min(moments[a].count() for a in (plan.baseline, arm))
            choice = choose_interval(size, events, size, sizes=[
                units.of(a, metric.denominator) for a in (plan.baseline, arm)] if metric.denominator else ())
            line |= {"label": choice.label, "evidence": choice.reason}
        except Refused as reason:
            line = {k: line[k] for k in ("numerators", "denominators")} | {"refused": str(reason)}
        if metric.denominator is None and "refused" not in line:
            values = [units.of(a, metric.numerator) for a in (plan.baseline, arm)]
            if all(((v == 0) | (v == 1)).all() for v in values):
                first, second = values
                line["bayes"] = beta_binomial(int(first.sum()), len(first), int(second.sum()), len(second))
        out["variants"][arm] = line
    return out


def _compared(control: Any, treatment: Any, metric: Metric, raw: Metric, confidence: float,
              tuning: float | None) -> dict[str, Any]:
    first = compare(control, treatment, raw, confidence, tuning=tuning)
    line: dict[str, Any] = {"raw": first.as_dict()}
    decided: Contrast = first
    if metric.covariate is not None:
        decided = compare(control, treatment, metric, confidence, tuning=tuning)
        se, plain = decided.absolute.se or 0.0, first.absolute.se or 0.0
        line["cuped"] = decided.as_dict() | {"variance_reduction": 1 - (se / plain) ** 2}
    return line | {"decided_on": "cuped" if metric.covariate else "raw", "p_value": decided.absolute.p_value}


def _cap(units: Units, metric: Metric, plan: Plan) -> tuple[float | None, dict[str, float] | None]:
    values = units.values[metric.numerator]
    if plan.winsorise is None or bool(((values == 0) | (values == 1)).all()):
        return None, None
    cap = float(np.quantile(values, plan.winsorise))
    return cap, {"cap": cap, "share_of_units": float((values > cap).mean())}


def _adjust(metrics: dict[str, Any], plan: Plan) -> None:
    lines = [line for m in metrics.values() for line in m["variants"].values() if "refused" not in line]
    if not lines:
        raise Refused("; ".join(dict.fromkeys(
            line["refused"] for m in metrics.values() for line in m["variants"].values())))
    adjusted = adjust({str(i): line["p_value"] for i, line in enumerate(lines)}, plan.multiplicity, plan.alpha)
    for i, line in enumerate(lines):
        line |= {"p_adjusted": adjusted[str(i)], "significant": adjusted[str(i)] <= plan.alpha}


def _break_down(found: dict[str, Any], metrics: list[Metric], plan: Plan, sequential: bool,
                segments: Mapping[str, Parts], grown: tuple[str, Parts] | None) -> None:
    confidence = 1 - plan.alpha
    for metric in metrics:
        out = found[metric.name]
        overall = {arm: line[line["decided_on"]]["relative"]["estimate"] for arm, line in out["variants"].items()
                   if "refused" not in line and line[line["decided_on"]]["relative"] is not None}
        if segments:
            out["segments"] = segment_lifts(segments, metric, overall, plan.baseline, confidence,
                                            plan.tuning if sequential else None)
        if grown is not None:
            out["growth"] = growth_of(grown[1], grown[0], metric, plan.baseline, confidence, plan.tuning)
    adjust_segments([out["segments"] for out in found.values() if "segments" in out], plan.multiplicity, plan.alpha)
